"""Arrow files of strangers. Decision: nothing is looked at before it is known to be what the manifest says, no buffer
is used before Arrow has gone over all of it, and compressed files are refused by a glance at their headers, since what
they would unpack to is whatever they say; all of that once a process for each file, as long as the file stays the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ilql.types import InputError

NAME = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*")  # cannot lead out of a folder: no part begins with a dot or a slash
REBUILD = "build the dataset again"
Key = tuple[str, int, int, int]

_digests: dict[Key, str] = {}  # of files that were read to their end
_whole: set[Key] = set()  # files that Arrow has gone over


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str, remedy: str = REBUILD) -> Path:
    """A file that a manifest names. Raises InputError for a name or a link that leads out of the folder."""
    if not NAME.fullmatch(name):
        raise InputError(f"{folder / 'manifest.json'}: {name!r} is no name of a file inside of the folder; {remedy}")
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise InputError(f"{path} is a link, which may lead anywhere; copy what it points at to its place")
    return path


def _key(path: Path) -> Key:
    about = os.stat(path)
    return str(path.absolute()), about.st_size, about.st_mtime_ns, about.st_ino


def check_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], names: Iterable[str], remedy: str = REBUILD
) -> None:
    """Compare files of a dataset or a cache with their digests in its manifest. Raises InputError naming the file."""
    for name in names:
        path = inside(folder, name, remedy)
        if not path.is_file():
            raise InputError(f"{path} is named in the manifest but missing; {remedy}")
        key = _key(path)
        if key not in _digests:
            _digests[key] = sha256(path)
        if _digests[key] != files[name]["sha256"]:
            raise InputError(f"{path} differs from its digest in the manifest; {remedy}")


def batches(path: Path, check: Callable[[pa.Schema, str], None], remedy: str = REBUILD) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow stream, whose columns `check` refuses by InputError; views into the mapped file,
    which stays mapped as long as they are held. Raises InputError for whatever is no well-formed, uncompressed stream.
    """
    try:
        key = _key(path)
        if key not in _whole:
            _refuse_compressed(path, remedy)
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            check(reader.schema, str(path))
            for batch in reader:
                if key not in _whole:
                    batch.validate(full=True)
                yield batch
        _whole.add(key)
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read ({reason}); {remedy}") from None


def _refuse_compressed(path: Path, remedy: str) -> None:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.MessageReader.open_stream(source)
        for message in reader:
            if message.type == "record batch" and is_compressed(message.metadata.to_pybytes()):
                raise InputError(f"{path} is compressed, which a dataset never is; {remedy}")


def is_compressed(metadata: bytes) -> bool:
    """Whether the header of a record batch says so: field 3 of the RecordBatch that is field 2 of a Message, both
    tables of a flatbuffer (`Message.fbs` of Arrow)."""
    (root,) = struct.unpack_from("<I", metadata)
    header = _field(metadata, root, 2)
    if not header:
        return False
    return _field(metadata, header + struct.unpack_from("<I", metadata, header)[0], 3) != 0


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table stands; 0 where the table has it not."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + slot)
    return table + offset if offset else 0
