"""Files of lines in parts. Decision: a part is a range of bytes that begins and ends with a line, so that any process
can read its part alone; where parts begin depends on the file alone. A compressed file cannot be read from its middle,
so its parts carry their lines, and so do those of a Parquet file, whose rows are read as lines.

A line beyond the limit is a part of its own and is never held: its part has its beginning alone, one byte more than the
limit, which is what its parser refuses it by.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datasets_prep import files, limits, parquet
from ilql.types import InputError

PART_LINES, PART_BYTES = 256, 2**20  # a part has at most so many lines, and ends with the line that fills it
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Part:
    """path; stem: what dialogues without an id are named after; begin, end: its bytes; first: the number of its first
    line in the file, from 1 on; blank: whether no line holds anything; data: the bytes, where the file cannot give
    them."""

    path: Path
    stem: str
    begin: int
    end: int
    first: int
    blank: bool
    data: bytes | None = None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers."""
        data = self._read() if self.data is None else self.data
        for number, line in enumerate(io.BytesIO(data), self.first):
            text = line.removeprefix(BOM) if number == 1 else line
            if text.strip() or len(text) > limits.LINE:
                yield number, text

    def _read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.begin)
            return file.read(self.end - self.begin)


class Line(NamedTuple):
    """text: the line with its end, or the beginning of one that is too long, without; size: bytes of all of it."""

    text: bytes
    size: int


def bounded(file: BinaryIO, most: int = limits.LINE) -> Iterator[Line]:
    """The lines of a file, of which no more than `most` + 1 bytes are ever held."""
    while text := file.readline(most + 1):
        size, piece = len(text), text
        if size > most and not text.endswith(b"\n"):
            while piece and not piece.endswith(b"\n"):
                piece = file.readline(files.PIECE)
                size += len(piece)
        yield Line(text, size)


def parts(path: Path, stem: str) -> Iterator[Part]:
    """All of a file, in order. Raises InputError where it cannot be read to its end, or no line holds anything."""
    begin = end = last = 0
    first, blank, empty = 1, True, True
    table = files.beginning(path) == files.PARQUET
    packed = table or files.is_packed(path)
    kept: list[bytes] = []

    def part() -> Part:
        return Part(path, stem, begin, end, first, blank, b"".join(kept) if packed else None)

    with files.opened(path) as file:
        for line, size in parquet.lines(path) if table else bounded(file):
            if len(line) > limits.LINE:
                if end > begin:
                    yield part()
                yield Part(path, stem, end, end + len(line), last + 1, False, line if packed else None)
                end = begin = end + size
                last += 1
                first, blank, empty, kept = last + 1, True, False, []
                continue
            end += size
            last += 1
            if packed:
                kept.append(line)
            blank = blank and not (line.removeprefix(BOM) if last == 1 else line).strip()
            empty = empty and blank
            if last - first + 1 >= PART_LINES or end - begin >= PART_BYTES:
                yield part()
                begin, first, blank, kept = end, last + 1, True, []
    if empty:
        raise InputError(f"{path} is empty: it holds no dialogue")
    if end > begin:
        yield part()
