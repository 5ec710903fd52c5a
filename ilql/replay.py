"""Batches of decisions from caches of hidden states. Decision: the unit is the decision, drawn from all dialogues
alike; a batch is the `Batch` that every algorithm knows, made by a few gathers, with no loop over decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ilql.cached import Cache, tensor
from ilql.columns import Column
from ilql.data import Batch
from ilql.pieces import Run
from ilql.prefix import apart
from ilql.rows import returns_to_go
from ilql.states import FORM, NOTHING, STATE, TERMINAL
from ilql.types import InputError


class Split(NamedTuple):
    """The columns of a split, memory-mapped."""

    hidden: Column
    decisions: dict[str, Column]
    tokens: dict[str, Column]


class Ids(Sequence[str]):
    """The names of a batch's dialogues, looked up when somebody asks."""

    def __init__(self, rows: Sequence[Any], numbers: np.ndarray) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(np.unique(self.numbers))

    def __getitem__(self, i: Any) -> Any:
        return list(self)[i]

    def __iter__(self) -> Iterator[str]:
        return (str(self.rows[int(number)]["id"]) for number in np.unique(self.numbers))

    def __reduce__(self) -> Any:
        return list, (list(self),)  # between processes the names travel, not the datasets


def terminated(follows: np.ndarray, dialogue: np.ndarray) -> np.ndarray:
    """Whether each decision's dialogue came to its end, (n): what follows its last decision is terminal."""
    ends = np.flatnonzero(np.diff(dialogue, append=-1))
    return np.repeat(follows[ends] == TERMINAL, np.diff(ends, prepend=-1))


class Decisions:
    """Decisions of one split of several caches, numbered through; what a DataLoader reads batches from."""

    def __init__(
        self,
        caches: Sequence[Cache],
        split: str,
        dialogues: Sequence[Any],
        chosen: np.ndarray | None,
        *,
        gamma: float,
        reward_scale: float,
        bootstraps: bool,
        acted: bool,
    ) -> None:
        """dialogues: of all datasets in order. chosen: the numbers of those to learn from, None for all. The rest as in
        `ilql.data.collate`."""
        read = [cache.columns(FORM, split) for cache in caches]
        self.parts = [Split(files["hidden"]["h"], files["decisions"], files["tokens"]) for files in read]
        self.dtypes = [cache.manifest["dtype"] for cache in caches]
        self.dialogues, self.gamma, self.scale = dialogues, gamma, reward_scale
        self.bootstraps, self.acted = bootstraps, acted
        self.first = np.cumsum([0] + [len(part.decisions["token"]) for part in self.parts])
        self.rows = np.cumsum([0] + [len(part.hidden) for part in self.parts])
        self.before = np.cumsum([0] + [cache.manifest["splits"][split]["dialogues"] for cache in caches])
        ret, whole, first, number = [], [], [], []
        for cache, part, before in zip(caches, self.parts, self.before, strict=False):
            check_rows(part, f"{cache.folder}/{split}", cache.remedy)
            dialogue = part.decisions["dialogue"].all()
            ret.append(returns_to_go(part.decisions["reward"].all() * reward_scale, dialogue, gamma))
            first.append(np.diff(dialogue, prepend=-1) != 0)
            whole.append(terminated(part.decisions["follows"].all(), dialogue))
            number.append(dialogue + before if chosen is not None else dialogue[:0])
        self.ret, self.whole, self.begins = (np.concatenate(parts) for parts in (ret, whole, first))
        self.behaviour: np.ndarray = dialogues.logp  # type: ignore[attr-defined]
        self.chosen: np.ndarray | None = None
        if chosen is not None:
            taken = np.zeros(len(dialogues), bool)
            taken[chosen] = True
            self.chosen = np.flatnonzero(taken[np.concatenate(number)])

    def __len__(self) -> int:
        return len(self.ret) if self.chosen is None else len(self.chosen)

    @property
    def lengths(self) -> np.ndarray:
        """One each, for the order; takes no memory."""
        return np.broadcast_to(np.int64(1), len(self))

    def weights(self, each: Sequence[float]) -> np.ndarray:
        """The weight of each decision, of one number a cache."""
        all_of_them = np.repeat(each, np.diff(self.first))
        return all_of_them if self.chosen is None else all_of_them[self.chosen]

    def __getitems__(self, index: Sequence[int]) -> Batch:
        """The batch of these decisions."""
        number = np.asarray(index, np.int64)
        return self._batch(number if self.chosen is None else self.chosen[number])

    def _columns(self, number: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of decisions, whose row numbers count over all caches, and of their action tokens (M)."""
        which = np.searchsorted(self.first, number, side="right") - 1
        parts = []
        for k in np.unique(which).tolist():
            mine = np.flatnonzero(which == k) if len(self.parts) > 1 else np.arange(len(number))
            parts.append((mine, self._of(k, number[mine] - self.first[k])))
        if len(parts) == 1:
            return parts[0][1]
        order = np.concatenate([mine for mine, _ in parts])
        place = np.argsort(order, kind="stable")
        out = {}
        for name in parts[0][1]:
            values = np.concatenate([columns[name] for _, columns in parts])
            if name not in ("id", "read"):
                out[name] = values[place]
        size = np.concatenate([columns["size"] for _, columns in parts])
        spread = _ranges((np.cumsum(size) - size)[place], out["size"])
        return out | {n: np.concatenate([columns[n] for _, columns in parts])[spread] for n in ("id", "read")}

    def _of(self, k: int, row: np.ndarray) -> dict[str, np.ndarray]:
        part = self.parts[k]
        out = {name: part.decisions[name].take(row) for name in ("dialogue", "size", "last", "next", "follows")}
        place = _ranges(part.decisions["token"].take(row), out["size"])
        out["reward"] = part.decisions["reward"].take(row).astype(np.float64) * self.scale
        out["ret"] = self.ret[row + self.first[k]]
        out["whole"] = self.whole[row + self.first[k]]
        out["begins"] = self.begins[row + self.first[k]]
        out["behaviour"] = self.behaviour[row + self.first[k]].astype(np.float64)
        out["dialogue"] = out["dialogue"] + self.before[k]
        for name in ("last", "next"):
            out[name] = out[name] + self.rows[k]
        out["id"] = part.tokens["token"].take(place)
        out["read"] = part.tokens["read"].take(place) + self.rows[k]
        return out

    def _hidden(self, rows: np.ndarray) -> torch.Tensor:
        """Stored states by their numbers over all caches, ascending: (U) -> (U, D)."""
        cuts = np.searchsorted(rows, self.rows)
        found = []
        for k, part in enumerate(self.parts):
            if cuts[k] < cuts[k + 1]:
                found.append(tensor(part.hidden.take(rows[cuts[k] : cuts[k + 1]] - self.rows[k]), self.dtypes[k]))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _batch(self, number: np.ndarray) -> Batch:
        """Two positions for each action token, where it is read and itself, and behind them one for each next state."""
        at = self._columns(number)
        decided = (at["follows"] != NOTHING) | (not self.bootstraps)
        if not decided.all():  # decisions first
            order = np.argsort(~decided, kind="stable")
            begin = np.cumsum(at["size"]) - at["size"]
            spread = _ranges(begin[order], at["size"][order])
            at = {name: x[spread if name in ("id", "read") else order] for name, x in at.items()}
        n, m = int(decided.sum()), len(at["id"])
        size = at["size"].astype(np.int64)
        end = np.cumsum(size)
        follows = at["follows"][:n] == STATE
        parts = [at["read"], at["last"] if self.acted else at["last"][:0], at["next"][:n][follows]]
        stored, back = np.unique(np.concatenate(parts), return_inverse=True)
        read_at, last, after = np.split(back, np.cumsum([len(p) for p in parts])[:-1])
        tokens = np.zeros(2 * m + n, np.int64)
        tokens[1 : 2 * m : 2] = at["id"]
        where = np.full(2 * m + n, len(stored))  # out of range where nobody reads
        where[0 : 2 * m : 2] = read_at
        if self.acted:
            where[2 * end - 1] = last
        where[2 * m :][follows] = after
        nothing = torch.zeros(0, dtype=torch.long)
        columns = {
            "tokens": tokens,
            "position": np.zeros_like(tokens),
            "target": 2 * np.arange(m) + 1,
            "owner": np.repeat(np.arange(n), size[:n]),
            "state": 2 * (end - size)[:n],
            "last": 2 * end[:n] - 1,
            "next": 2 * m + np.arange(n),
            "reward": at["reward"][:n],
            "discount": np.where(follows, self.gamma, 0.0),
            "ret": at["ret"][:n],
            "floor": np.where(at["whole"][:n], at["ret"][:n], -np.inf),
            "first": at["begins"][:n],
            "behaviour": at["behaviour"][:n],
            "where": where,
        }
        return Batch(
            **{name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in columns.items()},  # type: ignore[arg-type]
            run=Run(nothing, nothing, apart([])),
            ids=Ids(self.dialogues, at["dialogue"]),  # type: ignore[arg-type]
            hidden=self._hidden(stored),
        )


def _ranges(begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ... for size[0] numbers, then from begin[1], ..."""
    if (size == 1).all():
        return begin
    end = np.cumsum(size, dtype=np.int64)
    return np.arange(int(end[-1]) if len(end) else 0) + np.repeat(begin - (end - size), size)


def check_rows(part: Split, where: str, remedy: str) -> None:
    """Refuse columns that point outside each other: a wrong number would be read as another decision's state."""
    positions, actions = len(part.hidden), len(part.tokens["read"])
    size, token = part.decisions["size"].all().astype(np.int64), part.decisions["token"].all()
    bounds = [(part.tokens["read"].all(), positions)] + [(part.decisions[c].all(), positions) for c in ("last", "next")]
    fits = all(not len(x) or (x.min() >= 0 and x.max() < most) for x, most in bounds)
    if not fits or (size < 1).any() or not np.array_equal(token, np.cumsum(size) - size) or size.sum() != actions:
        raise InputError(f"{where}: the columns do not fit each other; {remedy}")
