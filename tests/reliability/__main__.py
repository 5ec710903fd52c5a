"""`python -m tests.reliability`: every promise asked many times, and a line of figures for each. Decision: a table that
`docs/reliability.md` holds between two markers is written by the run that measured it, and a promise that does not hold
ends the command with status 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import pytest
import torch

from ilql import atomic
from ilql.report import table
from ilql.trainer import train
from tests.reliability.crashes import crash_points
from tests.reliability.disk import full_disks
from tests.reliability.elsewhere import elsewhere
from tests.reliability.flips import bit_flips
from tests.reliability.fuzz import fuzz
from tests.reliability.hostile import hostile
from tests.reliability.kills import kill_points
from tests.reliability.memory import long_line
from tests.reliability.mutations import mutations
from tests.reliability.numbers import PLACES, broken_number
from tests.reliability.runs import ALGORITHMS
from tests.reliability.stops import order_stops
from tests.tiny import config, dataset

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Soak = Callable[[Path], dict[str, Any]]


def _saved(folder: Path) -> Path:
    """A checkpoint of a tiny run."""
    run = train(config(dataset(folder / "data"), folder / "run", steps=1))
    return next((run / "checkpoints").iterdir())


def _numbers(folder: Path) -> dict[str, Any]:
    data = dataset(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        for i, place in enumerate(PLACES):
            broken_number(data, folder / f"run-{i}", place, patch)
    return {"places": len(PLACES)}


def soaks(points: int) -> dict[str, Soak]:
    """What is asked, by name. points: random moments of each kind of kill; the others are in proportion."""
    share = points / 50
    out: dict[str, Soak] = {}
    for algo in ALGORITHMS:
        for signum in (signal.SIGKILL, signal.SIGTERM):
            work = partial(kill_points, algo=algo, signum=signum, points=points)
            out[f"{signum.name} at random moments, {algo}"] = work
    work = partial(kill_points, algo="ilql", signum=signal.SIGKILL, points=max(1, int(20 * share)), processes=2)
    out["SIGKILL of two processes at random moments"] = work
    out["a crash at every operation of a save, beside an older one"] = crash_points
    out["a crash at every operation of a save, over an older one"] = partial(crash_points, replace=True)
    out["single bits flipped in a checkpoint"] = lambda folder: bit_flips(_saved(folder), int(1000 * share))
    out["changes of a dataset"] = lambda folder: mutations(dataset(folder / "data"), int(1000 * share))
    out["odd records of every corpus that reads files"] = partial(fuzz, count=int(10_000 * share))
    out["a line of 1 GB"] = long_line
    out["other hash seeds, locales, time zones and numbers of workers"] = elsewhere
    out["hostile files"] = lambda folder: hostile(folder, _saved(folder).parents[1])
    for workers in (0, 2):
        name = f"stops of the data's order, {workers} workers"
        out[name] = partial(order_stops, stops=int(100 * share), workers=workers)
    out["numbers that are not finite"] = _numbers
    levels = max(2, int(20 * share))
    out["disks that fill up during a save"] = lambda folder: full_disks(_saved(folder), folder / "full", levels)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--points", type=int, default=50, help="random moments of each kind of kill (default 50)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only what has this name, or has it in its name")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into a page, between its markers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = soaks(options.points)
    names = [options.only] if options.only in asked else [name for name in asked if options.only in name]
    rows, broken = [], 0
    for name in names:
        begin, spent = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = asked[name](Path(folder))
                verdict = "held"
            except AssertionError as error:
                found, verdict, broken = {}, f"BROKEN: {error}", broken + 1
        said = ", ".join(f"{what.replace('_', ' ')} {value:,}" for what, value in found.items())
        rows.append({"what": name, "found": said, "seconds": round(time.perf_counter() - begin), "": verdict})
        print(f"{name}: {said} ({time.process_time() - spent:.0f} s of this process), {verdict}", flush=True)
    print(f"\n{table(rows)}")
    if options.write and not broken:
        page = options.write.read_text(encoding="utf-8")
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        command = " ".join(["python -m tests.reliability", *sys.argv[1:]])
        atomic.write_text(options.write, f"{before}\n\n`{command}`:\n\n{table(rows)}\n\n{after}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
