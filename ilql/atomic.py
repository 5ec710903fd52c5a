"""Files and folders that stand under their name whole, or not at all. Decision: everything that this package keeps is
written beside its place under a temporary name, flushed to the disk and renamed, and the folder above is flushed too;
so neither a kill nor a full disk nor a power cut leaves a half one where a reader looks.

A temporary folder is locked by the process that fills it: a second one that wants the same name is refused, and one
that no process holds any more was left by a kill and is removed. Writers of a folder write its manifest last.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ilql.types import InputError

TEMPORARY = ".tmp-"
OLD = f"{TEMPORARY}old-"
FREE = "free some space"
_REFUSED = "(os error "


def fsync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def failed(path: Path, error: BaseException, size: int, mend: str = FREE) -> InputError:
    """What to say where `size` bytes for `path` could not be written."""
    place = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(
        f"{path} cannot be written ({why}): it needs {size:,} bytes and the disk has {free:,} left; {mend}"
    )


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write a small file in one step, over what stood there unless it must be new."""
    if new and path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    beside = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        fsync(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise failed(path, error, len(text.encode())) from error


@contextmanager
def folder(final: Path, size: int, *, replace: bool = False, mend: str = FREE) -> Iterator[Path]:
    """A temporary folder beside `final` for about `size` bytes, which gets that name when the block ends well.

    replace: exchange what stands there; otherwise nothing but an empty folder may. On any failure nothing under the
    final name has changed and the temporary folder is gone. Raises InputError with path and bytes where the disk has no
    room or refuses, and where another process is writing the same.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(final.parent).free
        if free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temporary, lock = _own(final)
    except OSError as error:
        raise failed(final, error, size, mend) from error
    try:
        yield temporary
        _publish(temporary, final, replace)
    except BaseException as error:
        size = max(size, sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file()))
        shutil.rmtree(temporary, ignore_errors=True)
        # Libraries in Rust (safetensors, tokenizers) have errors of their own for what the system refuses.
        if (isinstance(error, OSError) and error.errno) or (isinstance(error, Exception) and _REFUSED in str(error)):
            raise failed(final, error, size, mend) from error
        raise
    finally:
        os.close(lock)


def _own(final: Path) -> tuple[Path, int]:
    """An empty temporary folder and the handle that locks it."""
    temporary = final.with_name(f"{TEMPORARY}{final.name}")
    while True:
        temporary.mkdir(exist_ok=True)
        try:
            handle = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:  # its owner was done just now
            continue
        if not _locked(handle):
            os.close(handle)
            raise InputError(f"another process is writing {final}; wait for it, or choose another name")
        if temporary.exists() and os.path.samestat(os.fstat(handle), temporary.stat()):
            break
        os.close(handle)
    for path in temporary.iterdir():
        _remove(path)
    return temporary, handle


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _publish(temporary: Path, final: Path, replace: bool) -> None:
    """Flush a finished temporary folder and give it its name. What stood there before is removed after the exchange."""
    for path in sorted(temporary.rglob("*")):
        fsync(path)
    fsync(temporary)
    old = final.with_name(f"{OLD}{final.name}")
    if replace and final.exists():
        if old.exists():
            shutil.rmtree(old)
        final.rename(old)
    temporary.rename(final)
    fsync(final.parent)
    if replace and old.exists():
        shutil.rmtree(old)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written, and put back what one had moved away to exchange it. Only the
    owner of the folder's lock may call it."""
    for path in folder.glob(f"{OLD}*"):
        if not path.with_name(path.name.removeprefix(OLD)).exists():
            path.rename(path.with_name(path.name.removeprefix(OLD)))
    for path in folder.glob(f"{TEMPORARY}*"):
        _remove(path)
