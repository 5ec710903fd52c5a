"""Columns of fixed-width items in an Arrow file, read by index. Decision: every record batch but the last has the same
number of rows, so that their buffers lie at equal distances in the file: one strided view covers all but the last, any
rows are gathered by a call or two of numpy, and memory holds no more than what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from ilql.types import InputError
from ilql.verified import batches

REMEDY = "make the cache again"
HOLD = 1 << 22  # bytes of a record batch
Kinds = Mapping[str, tuple[str, int]]  # column -> numpy's name of the number and how many of them an item has


def _type(kind: tuple[str, int]) -> pa.DataType:
    number = pa.from_numpy_dtype(np.dtype(kind[0]))
    return number if kind[1] == 1 else pa.list_(number, kind[1])


def _shape(kind: tuple[str, int]) -> tuple[int, ...]:
    return () if kind[1] == 1 else (kind[1],)


def row_bytes(kinds: Kinds) -> int:
    """Bytes that a row takes."""
    return sum(np.dtype(number).itemsize * width for number, width in kinds.values())


class Writer:
    """Writes an uncompressed Arrow stream; holds one record batch of about HOLD bytes."""

    def __init__(self, path: Path, kinds: Kinds) -> None:
        self.kinds = kinds
        self.schema = pa.schema([pa.field(name, _type(kind), nullable=False) for name, kind in kinds.items()])
        self.per = max(1, HOLD // row_bytes(kinds))
        self.held = self.rows = 0
        self.buffer = {name: np.empty((self.per, *_shape(kind)), kind[0]) for name, kind in kinds.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.sink = pa.OSFile(str(path), "wb")
        self.stream = pa.ipc.new_stream(self.sink, self.schema)

    def add(self, **columns: np.ndarray) -> None:
        """Append rows; all columns have the same length."""
        size, done = len(next(iter(columns.values()))), 0
        while done < size:
            part = min(size - done, self.per - self.held)
            for name, values in columns.items():
                self.buffer[name][self.held : self.held + part] = values[done : done + part]
            self.held, done = self.held + part, done + part
            if self.held == self.per:
                self._flush()
        self.rows += size

    def _flush(self) -> None:
        arrays = []
        for name, kind in self.kinds.items():
            flat = pa.array(self.buffer[name][: self.held].reshape(-1))
            arrays.append(flat if kind[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, kind[1]))
        self.stream.write_batch(pa.record_batch(arrays, schema=self.schema))
        self.held = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.held and error is None:
            self._flush()
        self.stream.close()
        self.sink.close()


class Column:
    """One column: `take` gathers rows, `len` counts them."""

    def __init__(self, chunks: list[np.ndarray], kind: tuple[str, int]) -> None:
        """Raises ValueError where the record batches are not those of a Writer."""
        self.count = sum(map(len, chunks))
        self.chunks = chunks or [np.zeros((0, *_shape(kind)), kind[0])]
        self.per = len(self.chunks[0])
        whole, self.last = self.chunks[:-1], self.chunks[-1]
        places = [chunk.__array_interface__["data"][0] for chunk in whole]
        steps = {b - a for a, b in pairwise(places)}
        if len(steps) > 1 or any(len(chunk) != self.per for chunk in whole) or len(self.last) > self.per:
            raise ValueError("record batches of unequal size")
        first = self.chunks[0]
        strides = (steps.pop() if steps else 0, *first.strides)
        shape = (len(whole), *first.shape)
        self.view = np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)

    def __len__(self) -> int:
        return self.count

    def take(self, index: np.ndarray) -> np.ndarray:
        """The rows of these numbers, copied: (n) -> (n) or (n, width)."""
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= self.count):
            raise IndexError(f"row {int(index.max())} of {self.count}")
        batch, row = np.divmod(index, max(1, self.per))
        late = batch == len(self.chunks) - 1
        if late.all():
            return self.last[row]  # type: ignore[no-any-return]
        if not late.any():
            return self.view[batch, row]  # type: ignore[no-any-return]
        out = np.empty((len(index), *self.last.shape[1:]), self.last.dtype)
        out[~late] = self.view[batch[~late], row[~late]]
        out[late] = self.last[row[late]]
        return out

    def range(self, begin: int, end: int) -> np.ndarray:
        """The rows from `begin` up to `end`: a view where one record batch holds them."""
        if not 0 <= begin <= end <= self.count:
            raise IndexError(f"rows {begin} to {end} of {self.count}")
        if begin == end:
            return self.chunks[0][:0]
        first, last = begin // self.per, (end - 1) // self.per
        if first == last:
            return self.chunks[first][begin - first * self.per : end - first * self.per]
        parts = self.chunks[first : last + 1]
        cut = [parts[0][begin - first * self.per :], *parts[1:-1], parts[-1][: end - last * self.per]]
        return np.concatenate(cut)

    def all(self) -> np.ndarray:
        return self.range(0, self.count)


def read(path: Path, kinds: Kinds) -> dict[str, Column]:
    """The columns of a file that a Writer wrote, memory-mapped. Raises InputError where it is another file."""
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    wanted = pa.schema([pa.field(name, _type(kind), nullable=False) for name, kind in kinds.items()])

    def check(found: pa.Schema, where: str) -> None:
        if not found.equals(wanted):
            raise InputError(f"{where} cannot be read (its columns are others); {REMEDY}")

    for batch in batches(path, check, REMEDY):
        for (name, kind), column in zip(kinds.items(), batch.columns, strict=True):
            values = column if kind[1] == 1 else column.values
            chunks[name].append(values.to_numpy(zero_copy_only=True).reshape(-1, *_shape(kind)))
    try:
        return {name: Column(chunks[name], kind) for name, kind in kinds.items()}
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); {REMEDY}") from None
