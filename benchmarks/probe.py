"""One measurement of memory, in a process of its own: `python -m benchmarks.probe JSON`, the answer as JSON.

Memory is what the system counts as resident (Linux, /proc/self/status), so that nothing that any library allocates is
missed. {"kind": a trainer, "shape": a Shape's fields}: one training step after weights, gradients and the optimizer's
state are in place. {"dataset": folder}: a run of `ilql.trainer` on it, steps as in {"steps": N}.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import TINY, Shape
from benchmarks.train import FP32, TRLX, Trainers
from ilql.config import make_config
from ilql.trainer import train

STATUS = Path("/proc/self/status")


def status(field: str) -> int:
    """Bytes of a field of the process's status."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def forget() -> None:
    """Give back what was freed, and count the peak from here on."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def step(kind: str, shape: Shape) -> dict[str, int]:
    """base: with the weights, a gradient for each, the optimizer's state, and libraries that have run once.
    peak: the largest while one step ran."""
    tiny = Trainers(TINY, (FP32, TRLX))
    for each in tiny.kinds:
        tiny.step(each)
    trainers = Trainers(shape, (kind,))
    for p in trainers.model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 1e-6)
    trainers.optimizer.step()
    forget()
    base = status("VmRSS")
    trainers.optimizer.zero_grad(set_to_none=True)
    trainers.step(kind)
    return {"base": base, "peak": status("VmHWM")}


def run(dataset: str, steps: int) -> dict[str, int]:
    """peak: the largest while it trained. own: without pages of files, which the system takes back when it wants."""
    largest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.01):
            largest = max(largest, status("RssAnon"))

    watcher = threading.Thread(target=watch)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "steps": steps,
            "device": "cpu",
            "model": {"layers": 4, "width": 128, "heads": 4, "context": 512},
            "batch": {"tokens": 4096},
            "log": {"every": 10},
        }
        cfg = make_config(algo="ilql", data=dataset, output=Path(folder) / "run", **options)
        forget()
        watcher.start()
        try:
            train(cfg)
        finally:
            done.set()
            watcher.join()
    return {"peak": status("VmHWM"), "own": largest}


def main() -> int:
    asked = json.loads(sys.argv[1])
    if "dataset" in asked:
        found = run(asked["dataset"], asked["steps"])
    else:
        found = step(asked["kind"], Shape(**asked["shape"]))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
