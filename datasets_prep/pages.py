"""What a Parquet file unpacks to, by the headers of its pages. Decision: they are read here, since the sizes in the
footer are what the file's maker says, while a page is unpacked to as much as its own header says; and since PyArrow
ends the process where it is asked about a column whose footer is damaged or encrypted.

Both are structs of Thrift's compact protocol: a field is its number (as the difference from the one before), its type
and its value. Numbers of fields are those of `parquet.thrift`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets_prep.limits import DEPTH
from ilql.types import InputError

STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13
INTEGERS = (4, 5, 6)
FIXED = {BYTE: 1, DOUBLE: 8, UUID: 16}
ROW_GROUPS, ENCRYPTION = 4, 8  # of the footer
COLUMNS, ABOUT = 1, 3  # of a row group; of a column in it
VALUES, PACKED, DATA, DICTIONARY = 5, 7, 9, 11  # of what is said about a column: how many, bytes, where pages begin
PAGE_UNPACKED, PAGE_PACKED = 2, 3  # of a page's header


def unpacked(path: Path) -> list[int]:
    """Bytes that each column of each row group takes when it is read. InputError for an encrypted file; ValueError,
    KeyError or TypeError for a damaged one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = len(data) - 8
        footer = _Thrift(data, end - int.from_bytes(data[end : end + 4], "little"), end).struct()
        if ENCRYPTION in footer:
            raise InputError(f"{path} is encrypted; write it without encryption")
        groups = footer[ROW_GROUPS]
        return [sum(_pages(data, column[ABOUT], end)) for group in groups for column in group[COLUMNS]]


def _pages(data: mmap.mmap, about: dict[int, Any], end: int) -> Iterator[int]:
    if about[VALUES] == 0:  # nobody reads its pages, or knows where they would be
        return
    begin = min(about[DATA], about.get(DICTIONARY) or about[DATA])
    behind = begin + about[PACKED]
    if not 0 <= begin <= behind <= end:
        raise ValueError("a column lies outside of the file")
    while begin < behind:
        header = _Thrift(data, begin, end)
        page = header.struct()
        if page[PAGE_UNPACKED] < 0 or page[PAGE_PACKED] < 0:
            raise ValueError("a page of less than nothing")
        yield page[PAGE_UNPACKED]
        begin = header.at + page[PAGE_PACKED]


class _Thrift:
    """Reads values of a file from `at` on. Raises ValueError where they go on behind `end`."""

    def __init__(self, data: mmap.mmap, at: int, end: int) -> None:
        if not 0 <= at <= end:
            raise ValueError("a header lies outside of the file")
        self.data, self.at, self.end = data, at, end

    def bytes(self, count: int) -> int:
        """The place of the next so many bytes."""
        found, self.at = self.at, self.at + count
        if self.at > self.end:
            raise ValueError("a header breaks off")
        return found

    def number(self) -> int:
        found = shift = 0
        while True:
            byte = self.data[self.bytes(1)]
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def signed(self) -> int:
        found = self.number()
        return (found >> 1) ^ -(found & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a struct by their numbers; texts and maps are passed over."""
        if depth > DEPTH:
            raise ValueError("structs inside of each other")
        found: dict[int, Any] = {}
        field = 0
        while head := self.data[self.bytes(1)]:
            field = field + (head >> 4) if head >> 4 else self.signed()
            kind = head & 15
            found[field] = kind == TRUE if kind in (TRUE, FALSE) else self.value(kind, depth + 1)
        return found

    def value(self, kind: int, depth: int) -> Any:
        if kind in INTEGERS:
            return self.signed()
        if kind == STRUCT:
            return self.struct(depth)
        if kind in (LIST, SET):
            head = self.data[self.bytes(1)]
            size, inner = head >> 4, head & 15
            size = self.number() if size == 15 else size
            return [self.value(BYTE if inner in (TRUE, FALSE) else inner, depth) for _ in range(size)]
        if kind == MAP:
            size = self.number()
            kinds = self.data[self.bytes(1)] if size else 0
            for _ in range(size):
                self.value(kinds >> 4, depth)
                self.value(kinds & 15, depth)
            return None
        if kind == BINARY:
            self.bytes(self.number())
        elif kind in FIXED:
            self.bytes(FIXED[kind])
        else:
            raise ValueError(f"no type {kind}")
        return None
