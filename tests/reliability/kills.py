"""Runs killed at random moments, again and again, until they end: what they leave is what an undisturbed run leaves."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

from ilql import checkpoint
from tests.reliability.runs import Bench, digests, wait

SECONDS = 60.0  # in which a run that was asked to stop must have ended, on however busy a machine
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM, 0)  # in the loop; before it; too late, it was done


def kill_points(
    folder: Path, algo: str, signum: signal.Signals, points: int, seed: int = 0, processes: int = 1
) -> dict[str, Any]:
    """So many kills at moments drawn evenly over the time of a run; every run that they fall upon is resumed until it
    ends and compared. Raises AssertionError where anything differs."""
    bench, rng = Bench(folder, algo, processes), random.Random(seed)
    began = time.perf_counter()
    assert wait(bench.start("whole")) == 0, bench.said("whole")
    length = time.perf_counter() - began
    wanted = digests(bench.folder / "whole")
    done, runs, slowest, before_the_loop = 0, 0, 0.0, 0
    while done < points:
        name, newest, status = f"run-{runs}", -1, None
        runs += 1
        while status != 0:
            pid = bench.start(name)
            status = wait(pid, rng.uniform(0, length) if done < points else None)
            if status is not None:
                assert status == 0, bench.said(name)
                continue
            asked = time.perf_counter()
            bench.kill(pid, signum)
            ended = wait(pid, SECONDS)
            slowest = max(slowest, time.perf_counter() - asked)
            assert ended in ((-signum, 0) if signum == signal.SIGKILL else STOPPED), (ended, bench.said(name))
            before_the_loop += ended == -signal.SIGTERM
            status = None if ended else 0
            done += ended != 0  # one that came too late is no kill
            newest = _whole(bench.folder / name, newest)
        assert digests(bench.folder / name) == wanted, f"{bench.folder / name} differs from {bench.folder / 'whole'}"
    found = {"points": done, "runs": runs, "run_seconds": round(length, 2)}
    if signum == signal.SIGTERM:
        found |= {"slowest_exit_seconds": round(slowest, 2), "before_the_loop": before_the_loop}
    return found


def _whole(run: Path, before: int) -> int:
    """The newest checkpoint's step after a kill: every one under its name is whole, and none is lost."""
    found, skipped = checkpoint.latest(run / "checkpoints")
    assert skipped == {}, skipped
    step = -1 if found is None else int(found.name.removeprefix("step-"))
    moved = any((run / "checkpoints").glob(".tmp-old-step-*"))
    assert step >= before or moved, f"{run}: step {before} was there, now the newest is {step}"
    return step
