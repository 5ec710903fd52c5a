"""One bit turned over in a file of a checkpoint: never loaded, always said."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ilql import checkpoint, sealed


def bit_flips(folder: Path, flips: int, seed: int = 0) -> dict[str, Any]:
    """So many single bits, evenly over the files of a checkpoint; raises AssertionError where one goes unnoticed."""
    rng = random.Random(seed)
    paths = sorted(folder.iterdir())
    contents = {path: path.read_bytes() for path in paths}
    unnoticed = []
    for i in range(flips):
        path = paths[i % len(paths)]
        at, bit = rng.randrange(len(contents[path])), rng.randrange(8)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([contents[path][at] ^ (1 << bit)]))
        try:
            checkpoint.load(folder)
            said = "nothing"
        except sealed.Damaged as damage:
            said = str(damage)
        if path.name not in said:
            unnoticed.append((path.name, at, bit, said))
        with path.open("r+b") as file:
            file.seek(at)
            file.write(contents[path][at : at + 1])
    checkpoint.verify(folder)
    assert unnoticed == []
    return {"flips": flips, "files": len(paths), "bytes": sum(map(len, contents.values()))}
