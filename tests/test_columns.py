"""Columns in Arrow files: what is written is read, across record batches and by any index."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ilql import columns
from ilql.columns import Kinds, Writer, read, row_bytes
from ilql.types import InputError

KINDS: Kinds = {"h": ("uint16", 3), "n": ("int64", 1)}


def written(path: Path, rows: int, pieces: int = 3) -> tuple[np.ndarray, np.ndarray]:
    h = np.arange(3 * rows, dtype=np.uint16).reshape(rows, 3)
    n = np.arange(rows) * 7 - 3
    with Writer(path, KINDS) as writer:
        for part in np.array_split(np.arange(rows), pieces):
            writer.add(h=h[part], n=n[part])
        assert writer.rows == rows
    return h, n


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 41])
def test_rows_are_gathered_across_record_batches(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "HOLD", 4 * row_bytes(KINDS))
    h, n = written(tmp_path / "x.arrow", rows)
    with pa.ipc.open_stream(str(tmp_path / "x.arrow")) as stream:
        sizes = [batch.num_rows for batch in stream]
    assert sizes == [4] * (rows // 4) + [rows % 4] * (rows % 4 > 0)
    found = read(tmp_path / "x.arrow", KINDS)
    index = np.random.default_rng(0).integers(0, rows, 100)
    assert np.array_equal(found["h"].take(index), h[index])
    assert np.array_equal(found["n"].take(index), n[index])
    assert found["h"].take(index[:0]).shape == (0, 3)
    assert len(found["n"]) == rows
    for begin in range(rows + 1):
        for end in range(begin, rows + 1):
            assert np.array_equal(found["h"].range(begin, end), h[begin:end])
    assert np.array_equal(found["n"].all(), n)


def test_reading_copies_nothing(tmp_path: Path) -> None:
    written(tmp_path / "x.arrow", 9)
    before = pa.total_allocated_bytes()
    found = read(tmp_path / "x.arrow", KINDS)
    assert pa.total_allocated_bytes() == before
    assert not found["h"].range(2, 5).flags.owndata
    assert not found["h"].view.flags.writeable


def test_a_row_out_of_range_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "HOLD", 4 * row_bytes(KINDS))
    written(tmp_path / "x.arrow", 6)
    found = read(tmp_path / "x.arrow", KINDS)["n"]
    for index in ([6], [-1], [0, 7]):
        with pytest.raises(IndexError):
            found.take(np.array(index))
    with pytest.raises(IndexError):
        found.range(3, 7)


def test_another_file_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "x.arrow", 6)
    with pytest.raises(InputError, match=r"x\.arrow cannot be read \(its columns are others\)"):
        read(tmp_path / "x.arrow", {"h": ("uint16", 4), "n": ("int64", 1)})
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.arrow", KINDS)
    whole = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(whole[:-90])
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "x.arrow", KINDS)
    schema = pa.schema([pa.field("n", pa.int64(), nullable=False)])
    with pa.OSFile(str(tmp_path / "y.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for size in (2, 3, 2):
            stream.write_batch(pa.record_batch([pa.array(range(size))], schema=schema))
    with pytest.raises(InputError, match="unequal size"):
        read(tmp_path / "y.arrow", {"n": ("int64", 1)})


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    written(tmp_path / "x.arrow", 0)
    found = read(tmp_path / "x.arrow", KINDS)
    assert len(found["h"]) == 0
    assert found["h"].all().shape == (0, 3)
