"""Disks that fill up in the middle of a save: the checkpoint before it loads, and nothing half-written is left."""

from __future__ import annotations

import re
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from ilql import checkpoint
from ilql.types import InputError


def full_disks(source: Path, folder: Path, levels: int) -> dict[str, Any]:
    """Save a checkpoint's content again while no file may grow beyond a level, for levels from nothing to all but the
    last byte of its largest file."""
    tensors, documents = checkpoint.load(source)
    folder.mkdir()
    before = shutil.copytree(source, folder / "step-1")
    largest = max(path.stat().st_size for path in source.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i in range(levels):
        level = (largest - 1) * i // max(1, levels - 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (level, hard))
        try:
            with pytest.raises(InputError) as caught:
                checkpoint.save(folder / "step-2", tensors, documents)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        said = str(caught.value)
        assert re.search(rf"{re.escape(str(folder / 'step-2'))} .*needs [\d,]+ bytes", said), said
        assert [path.name for path in folder.iterdir()] == ["step-1"], level
        assert checkpoint.latest(folder) == (before, {})
    checkpoint.save(folder / "step-2", tensors, documents)
    return {"levels": levels, "largest_file": largest}
