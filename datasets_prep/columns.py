"""Rows as columns. Decision: dialogues are encoded, cut and put together as numpy arrays end to end, with actions as
spans; only the record batch that is written says what its transitions are, one an utterance or one a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from datasets_prep.talks import offsets, spread
from ilql.schema import OPTIONAL, SCHEMA

Row = dict[str, Any]
INT = pa.int32()
DTYPES = {INT: np.int32, pa.float32(): np.float32}
# The columns that are lists, and the one that says how long they are.
SIZES = {"tokens": "size", "turn": "turns", "start": "spans", "end": "spans", "reward": "spans", "logp": "transitions"}


@dataclass(slots=True)
class Columns:
    """Dialogues (B). tokens, turn, start, end, spans: as on a `Sheet`.

    reward: of the actions, float64; logp: one a transition, NaN where the log has none, None where it has none at all;
    cut (B, 2): turns that were cut off, and how many of them carried a reward; pair: None where no dialogue is of any;
    prefix: None where no dialogue has any.
    """

    step: str
    id: list[str]
    meta: list[str]
    terminated: np.ndarray
    tokens: np.ndarray
    size: np.ndarray
    turn: np.ndarray
    turns: np.ndarray
    start: np.ndarray
    end: np.ndarray
    spans: np.ndarray
    reward: np.ndarray
    logp: np.ndarray | None
    cut: np.ndarray
    pair: list[str | None] | None = None
    prefix: list[np.ndarray | None] | None = None

    def __len__(self) -> int:
        return len(self.id)

    @property
    def transitions(self) -> np.ndarray:
        """How many each dialogue has, (B)."""
        if self.step == "utterance":
            return self.spans
        before, at = offsets(self.end - self.start), offsets(self.spans)
        return before[at[1:]] - before[at[:-1]]

    def width(self, row: int) -> int:
        """How many numbers a dialogue's prefix has."""
        own = None if self.prefix is None else self.prefix[row]
        return 0 if own is None else len(own)

    def take(self, rows: Sequence[int]) -> Columns:
        """Some of the dialogues, in this order."""
        if list(rows) == list(range(len(self))):
            return self
        index = np.asarray(rows, np.int64)
        sizes = {name: getattr(self, name) for name in SIZES.values()}
        where = {name: spread(offsets(n)[index], n[index]) for name, n in sizes.items()}
        found: dict[str, Any] = {"step": self.step, "logp": None}
        for name in NAMES:
            column = getattr(self, name)
            if isinstance(column, list):
                found[name] = [column[i] for i in rows]
            elif column is not None:
                found[name] = column[where[SIZES[name]] if name in SIZES else index]
        return Columns(**found)

    @classmethod
    def together(cls, parts: Sequence[Columns]) -> Columns:
        """The dialogues of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        found: dict[str, Any] = {"step": parts[0].step, "logp": None}
        for name in NAMES:
            columns = [getattr(part, name) for part in parts]
            if name in ("logp", "pair", "prefix"):
                continue
            if isinstance(columns[0], list):
                found[name] = [x for column in columns for x in column]
            else:
                found[name] = np.concatenate(columns)
        if any(part.logp is not None for part in parts):
            found["logp"] = np.concatenate([part.logps() for part in parts])
        if any(part.pair is not None for part in parts):
            found["pair"] = [x for part in parts for x in part.pair or [None] * len(part)]
        if any(part.prefix is not None for part in parts):
            found["prefix"] = [x for part in parts for x in part.prefix or [None] * len(part)]
        return cls(**found)

    def logps(self) -> np.ndarray:
        """logp, with NaN for what the log does not have."""
        return np.full(self.transitions.sum(), np.nan) if self.logp is None else self.logp

    def flat(self) -> dict[str, np.ndarray]:
        """start, end, reward of transitions: an utterance's reward is received on completing it, so at token steps it
        sits on the last token and nowhere else."""
        if self.step == "utterance":
            return {"start": self.start, "end": self.end, "reward": self.reward}
        length = self.end - self.start
        start = spread(self.start, length)
        reward = np.zeros(len(start))
        reward[np.cumsum(length) - 1] = self.reward
        return {"start": start, "end": start + 1, "reward": reward}

    def batch(self) -> pa.RecordBatch:
        """As an Arrow batch of `ilql.schema.SCHEMA`, with the columns `pair` and `prefix` where there are such."""
        columns = {"id": _strings(self.id), "meta": _strings(self.meta), "terminated": _bits(self.terminated)}
        columns |= {"tokens": _lists(self.tokens, self.size), "turn": _lists(self.turn, self.turns)}
        for name, values in (self.flat() | {"logp": self.logps()}).items():
            columns[name] = _lists(values, self.transitions, SCHEMA.field(name).type.value_type)
        schema = SCHEMA
        if self.pair is not None:
            columns["pair"] = pa.array(self.pair, OPTIONAL["pair"])
            schema = schema.append(pa.field("pair", OPTIONAL["pair"]))
        if any(one is not None for one in self.prefix or ()):
            columns["prefix"] = pa.array(self.prefix, OPTIONAL["prefix"])
            schema = schema.append(pa.field("prefix", OPTIONAL["prefix"]))
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

    def row(self, i: int) -> Row:
        """One row, as Python values; None for a log-probability that the log does not have."""
        one = self.take([i])
        found = one.flat()
        logp = [None if x != x else x for x in one.logps().tolist()]
        row = {"id": one.id[0], "tokens": one.tokens.tolist(), "turn": one.turn.tolist(), "logp": logp}
        row |= {name: column.tolist() for name, column in found.items()}
        row |= {} if one.pair is None else {"pair": one.pair[0]}
        row |= {} if one.prefix is None else {"prefix": one.prefix[0]}
        return row | {"terminated": bool(one.terminated[0]), "meta": one.meta[0]}


NAMES = tuple(f.name for f in fields(Columns) if f.name != "step")


# Arrow arrays are made of their buffers: `pa.array` first imports pandas, to see whether it was given a part of it.
def _array(kind: pa.DataType, size: int, buffers: list[Any], **children: Any) -> pa.Array:
    found = [None if buffer is None else pa.py_buffer(buffer) for buffer in buffers]
    return pa.Array.from_buffers(kind, size, found, **children)


def _lists(values: np.ndarray, size: np.ndarray, kind: pa.DataType = INT) -> pa.ListArray:
    """Lists that lie end to end; NaN becomes null."""
    bitmap = None
    if values.dtype.kind == "f" and not (known := ~np.isnan(values)).all():
        bitmap, values = np.packbits(known, bitorder="little"), np.where(known, values, 0)
    items = _array(kind, len(values), [bitmap, values.astype(DTYPES[kind], copy=False)])
    return _array(pa.list_(kind), len(size), [None, offsets(size).astype(np.int32)], children=[items])


def _bits(values: np.ndarray) -> pa.BooleanArray:
    return _array(pa.bool_(), len(values), [None, np.packbits(values, bitorder="little")])


def _strings(texts: list[str]) -> pa.StringArray:
    encoded = [text.encode() for text in texts]
    size = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return _array(pa.string(), len(texts), [None, offsets(size).astype(np.int32), b"".join(encoded)])
