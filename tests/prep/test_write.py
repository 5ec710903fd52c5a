"""The Arrow files of a split: closed at a size, digested and flushed each, read back in order."""

from pathlib import Path

import pyarrow as pa
import pytest

from datasets_prep import write
from datasets_prep.write import SplitWriter
from ilql.schema import sha256

BATCHES = [pa.record_batch({"x": [k, k + 1]}) for k in range(0, 8, 2)]


@pytest.mark.parametrize(("file_bytes", "files"), [(1, 4), (2 * BATCHES[0].nbytes, 2), (write.FILE_BYTES, 1)])
def test_files_are_closed_at_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int, files: int
) -> None:
    flushed = []
    monkeypatch.setattr(write, "fsync", lambda path: flushed.append(path.name))
    writer = SplitWriter(tmp_path, "train", file_bytes)
    for batch in BATCHES:
        writer.write(batch)
    writer.close()
    digests = writer.digests()
    assert [*writer.files.values()] == [8 // files] * files
    assert writer.rows == 8
    assert sorted(flushed) == [Path(name).name for name in writer.files]
    assert digests == {name: sha256(tmp_path / name) for name in writer.files}
    tables = [pa.ipc.open_stream((tmp_path / name).read_bytes()).read_all() for name in sorted(writer.files)]
    assert pa.concat_tables(tables)["x"].to_pylist() == [*range(8)]


def test_a_disk_that_fills_up_at_last_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(write, "fsync", full)
    writer = SplitWriter(tmp_path, "train")
    writer.write(BATCHES[0])
    writer.close()
    with pytest.raises(OSError, match="No space"):
        writer.digests()
