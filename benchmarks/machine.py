"""The limits of the machine, measured in the run that they judge, and what it is made of."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import ilql


def flags() -> set[str]:
    """What the processor can do; nothing where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.split(":", 1)[1].split()}


def has_bf16() -> bool:
    """Whether matrix products in bf16 have instructions of their own here."""
    return bool({"avx512_bf16", "amx_bf16"} & flags())


def describe() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16 instructions": "yes" if has_bf16() else "no",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "ilql": ilql.__version__,
    }


def _best(run: Callable[[], object], seconds: float) -> float:
    """The shortest of the runs that fit into `seconds`, after one to warm up."""
    run()
    until, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < until or best == float("inf"):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best


@cache
def gemm_peak(dtype: torch.dtype, quick: bool = False) -> float:
    """FLOP a second of the fastest of a few square matrix products."""
    found = 0.0
    for n in (256,) if quick else (1024, 2048, 3072):
        a, b, out = (torch.randn(n, n).to(dtype) for _ in range(3))
        found = max(found, 2 * n**3 / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), 0.05 if quick else 1.5))  # type: ignore[misc]
    return found


@cache
def bandwidth(quick: bool = False) -> float:
    """Bytes a second of the fastest of two ways to read a long vector or matrix, much larger than any cache."""
    numbers = torch.ones((1 << 20) if quick else (1 << 28))
    wide = numbers.view(-1, 1 << 10)
    x = torch.ones(1 << 10)
    wait = 0.05 if quick else 1.5
    return max(4 * numbers.numel() / _best(run, wait) for run in (numbers.sum, lambda: torch.mv(wide, x)))
