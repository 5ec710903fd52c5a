"""The column `proposals`: what an actor would say at each state of a dialogue. Decision: the lists of lists of lists
stay as Arrow has them, offsets into one vector of tokens; a dialogue's candidates become arrays when a batch asks for
them, and cost nothing where nobody does.

A dialogue has one entry a state: the states of its n transitions and, where it was cut off behind an observation, the
one that follows them. An entry without candidates says that the actor ended none there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

NAME = "proposals"
TYPE = pa.list_(pa.list_(pa.list_(pa.int32())))


class Proposals(Sequence[list[np.ndarray]]):
    """Of one dialogue: the candidates of each of its states, every one an array of token ids that is a view.

    states (E + 1): offsets into the candidates; ends (C + 1): of these into tokens.
    """

    def __init__(self, states: np.ndarray, ends: np.ndarray, tokens: np.ndarray) -> None:
        self.states, self.ends, self.tokens = states, ends, tokens

    def __len__(self) -> int:
        return len(self.states) - 1

    def __getitem__(self, i: int) -> list[np.ndarray]:  # type: ignore[override]
        if not 0 <= i < len(self):
            raise IndexError(i)
        ends = self.ends[self.states[i] : self.states[i + 1] + 1].tolist()
        return [self.tokens[a:b] for a, b in pairwise(ends)]


class Column:
    """Of a record batch: rows (B + 1) offsets into states, states (S + 1) into candidates, ends (C + 1) into tokens."""

    def __init__(self, array: pa.ListArray) -> None:
        levels = [array, array.values, array.values.values]
        values = levels[2].values
        self.nulls = any(level.null_count for level in (*levels, values))
        self.rows, self.states, self.ends = (level.offsets.to_numpy() for level in levels)
        self.tokens: np.ndarray = values.to_numpy(zero_copy_only=not values.null_count)

    def __len__(self) -> int:
        return len(self.rows) - 1

    def __getitem__(self, i: int) -> Proposals:
        return Proposals(self.states[self.rows[i] : self.rows[i + 1] + 1], self.ends, self.tokens)

    def sound(self, wanted: np.ndarray, vocab_size: int) -> bool:
        """Whether `fault` finds nothing in any row. wanted (B): how many states each has."""
        if self.nulls or not np.array_equal(np.diff(self.rows), wanted):
            return False
        ends = self.ends[self.states[self.rows[0]] : self.states[self.rows[-1]] + 1]
        tokens = self.tokens[ends[0] : ends[-1]]
        return bool((np.diff(ends) > 0).all() and ((tokens >= 0) & (tokens < vocab_size)).all())


def states(n: int, end: int, length: int, terminated: bool) -> int:
    """How many states a dialogue of `length` tokens and n transitions has, the last of which ends at `end`."""
    return n + (0 if terminated or length <= end else 1)


def fault(row: Mapping[str, Any], vocab_size: int) -> str | None:
    """What is wrong with a row's proposals, where the rest of it is well-formed."""
    given = row[NAME]
    if given is None or any(state is None or any(c is None for c in state) for state in given):
        return f"a null in column {NAME!r}"
    wanted = states(len(row["start"]), int(row["end"][-1]), len(row["tokens"]), bool(row["terminated"]))
    if len(given) != wanted:
        return f"column {NAME!r} has {len(given)} entries for {wanted} states"
    for i, candidate in ((i, c) for i, state in enumerate(given) for c in state):
        if not len(candidate):
            return f"column {NAME!r} has an empty candidate at state {i}"
        for token in candidate:
            if token is None:
                return f"a null in column {NAME!r}"
            if not 0 <= token < vocab_size:
                return f"column {NAME!r} has token id {token}, outside the vocabulary of {vocab_size}"
    return None
