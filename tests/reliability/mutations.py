"""A dataset, or a cache, of which something was changed: a bit, a byte, bytes that are missing or twice, files that
change places. Decision: every change of the manifest and of any file that it names is told; a crash would end this
process.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ilql import schema
from ilql.rows import Rows
from ilql.types import InputError

Reader = Callable[[Path], object]
CHANGES = ("bit", "byte", "cut", "lost", "twice", "zeros", "swapped")


def changed(data: bytes, others: list[bytes], how: str, rng: random.Random) -> bytes:
    """Other bytes than these."""
    while True:
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        found = bytearray(data)
        if how == "bit":
            found[at % len(data)] ^= 1 << rng.randrange(8)
        elif how == "byte":
            found[at % len(data)] = rng.randrange(256)
        elif how == "cut":
            del found[at:]
        elif how == "lost":
            del found[at:end]
        elif how == "twice":
            found[at:at] = data[at:end]
        elif how == "zeros":
            found[at:end] = bytes(end - at)
        else:
            found[:] = rng.choice(others)
        if bytes(found) != data:
            return bytes(found)


def _train_reads(folder: Path) -> None:
    for split in schema.SPLITS:
        Rows(folder, split)


def mutations(
    folder: Path, count: int, seed: int = 0, readers: tuple[Reader, ...] = (schema.validate, _train_reads)
) -> dict[str, Any]:
    """So many changes, evenly over the files of a folder; raises AssertionError where one goes unnoticed by one of its
    readers: of a dataset, its check and what opens it for training."""
    rng = random.Random(seed)
    names = ["manifest.json", *json.loads((folder / "manifest.json").read_bytes())["files"]]
    contents = {name: (folder / name).read_bytes() for name in names}
    names = [name for name in names if contents[name]]
    unnoticed = []
    for i in range(count):
        name, how = names[i % len(names)], CHANGES[(i // len(names)) % len(CHANGES)]
        others = [data for other, data in contents.items() if other != name and data != contents[name]]
        (folder / name).write_bytes(changed(contents[name], others, how, rng))
        for reader in readers:
            try:
                reader(folder)
                said = "nothing"
            except InputError as error:
                said = str(error)
            if str(folder) not in said:
                unnoticed.append((name, how, i, said))
        (folder / name).write_bytes(contents[name])
    for reader in readers:
        reader(folder)
    assert unnoticed == []
    return {"changes": count, "files": len(names), "kinds": len(CHANGES), "bytes": sum(map(len, contents.values()))}
