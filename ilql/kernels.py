"""A fused softmax for CUDA. Decision: the operator over the vocabulary is plain torch and runs on any device; this
kernel saves it passes over a chunk of the table (one to read, one to write, where torch needs six). It is used where
Triton is installed and the environment sets ILQL_TRITON=1, and not by itself, because it has not run on a GPU yet.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

BLOCK = 4096  # words that a program reads at a time


def wanted(device: torch.device) -> bool:
    """Whether the kernel is to be used on a device."""
    return os.environ.get("ILQL_TRITON") == "1" and device.type == "cuda"


def softmax_(logits: Tensor, lse: Tensor, share: Tensor, known: bool) -> None:
    """logits (n, V) <- share * softmax in place; fills in the rows' log-sum-exp (n), or reads it where `known`.

    share (n): a weight a row. Raises ModuleNotFoundError where Triton is not installed.
    """
    if len(logits):
        words, stride = logits.shape[1], logits.stride(0)
        _kernel()[(len(logits),)](logits, lse, share, words, stride, known, BLOCK)


def _kernel() -> Any:
    global _compiled
    if _compiled is None:
        _compiled = _define()
    return _compiled


_compiled: Any = None


def _define() -> Any:
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(logits, lse, share, words, stride, known: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, block)
        base = logits + row * stride
        if known:
            total = tl.load(lse + row)
        else:
            top = -float("inf")
            mass = 0.0
            for begin in range(0, words, block):
                inside = begin + column < words
                x = tl.load(base + begin + column, mask=inside, other=-float("inf")).to(tl.float32)
                higher = tl.maximum(top, tl.max(x, 0))
                mass = mass * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
                top = higher
            total = top + tl.log(mass)
            tl.store(lse + row, total)
        weight = tl.load(share + row)
        for begin in range(0, words, block):
            inside = begin + column < words
            x = tl.load(base + begin + column, mask=inside, other=-float("inf")).to(tl.float32)
            tl.store(base + begin + column, weight * tl.exp(x - total), mask=inside)

    return kernel
