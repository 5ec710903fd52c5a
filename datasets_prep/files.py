"""Reading the files of strangers. Decision: what a file is is read from its first bytes and never from its name, so a
compressed log is read as what is inside it; and a fault of the *file* (it is cut short, of another form, of another
corpus) is said once, of the file, not of each of its lines.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

import pyarrow as pa

from datasets_prep import limits
from ilql.types import InputError

GZIP, ZSTD, PARQUET, ENCRYPTED = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"PARE"
ARCHIVES = (b"BZh", b"\xfd7zX", b"PK\x03\x04")  # bzip2, xz, zip
UTF16 = (b"\xff\xfe", b"\xfe\xff")
PIECE = 2**20  # bytes read at a time
HEAD = 2**16  # bytes at the beginning that tell one corpus from another

# What the beginning of a corpus' files looks like. A quote inside a JSON text is escaped, so keys are found, not words.
LOOKS = {
    "chat": rb'\A\s*\{.*"(?:messages|completion|samples)"\s*:',
    "craigslist": rb'\A\s*\[.*"kbs"\s*:',
    "casino": rb'\A\s*\[.*"chat_logs"\s*:',
    "deal_or_no_deal": rb"\A(?:\d+ ){6}(?:YOU|THEM): |\A<input> \d+ ",
    "preferences": rb'\A\s*\{.*"(?:chosen|rejected)"\s*:',
    "reddit": rb'\A\s*\{.*"comments"\s*:',
    "taskmaster": rb'\A\s*\[.*"generation"\s*:',
    "visdial": rb'\A\s*(?:\[.*"image_id"\s*:|\{.*"data"\s*:\s*\{\s*"(?:questions|answers|dialogs)"\s*:)',
}


def stem(name: str) -> str:
    """A file's name without its folder, `.gz` or `.zst`, and its last ending: what ids made of lines begin with."""
    return PurePath(re.sub(r"\.(gz|zst)$", "", PurePath(name).name)).stem


def stems(paths: Sequence[Path]) -> list[str]:
    """The stems of several files; where two are alike (a folder a day, the same names inside), with their places."""
    names = [stem(path.name) for path in paths]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name}.{k}" for k, name in enumerate(names, 1)]


def beginning(path: Path) -> bytes:
    """The first four bytes, compressed or not. InputError for a folder and for a file that may not be read."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give its files")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a pipe or a device, and is read more than once; write it to a file first")
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def is_packed(path: Path) -> bool:
    """Whether a file can only be read from its beginning on."""
    return beginning(path).startswith((GZIP, ZSTD))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where it is gzip or zstd.

    InputError where it cannot be read or is of a form that is not, and inside the block where it is cut short.
    """
    begins = beginning(path)
    if begins == ENCRYPTED:
        raise InputError(f"{path} is an encrypted Parquet file; write it without encryption")
    if begins.startswith(ARCHIVES):
        raise InputError(f"{path} is compressed in a form that is not read; unpack it, or pack it with gzip or zstd")
    if begins.startswith(UTF16):
        raise InputError(f"{path} is UTF-16; convert it to UTF-8")
    try:
        if begins.startswith(GZIP):
            with gzip.open(path) as file:
                yield _watched(path, file)
        elif begins.startswith(ZSTD):
            with pa.OSFile(str(path)) as packed, pa.CompressedInputStream(packed, "zstd") as file:
                yield _watched(path, file)
        else:
            with path.open("rb") as file:
                yield file
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(_damage(path, error)) from None


class _Unpacked(io.RawIOBase):
    """What a decompressor makes, as long as it is in proportion to the file."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.packed, self.made = path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.made += len(data)
        limits.refuse_bomb(self.path, self.packed, self.made)
        return len(data)


def _watched(path: Path, file: Any) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path, file), 2**16))


def _damage(path: Path, error: Exception) -> str:
    if isinstance(error, EOFError) or "Truncated compressed stream" in str(error):
        return f"{path} is cut short: its compressed data end in the middle; fetch or pack it again"
    if "too much memory" in str(error):
        return f"{path} needs a larger memory window than is read; unpack it first: zstd -d --long=31"
    if getattr(error, "errno", None):
        return f"cannot read {path}: {error.strerror}"  # type: ignore[attr-defined]
    return f"{path} is damaged: its compressed data cannot be read ({error}); fetch or pack it again"


def whole(path: Path) -> bytes:
    """All of a file, without a byte order mark. InputError where nothing but white space is in it, or too much."""
    with opened(path) as file:
        pieces, size = [], 0
        while piece := file.read(PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > limits.WHOLE:
                raise InputError(f"{path} is larger than {limits.WHOLE:,} bytes, but has to be read at once; split it")
    data = b"".join(pieces).removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise InputError(f"{path} is empty: it holds no dialogue")
    return data


def refuse_others(path: Path, corpus: str) -> None:
    """InputError where a file is not of this corpus but looks like another's."""
    if beginning(path) == PARQUET:
        alike = ["chat", "preferences"]
    else:
        with opened(path) as file:
            head = file.read(HEAD).removeprefix(b"\xef\xbb\xbf")
        alike = [name for name, look in LOOKS.items() if re.search(look, head, re.DOTALL)]
    if alike and corpus not in alike:
        raise InputError(
            f"{path} does not look like a file of {corpus}, but like one of {alike[0]}: "
            f"python -m datasets_prep {alike[0]}"
        )
