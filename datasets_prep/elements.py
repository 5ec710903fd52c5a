"""The records of a file that is one JSON list. Decision: the file is read as far as the next record needs, so that
memory grows with the largest record, not with the file; a record has the same limits as a line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from datasets_prep import limits
from datasets_prep.files import PIECE, opened
from datasets_prep.rejects import Reject
from ilql.types import InputError

NEAR = 16  # characters before the end of what was read, where a token may have been cut

_decode = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
_white = re.compile(r"[ \t\r\n]*").match


@dataclass(frozen=True, slots=True)
class Element:
    """One record of a JSON list. line: where it begins in the file, from 1; index: its place in the list, from 0."""

    line: int
    index: int
    data: bytes

    def at(self, file: str, fault: Reject, id: str | None = None) -> Reject:
        """A fault inside the record, placed in the file."""
        field = f"[{self.index}].{fault.field}".rstrip(".")
        return Reject(file, self.line, field, fault.reason, fault.id or id)


def elements(path: Path, what: str) -> Iterator[Element]:
    """The records of a file that is one JSON list; what: the records' name in the plural, for messages.

    InputError where it is no list or breaks off, and at a record that is too long or so deep that its end is not found:
    behind a fault of its commas and brackets nobody knows where a record begins. A NaN or a text that is not UTF-8
    costs its record only.
    """
    with opened(path) as file:
        text = _Text(path, file)
        first = text.next()
        if not first:
            raise InputError(f"{path} is empty: it holds no dialogue")
        if first != "[":
            raise InputError(f"{path} is no JSON list of {what}; give the file as it was published")
        text.step(1)
        index, after = 0, ""
        while text.next() != "]" or after == ",":
            length = text.record(index)
            yield Element(text.line, index, text.take(length).encode("utf-8", "surrogateescape"))
            index, after = index + 1, text.next()
            if after == ",":
                text.step(1)
            elif after != "]":
                raise text.broken(text.fault("expected a comma or the end of the list"), index)
        text.step(1)
        if text.next():
            raise InputError(f"{path} goes on behind the end of its list of {what}")
    if not index:
        raise InputError(f"{path} is empty: it holds no dialogue")


class _Text:
    """What has been read and not yet used up: `text` from `at` on. line: of `at`, from 1."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.line, self.read = "", 0, 1, 0
        self.behind = 0  # characters of the line of `text[0]` that were read before it
        self.done = False

    def more(self) -> None:
        """Read on, as much again as there is."""
        used = self.text[: self.at]
        newline = used.rfind("\n")
        self.behind = len(used) - newline - 1 if newline >= 0 else self.behind + len(used)
        rest = self.text[self.at :]
        data = self.file.read(max(PIECE, len(rest)))
        if not self.read:
            data = data.removeprefix(codecs.BOM_UTF8)
        self.read += len(data)
        self.done = not data
        self.text, self.at = rest + self.decoder.decode(data, self.done), 0

    def next(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            white = _white(self.text, self.at)
            self.step(white.end() - self.at if white else 0)
            if self.at < len(self.text) or self.done:
                return self.text[self.at : self.at + 1]
            self.more()

    def step(self, length: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + length)
        self.at += length

    def take(self, length: int) -> str:
        """The record that begins here; what follows it is next. Its line is still `line` of the one who asks first."""
        found = self.text[self.at : self.at + length]
        self.step(length)
        return found

    def record(self, index: int) -> int:
        """The length of the record that begins here. Raises InputError where it cannot be found."""
        while True:
            error: Exception | None = None
            try:
                end = _decode(self.text, self.at)[1]
                if end < len(self.text) or self.done:  # a number may go on in what was not read yet
                    return end - self.at
            except (json.JSONDecodeError, RecursionError) as found:
                error = found
            if self.done or isinstance(error, RecursionError):
                raise self.broken(error, index)
            if len(self.text) - self.at > limits.LINE:
                cut = error is None or self._near_end(error)
                raise (
                    InputError(f"{self.path}: record {index} is {limits.TOO_LONG}")
                    if cut
                    else self.broken(error, index)
                )
            self.more()

    def _near_end(self, error: Exception) -> bool:
        near = isinstance(error, json.JSONDecodeError) and error.pos >= len(self.text) - NEAR
        return near or str(error).startswith("Unterminated string")

    def fault(self, what: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(what, self.text, self.at)

    def broken(self, error: Exception | None, index: int) -> InputError:
        """What to say of a record that does not end."""
        if not isinstance(error, json.JSONDecodeError):
            return InputError(f"{self.path}: record {index} is {limits.TOO_DEEP}")
        if error.pos >= len(self.text.rstrip()) or error.msg.startswith("Unterminated string"):
            return InputError(f"{self.path} is cut short: it ends inside of record {index}; fetch it again")
        line = self.line + self.text.count("\n", self.at, error.pos)
        column = error.colno + (self.behind if error.lineno == 1 else 0)
        return InputError(f"{self.path}, line {line}, column {column}: not JSON ({error.msg})")
