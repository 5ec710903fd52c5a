"""Whole or not at all: under a kill at any operation, a full disk, and two writers of one name."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ilql import atomic
from ilql.types import InputError


def fill(final: Path, text: str = "new", **options: bool) -> None:
    with atomic.folder(final, 100, **options) as temporary:
        (temporary / "a").mkdir()
        (temporary / "a" / "b.txt").write_text(text)
        (temporary / "manifest.json").write_text(text)


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "data"
    with atomic.folder(final, 100) as temporary:
        (temporary / "x").write_text("1")
        assert not final.exists()
    assert [p.name for p in final.parent.iterdir()] == ["data"]
    assert (final / "x").read_text() == "1"


def test_everything_is_flushed_before_the_name_and_the_folder_above_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = atomic.fsync, Path.rename
    monkeypatch.setattr(atomic, "fsync", lambda path: (done.append(path.name), sync(path))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (done.append("rename"), rename(self, to))[1])
    fill(tmp_path / "data")
    assert sorted(done[:3]) == ["a", "b.txt", "manifest.json"]
    assert done[3:] == [".tmp-data", "rename", tmp_path.name]


def test_what_stands_there_is_left_alone_or_exchanged(tmp_path: Path) -> None:
    fill(tmp_path / "data", "old")
    with pytest.raises(InputError, match=r"data cannot be written \(Directory not empty\)"):
        fill(tmp_path / "data")
    assert (tmp_path / "data" / "a" / "b.txt").read_text() == "old"
    fill(tmp_path / "data", replace=True)
    assert (tmp_path / "data" / "a" / "b.txt").read_text() == "new"
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "empty"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic.folder(tmp_path / "data", 100):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    atomic.write_text(tmp_path / "a.json", "old")
    match = r"a\.json cannot be written .* it needs 9 bytes and the disk has [\d,]+ left"
    with pytest.raises(InputError, match=match), limited(4):
        atomic.write_text(tmp_path / "a.json", "much more")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(FileExistsError):
        atomic.write_text(tmp_path / "a.json", "x", new=True)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: what a full disk says, of one file."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_second_writer_is_refused_and_a_dead_ones_leavings_go(tmp_path: Path) -> None:
    with atomic.folder(tmp_path / "data", 100) as temporary:
        (temporary / "x").write_text("1")
        with pytest.raises(InputError, match="another process is writing"):
            fill(tmp_path / "data")
        assert (temporary / "x").exists()
    left = tmp_path / ".tmp-more"
    left.mkdir()
    (left / "half").write_text("1")
    fill(tmp_path / "more")
    assert sorted(p.name for p in (tmp_path / "more").iterdir()) == ["a", "manifest.json"]
    assert not left.exists()
    handle = os.open(tmp_path / "more", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is gone with the block
    os.close(handle)


def test_free_space_is_asked_for_first(tmp_path: Path) -> None:
    wanted = atomic.folder(tmp_path / "data", 10**18)
    with pytest.raises(
        InputError, match=r"data cannot be written \(No space left on device\): it needs 1(,000){6} bytes"
    ):
        wanted.__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 100_000])
def test_what_a_library_in_rust_was_refused_is_said_too(tmp_path: Path, size: int) -> None:
    """The tokenizers raise a bare Exception; a writer that cannot tell its size says what it had written."""
    match = rf"data cannot be written \(No space left .*\): it needs {max(size, 5000):,} bytes and the disk has"

    def fail(error: Exception) -> None:
        with atomic.folder(tmp_path / "data", size) as temporary:
            (temporary / "x").write_bytes(bytes(5000))
            raise error

    with pytest.raises(InputError, match=match):
        fail(Exception("No space left on device (os error 28)"))
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError("another fault"))
    assert list(tmp_path.iterdir()) == []
