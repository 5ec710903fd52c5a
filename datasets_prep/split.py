"""Which split a dialogue belongs to. Decision: a pure function of the seed and the dialogue's group, so that the two
sides of a dialogue, or all dialogues of a scenario, never stand on both sides of the border, however the input is
ordered.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets_prep.rejects import Placed, Reject
from ilql.types import Episode, InputError

Item = tuple[str, Episode | Reject]  # the split, and what stands in it


def group(episode: Episode) -> str:
    """What splits keep together: `meta["group"]`, or else the id without the mark of a side (`42:a`, `42:b`)."""
    value = episode.meta.get("group")
    if value is not None:  # null, as an export of a table writes it, is no group that all share
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return re.sub(r":[a-z]$", "", episode.id)


def share(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the key."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def parse(value: str | None) -> float | Path | None:
    """`--validation` as a fraction, a file, or None."""
    if value is None:
        return None
    try:
        fraction = float(value)
    except ValueError:
        path = Path(value)
        if not value or not path.exists():
            raise InputError(f"--validation {value!r} is neither a fraction such as 0.05 nor a file") from None
        if path.is_dir():
            raise InputError(f"--validation {value} is a folder; give a file or a fraction") from None
        return path
    if fraction == 0:
        return None
    if not 0 < fraction < 1:
        raise InputError(f"--validation {value}: a fraction lies between 0 and 1")
    return fraction


def _held_out(corpus: ModuleType, path: Path, seed: int, options: dict[str, Any]) -> Iterator[Episode | Reject]:
    """The dialogues of a validation file; what is wrong with the file is said of it, not of the inputs."""
    try:
        yield from corpus.episodes([path], seed=seed, **options)
    except InputError as error:
        raise InputError(f"--validation {path} cannot be used: {error}") from None


def _unnamed(episode: Episode) -> bool:
    """Whether the id only says where the line stood, so that another file may have it for another dialogue."""
    named_by_line = isinstance(episode, Placed) and re.fullmatch(
        rf"{re.escape(Path(episode.file).stem)}(\.\d+)?-{episode.line}", episode.id
    )
    return bool(named_by_line) and episode.meta.get("group") is None


def items(
    corpus: ModuleType, inputs: list[Path], validation: float | Path | None, seed: int, options: dict[str, Any]
) -> Iterator[Item]:
    """Every episode of a corpus with its split; an id that its source had before is a Reject.

    A validation file is either asked for the groups that it names (a corpus with `groups(path)`), which are then taken
    out of train, or is itself the validation split; a dialogue of the file whose group train has is a Reject.
    """
    if isinstance(validation, Path) and any(validation.samefile(path) for path in inputs):
        raise InputError(f"--validation {validation} is also an --input; give another file or a fraction")
    held: set[str] | None = None
    sources = [("train", corpus.episodes(inputs, seed=seed, **options))]
    if isinstance(validation, Path):
        if hasattr(corpus, "groups"):
            held = corpus.groups(validation)
        else:
            sources.append(("validation", _held_out(corpus, validation, seed, options)))
    held_out = 0
    trained: set[str] = set()
    for name, source in sources:
        seen: set[str] = set()  # anew for a validation file: lines without an id are named after their file
        for item in source:
            if isinstance(item, Reject):
                yield name, item
                continue
            if item.id in seen:
                yield name, Reject("", 0, "id", f"{item.id!r} is the id of an earlier dialogue", item.id).at(item)
                continue
            seen.add(item.id)
            if name == "train" and len(sources) > 1 and not _unnamed(item):
                trained.add(group(item))
            elif name == "validation" and not _unnamed(item) and group(item) in trained:
                reason = "the dialogue, its other side or its group stands in --input too"
                yield name, Reject("", 0, "id", reason, item.id).at(item)
                continue
            split = name
            if isinstance(validation, float):
                split = "validation" if share(seed, group(item)) < validation else "train"
            elif held is not None and group(item) in held:
                split, held_out = "validation", held_out + 1
            yield split, item
    if held is not None and not held_out:
        raise InputError(f"--validation {validation}: no dialogue of --input is of a group that this file names")
