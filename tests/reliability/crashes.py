"""A process that dies at every operation of a save, and in the middle of every file that it writes: a whole checkpoint
is always found."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ilql import atomic, checkpoint
from tests.reliability.runs import fork, wait

TENSORS = {"model": {"a.weight": torch.arange(6000.0)}, "optimizer": {"a.weight/exp_avg": torch.ones(3000)}}
EVENTS = ("open", "os.", "shutil.")  # of the interpreter's audit: whatever touches files by way of Python
DIED = 9


def crash_points(folder: Path, replace: bool = False) -> dict[str, Any]:
    """Save step 4 beside step 3 (or over an older step 4) in processes of which each dies one operation later."""
    old, new = {"trainer": {"age": "old"}, "random": [0]}, {"trainer": {"age": "new"}, "random": [0]}
    died = 0
    while True:
        place = folder / f"{'over' if replace else 'beside'}-{died}"
        checkpoint.save(place / ("step-4" if replace else "step-3"), TENSORS, old)
        status = wait(fork(partial(_save, place / "step-4", new, died), folder / "log.txt"))
        assert status in (0, DIED), (folder / "log.txt").read_text()
        begun = checkpoint.begun(place)
        atomic.sweep(place)
        found, skipped = checkpoint.latest(place)
        assert begun
        assert found is not None
        assert skipped == {}, died
        documents = checkpoint.load(found)[1]
        assert documents in (old, new)
        assert {path.name for path in place.iterdir()} <= {"step-3", "step-4"}
        if status == 0:
            assert documents == new
            return {"operations": died}
        died += 1


def _save(to: Path, documents: dict[str, Any], at: int) -> int:
    """Save, and die before operation number `at`."""
    left = at

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(DIED)

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            count()
            return real(*args, **options)

        return counted

    def torn(real: Callable[..., Any], path_at: int) -> Callable[..., Any]:
        """Dies with half of the file written, too."""

        def writing(*args: Any, **options: Any) -> Any:
            nonlocal left
            out = real(*args, **options)
            left -= 1
            if left < 0:
                os.truncate(args[path_at], Path(args[path_at]).stat().st_size // 2)
                os._exit(DIED)
            return out

        return writing

    os.fsync = counting(os.fsync)  # type: ignore[assignment]
    vars(checkpoint)["save_file"] = torn(counting(vars(checkpoint)["save_file"]), 1)
    Path.write_text = torn(Path.write_text, 0)  # type: ignore[method-assign]
    sys.addaudithook(lambda event, _: count() if event.startswith(EVENTS) else None)
    checkpoint.save(to, TENSORS, documents)
    return 0
