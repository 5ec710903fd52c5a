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
from datasets_prep.rejects import Reject
from datasets_prep.talks import Talks
from ilql.types import InputError

T = TypeVar("T")


def group(name: str, meta: dict[str, Any]) -> str:
    """What splits keep together: `meta["group"]`, or else the id without the mark of a side (`42:a`, `42:b`)."""
    value = meta.get("group")
    if value is not None:  # null, as an export of a table writes it, is no group that all share
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return re.sub(r":[a-z]$", "", name)


def share(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the key."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


class Fold(NamedTuple):
    """One of `of` parts that make up the whole, by number from 1 on."""

    number: int
    of: int

    def holds(self, share: float) -> bool:
        """Whether a number in [0, 1) lies in this part."""
        return int(share * self.of) == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse(value: str | None) -> float | Fold | Path | None:
    """`--validation` as a fraction, a fold, a file, or None."""
    if value is None:
        return None
    parts = re.fullmatch(r"(\d+)/(\d+)", value)
    if parts is not None and not Path(value).exists():
        fold = Fold(int(parts[1]), int(parts[2]))
        if fold.of < 2 or not 1 <= fold.number <= fold.of:
            raise InputError(f"--validation {value}: folds of N are 1/N to N/N, and N is at least 2")
        return fold
    try:
        fraction = float(value)
    except ValueError:
        path = Path(value)
        if not value or not path.exists():
            raise InputError(
                f"--validation {value!r} is neither a fraction such as 0.05, nor a fold such as 1/5, nor a file"
            ) from None
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
    place: tuple[str, int]
    group: str | None = None
    unnamed: bool = False  # the id only says where the line stood, so another file may have it for another dialogue


def look(talks: Talks, grouped: bool) -> list[Seen]:
    """grouped: whether anything is split."""
    if not grouped:
        return list(map(Seen, talks.id, talks.place))
    return [
        Seen(name, place, group(name, meta), _by_line(name, *place) and meta.get("group") is None)
        for name, place, meta in zip(talks.id, talks.place, talks.meta, strict=True)
    ]


def _by_line(name: str, file: str, line: int) -> bool:
    stem, _, place = name.rpartition("-")
    at_line = place.partition(".")[0] == str(line)  # a line may hold several dialogues
    return at_line and re.fullmatch(rf"{re.escape(files.stem(file))}(\.\d+)?", stem) is not None


class Splitter:
    """Says of every dialogue, in the order of the input, which split it belongs to.

    A validation file is either asked for the groups that it names (a corpus with `groups(path)`), which are then taken
    out of train, or is itself the validation split; a dialogue of the file whose group train has is a Reject.

    sources: the splits and the files that they are read from.
    """

    def __init__(
        self, corpus: ModuleType, inputs: list[Path], validation: float | Fold | Path | None, seed: int
    ) -> None:
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

    def place(self, source: str, talks: list[Seen]) -> list[str | Reject]:
        """The splits of the next dialogues of a source; a Reject for one with an id that the source had before."""
        known = self._seen.setdefault(source, set())
        ids = {seen.id for seen in talks}
        if not self.grouped and len(ids) == len(talks) and known.isdisjoint(ids):
            known |= ids
            return [source] * len(talks)
        return [self._one(source, known, seen) for seen in talks]

    def _one(self, source: str, known: set[str], seen: Seen) -> str | Reject:
        if seen.id in known:
            return Reject(*seen.place, "id", f"{seen.id!r} is the id of an earlier dialogue", seen.id)
        known.add(seen.id)
        if seen.group is None:
            return source
        if len(self.sources) > 1 and not seen.unnamed:
            if source == "train":
                self._trained.add(seen.group)
            elif seen.group in self._trained:
                return Reject(
                    *seen.place, "id", "the dialogue, its other side or its group stands in --input too", seen.id
                )
        if isinstance(self._validation, Fold):
            return "validation" if self._validation.holds(share(self._seed, seen.group)) else "train"
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
