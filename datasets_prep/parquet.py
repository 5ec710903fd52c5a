"""Parquet files as lines of JSON. Decision: a row becomes the line that a JSON Lines file would hold, without what is
null, so that every check, message and default is the one of lines. What has no JSON of its own (dates, bytes) is
refused for its whole column.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_prep import limits
from datasets_prep.limits import DEPTH, LINE
from datasets_prep.pages import unpacked
from ilql.types import InputError

ROWS = 256  # read at a time
HOLD = 2**30  # bytes that they may take


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is no whole Parquet file, perhaps it was cut short ({reason})") from None


def columns(path: Path) -> list[str]:
    """The names of a file's columns. InputError for a damaged file."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """A line for each row, in order, and its size; of a row that is too long, blanks that are. InputError for a damaged
    file, for a column that has no JSON or comes twice, and where far more is made of the file than it is."""
    packed, made = path.stat().st_size, 0
    with _opened(path) as file:
        _once(path, file.schema_arrow.names)
        for field in file.schema_arrow:
            _check(path, field.name, field.type)
        for batch in file.iter_batches(_rows(path, packed)):
            if batch.num_rows == 1 and batch.nbytes > LINE:
                yield b" " * (LINE + 1), LINE + 1
                continue
            for line in _lines(batch):
                made += len(line)
                limits.refuse_bomb(path, packed, made)
                yield line[: LINE + 1], min(len(line), LINE + 1)


def _lines(batch: pa.RecordBatch) -> Iterator[bytes]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows > 1:  # each by itself, since one costs no other
            for k in range(batch.num_rows):
                yield from _lines(batch.slice(k, 1))
        else:
            yield b'{"id": "\xff"}\n'  # what a line of JSON would be that is no UTF-8 either
        return
    for row in rows:
        yield json.dumps(_bare(row), ensure_ascii=False).encode() + b"\n"


def _rows(path: Path, packed: int) -> int:
    """How many rows are read at a time. A value that stands in a column's dictionary once may be that of every row, so
    as many as would fit if each were the whole column chunk. InputError for a file that is a bomb."""
    sizes = unpacked(path)
    limits.refuse_bomb(path, packed, sum(sizes))
    return max(1, min(ROWS, HOLD // max(1, *sizes, 1)))


def _once(path: Path, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path}: the column {limits.said(twice[0])} is there twice; leave one out")


def _check(path: Path, name: str, kind: pa.DataType, depth: int = 0) -> None:
    if depth > DEPTH:
        raise InputError(f"{path}: the column {name.partition('.')[0]} is {limits.TOO_DEEP}")
    if pa.types.is_struct(kind):
        _once(path, [f"{name}.{field.name}" for field in kind])
        for field in kind:
            _check(path, f"{name}.{field.name}", field.type, depth + 1)
    elif any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        _check(path, f"{name}[]", kind.value_type, depth + 1)
    elif pa.types.is_dictionary(kind):
        _check(path, name, kind.value_type, depth + 1)
    elif not any(test(kind) for test in PLAIN):
        raise InputError(
            f"{path}: the column {name} is {kind}; cast it to texts, numbers, booleans, lists or structs of them"
        )


PLAIN = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
)


def _bare(value: Any) -> Any:
    """A value without the fields of structs that are null: a table has them in every row."""
    if isinstance(value, dict):
        return {key: _bare(inner) for key, inner in value.items() if inner is not None}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value
