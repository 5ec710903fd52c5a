"""Which split a dialogue belongs to. Decision: a pure function of the seed and the dialogue's group, so that the two
sides of a dialogue, or all dialogues of a scenario, never stand on both sides of the border, however the input is
ordered.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from datasets_prep import files
from datasets_prep.rejects import Placed, Reject
from ilql.types import Episode, InputError

Item = tuple[str, Episode | Reject]  # the split, and what stands in it
T = TypeVar("T")


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


class Seen(NamedTuple):
    """What splitting asks of a dialogue. group: None where nothing is split."""

    id: str
    file: str
    line: int
    group: str | None
    unnamed: bool  # the id only says where the line stood, so that another file may have it for another dialogue


def look(episode: Episode, grouped: bool) -> Seen:
    """grouped: whether anything is split."""
    file, line = (episode.file, episode.line) if isinstance(episode, Placed) else ("", 0)
    if not grouped:
        return Seen(episode.id, file, line, None, False)
    stem, _, place = episode.id.rpartition("-")
    at_line = place.partition(".")[0] == str(line)  # a line may hold several dialogues
    by_line = at_line and re.fullmatch(rf"{re.escape(files.stem(file))}(\.\d+)?", stem)
    return Seen(episode.id, file, line, group(episode), bool(by_line) and episode.meta.get("group") is None)


class Splitter:
    """Says of every dialogue, in the order of the input, which split it belongs to.

    A validation file is either asked for the groups that it names (a corpus with `groups(path)`), which are then taken
    out of train, or is itself the validation split; a dialogue of the file whose group train has is a Reject.

    sources: the splits and the files that they are read from.
    """

    def __init__(self, corpus: ModuleType, inputs: list[Path], validation: float | Path | None, seed: int) -> None:
        self._corpus, self._validation, self._seed = corpus, validation, seed
        self._held: set[str] | None = None
        self._held_out = 0
        self._trained: set[str] = set()
        self._seen: dict[str, set[str]] = {}  # a source: lines without an id are named after their file
        self.sources = [("train", inputs)]
        if isinstance(validation, Path):
            if any(validation.samefile(path) for path in inputs):
                raise InputError(f"--validation {validation} is also an --input; give another file or a fraction")
            if hasattr(corpus, "groups"):
                self._held = corpus.groups(validation)
            else:
                self.sources.append(("validation", [validation]))

    @property
    def grouped(self) -> bool:
        return self._validation is not None

    def place(self, source: str, seen: Seen) -> str:
        """The split of the next dialogue of a source. Raises Reject for an id that the source had before."""
        known = self._seen.setdefault(source, set())
        if seen.id in known:
            raise Reject(seen.file, seen.line, "id", f"{seen.id!r} is the id of an earlier dialogue", seen.id)
        known.add(seen.id)
        if seen.group is None:
            return source
        if len(self.sources) > 1 and not seen.unnamed:
            if source == "train":
                self._trained.add(seen.group)
            elif seen.group in self._trained:
                reason = "the dialogue, its other side or its group stands in --input too"
                raise Reject(seen.file, seen.line, "id", reason, seen.id)
        if isinstance(self._validation, float):
            return "validation" if share(self._seed, seen.group) < self._validation else "train"
        if self._held is not None and seen.group in self._held:
            self._held_out += 1
            return "validation"
        return source

    def close(self) -> None:
        """Raises InputError where a file names groups, but no dialogue is of any."""
        if self._held is not None and not self._held_out:
            raise InputError(
                f"--validation {self._validation}: no dialogue of --input is of a group that this file names"
            )

    def read(self, reader: Callable[[list[Path]], Iterator[T]]) -> Iterator[tuple[str, T]]:
        """What a reader of files finds, with the name of its source; what is wrong with a validation file is said of
        it, not of the inputs."""
        for name, paths in self.sources:
            try:
                for found in reader(paths):
                    yield name, found
            except InputError as error:
                if name == "train":
                    raise
                raise InputError(f"--validation {paths[0]} cannot be used: {error}") from None


def items(
    corpus: ModuleType, inputs: list[Path], validation: float | Path | None, seed: int, options: dict[str, Any]
) -> Iterator[Item]:
    """Every episode of a corpus with its split; an id that its source had before is a Reject."""
    splitter = Splitter(corpus, inputs, validation, seed)
    for name, item in splitter.read(lambda paths: corpus.episodes(paths, seed=seed, **options)):
        if isinstance(item, Reject):
            yield name, item
            continue
        try:
            yield splitter.place(name, look(item, splitter.grouped)), item
        except Reject as fault:
            yield name, fault
    splitter.close()
