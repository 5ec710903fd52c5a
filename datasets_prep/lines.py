"""Files of lines in parts. Decision: a part is a range of bytes that begins and ends with a line, so that any process
can read its part alone; where parts begin depends on the file alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PART_LINES, PART_BYTES = 256, 2**20  # a part has at most so many lines, and ends with the line that fills it
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Part:
    """path; stem: what dialogues without an id are named after; begin, end: its bytes; first: the number of its first
    line in the file, from 1 on; blank: whether no line holds anything."""

    path: Path
    stem: str
    begin: int
    end: int
    first: int
    blank: bool

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers."""
        with self.path.open("rb") as file:
            file.seek(self.begin)
            content = file.read(self.end - self.begin)
        for number, line in enumerate(io.BytesIO(content), self.first):
            text = line.removeprefix(BOM) if number == 1 else line
            if text.strip():
                yield number, text


def parts(path: Path, stem: str) -> Iterator[Part]:
    """All of a file, in order."""
    begin = end = last = 0
    first, blank = 1, True
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            last += 1
            blank = blank and not (line.removeprefix(BOM) if last == 1 else line).strip()
            if last - first + 1 >= PART_LINES or end - begin >= PART_BYTES:
                yield Part(path, stem, begin, end, first, blank)
                begin, first, blank = end, last + 1, True
    if end > begin:
        yield Part(path, stem, begin, end, first, blank)
