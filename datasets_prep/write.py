"""Arrow files of one split. Decision: uncompressed IPC streams, closed at a size limit, written batch by batch, so
memory does not grow with the corpus and every reader can map the files. A file that is done is digested and flushed to
the disk while others are written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from datasets_prep.beside import beside
from ilql.atomic import fsync
from ilql.schema import sha256

FILE_BYTES = 256 * 2**20


class SplitWriter:
    """Writes `folder/split/data-00000.arrow` and so on; the folder appears with the first batch."""

    def __init__(self, folder: Path, split: str, file_bytes: int = FILE_BYTES) -> None:
        self._folder, self._split, self._limit = folder, split, file_bytes
        self._stream: pa.ipc.RecordBatchStreamWriter | None = None
        self._bytes = 0
        self._digests: dict[str, Callable[[], str]] = {}
        self._flushed: list[Callable[[], None]] = []
        self.files: dict[str, int] = {}  # name inside the dataset -> rows

    def write(self, rows: pa.RecordBatch) -> None:
        if self._stream is None:
            name = f"{self._split}/data-{len(self.files):05d}.arrow"
            path = self._folder / name
            path.parent.mkdir(exist_ok=True)
            self._stream, self._bytes = pa.ipc.new_stream(str(path), rows.schema), 0
            self.files[name] = 0
        self._stream.write_batch(rows)
        self._bytes += rows.nbytes
        self.files[next(reversed(self.files))] += rows.num_rows
        if self._bytes >= self._limit:
            self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            name = next(reversed(self.files))
            path = self._folder / name
            self._digests[name] = beside(lambda: sha256(path))
            self._flushed.append(beside(lambda: fsync(path)))

    def digests(self) -> dict[str, str]:
        """sha256 of the files, all of which are on the disk by then."""
        for wait in self._flushed:
            wait()
        return {name: wait() for name, wait in self._digests.items()}

    @property
    def rows(self) -> int:
        return sum(self.files.values())
