"""The dialogues of dataset folders as sequences of rows. Decision: the files are memory-mapped and a row's columns are
views into them, so that memory does not grow with the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ilql import proposals
from ilql.schema import INTEGERS, check_columns, check_prefix, check_row, read_manifest, sound, views
from ilql.types import InputError
from ilql.verified import batches, check_files


class Rows(Sequence[dict[str, Any]]):
    """The dialogues of one split of a dataset folder, memory-mapped: a row's columns are views into the file."""

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        self.folder, self.split = Path(folder), split
        self.manifest = read_manifest(folder)
        names = sorted(n for n in self.manifest["files"] if n.startswith(f"{split}/") and n.endswith(".arrow"))
        self._batches: list[dict[str, Any]] = []
        lengths: list[np.ndarray] = []
        files = self.manifest["files"]
        check_files(self.folder, files, [*names, *(name for name in files if not name.endswith(".arrow"))])
        for name in names:
            path = self.folder / name
            for batch in batches(path, check_columns):
                self._batches.append(views(batch))
                check_prefix(self._batches[-1], self.manifest, str(path))
                for column in INTEGERS:
                    if self._batches[-1][column][1].dtype.kind != "i":
                        raise InputError(f"{path}: a null in column {column!r}; build the dataset again")
                if getattr(self._batches[-1].get(proposals.NAME), "nulls", False):
                    raise InputError(f"{path}: a null in column {proposals.NAME!r}; make the proposals again")
                lengths.append(np.diff(self._batches[-1]["tokens"][0]))
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        self._first = np.cumsum([0] + [len(x) for x in lengths])

    @property
    def has_proposals(self) -> bool:
        """Whether all of them have candidates for their states."""
        return all(proposals.NAME in batch for batch in self._batches)

    @property
    def prefix(self) -> int | None:
        """How many numbers every dialogue begins with; None where they begin with none."""
        return self.manifest.get("prefix")

    def refuse_prefix(self, what: str) -> None:
        """For what knows dialogues by their texts alone."""
        if self.prefix is not None:
            raise InputError(f"{self.folder} has prefixes, which {what} cannot read; build it without")

    @property
    def returns(self) -> np.ndarray:
        """The undiscounted return of each dialogue, (rows), in the log's units."""
        parts = [_sums(*batch["reward"]) for batch in self._batches]
        return np.concatenate(parts) if parts else np.zeros(0)

    @property
    def logp(self) -> np.ndarray:
        """The log-probability of every transition's action under the policy that wrote it, (n); nan where unknown."""
        parts = [values[: offsets[-1]] for offsets, values in (batch["logp"] for batch in self._batches)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    @property
    def pair(self) -> np.ndarray:
        """What each dialogue shares with the one that it was compared to, (rows) of str; None where it has no such."""
        each = [batch["pair"].to_pylist() if "pair" in batch else [None] * len(batch["id"]) for batch in self._batches]
        return np.array([name for names in each for name in names], object)

    def to_go(self, gamma: float) -> np.ndarray:
        """The discounted return to go of every transition, (n), in the log's units."""
        parts = []
        for offsets, values in (batch["reward"] for batch in self._batches):
            dialogue = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            parts.append(returns_to_go(values[offsets[0] : offsets[-1]], dialogue, gamma))
        return np.concatenate(parts) if parts else np.zeros(0)

    def check(self, vocab_size: int) -> None:
        """Refuse a row that is no well-formed dialogue: it would end in a wrong number or in a fault far from it."""
        for first, batch in zip(self._first.tolist(), self._batches, strict=False):
            if not sound(batch, vocab_size):
                for i in range(first, first + len(batch["id"])):
                    check_row(self[i], vocab_size, f"{self.folder}, {self.split} row {i}")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> dict[str, Any]:  # type: ignore[override]
        if not 0 <= i < len(self):
            raise IndexError(i)
        k = int(np.searchsorted(self._first, i, side="right")) - 1
        j = i - int(self._first[k])
        out: dict[str, Any] = {}
        for name, column in self._batches[k].items():
            if isinstance(column, tuple):
                offsets, values = column
                out[name] = values[offsets[j] : offsets[j + 1]]
            elif isinstance(column, proposals.Column):
                out[name] = column[j]
            else:
                out[name] = column[j].as_py()
        return out


def _sums(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of each list of a column; a list without items, which is no dialogue, has none and is refused later."""
    sums = np.zeros(len(offsets) - 1)
    filled = np.diff(offsets) > 0
    if filled.any():
        sums[filled] = np.add.reduceat(values[: offsets[-1]].astype(np.float64), offsets[:-1][filled])
    return sums


def _built(part: Rows) -> dict[str, str]:
    """What datasets must have in common to be mixed."""
    return {
        "prefix": str(part.prefix),
        "step": part.manifest["step"],
        "tokenizer": part.manifest["tokenizer"]["sha256"],
    }


def returns_to_go(reward: np.ndarray, dialogue: np.ndarray, gamma: float) -> np.ndarray:
    """The discounted sum from each decision of many dialogues on, (n): those of a dialogue stand together, numbered
    alike.

    The same sums in the same order as `ilql.data.returns` of one, so the same bits; a step of the loop is one place
    from the end of every dialogue.
    """
    out = reward.astype(np.float64)
    ends = np.flatnonzero(np.diff(dialogue, append=-1))
    begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    at = ends - 1
    at, begins = at[at >= begins], begins[at >= begins]
    while len(at):
        out[at] += gamma * out[at + 1]
        at = at - 1
        at, begins = at[at >= begins], begins[at >= begins]
    return out


class Mix(Sequence[dict[str, Any]]):
    """Several datasets as one sequence of rows; all must share the step and the tokenizer.

    prepare: what is made of a row when it is read, and what `lengths` counts; the stored rows themselves by default.
    """

    def __init__(self, parts: Sequence[Rows], prepare: Callable[[Any], dict[str, Any]] | None = None) -> None:
        first = _built(parts[0])
        mends = {
            "prefix": "one of as many numbers",
            "step": f"--step {first['step']}",
            "tokenizer": f"--tokenizer {parts[0].folder}/tokenizer",
        }
        for part in parts[1:]:
            for what, mend in mends.items():
                if _built(part)[what] != first[what]:
                    raise InputError(f"{part.folder} has another {what} than {parts[0].folder}; build it with {mend}")
        self.parts, self.prepare = list(parts), prepare
        self.lengths = np.concatenate([p.lengths for p in parts])
        self.returns = np.concatenate([p.returns for p in parts])
        self._first = np.cumsum([0] + [len(p) for p in parts])
        if prepare is not None:
            self.lengths = np.array([len(self[i]["tokens"]) for i in range(len(self))], np.int64)

    @property
    def logp(self) -> np.ndarray:
        """As of `Rows`, (n) of all."""
        return np.concatenate([part.logp for part in self.parts])

    @property
    def pair(self) -> np.ndarray | None:
        """The same number for the two dialogues of a pair and for no other, (rows); None where nothing is a pair."""
        named = [(k, name) for k, part in enumerate(self.parts) for name in part.pair.tolist()]
        if all(name is None for _, name in named):
            return None
        number: dict[Any, int] = {}
        return np.array(
            [number.setdefault(i if pair[1] is None else pair, len(number)) for i, pair in enumerate(named)]
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> dict[str, Any]:  # type: ignore[override]
        k = int(np.searchsorted(self._first, i, side="right")) - 1
        row = self.parts[k][i - int(self._first[k])]
        return row if self.prepare is None else self.prepare(row)
