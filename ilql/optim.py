"""The optimizer. Decision: AdamW whose decay touches matrices only, and a learning rate that is a pure function of the
step, so that a run resumes from one integer and no scheduler has a state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ilql.types import InputError


@dataclass(frozen=True)
class OptimConfig:
    """How the weights move.

    lr: its peak. warmup: steps of linear rise. schedule: a cosine from the peak to final_lr_ratio * lr at the last
    step, or constant. weight_decay: decoupled, of matrices only. clip: largest norm of the gradient, null for none.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr_ratio: float = 0.1
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise InputError(f"optim.lr is {self.lr}, but must be above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optim.betas is {list(self.betas)}, but both must be in [0, 1)")
        if not (0 < self.eps < math.inf and 0 <= self.weight_decay < math.inf):
            raise InputError("optim.eps must be above 0, and optim.weight_decay not negative")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"optim.clip is {self.clip}, but must be above 0 (null for no clipping)")
        if self.warmup < 0 or not 0 <= self.final_lr_ratio <= 1:
            raise InputError("optim.warmup must not be negative, and optim.final_lr_ratio lies between 0 and 1")


def learning_rate(cfg: OptimConfig, step: int, steps: int) -> float:
    """The rate of optimizer step number `step`, counted from 0, of a run of `steps`."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    if cfg.schedule == "constant":
        return cfg.lr
    # The last step, steps - 1, has the final rate. Where warm-up fills the run, there is nothing left to decay.
    progress = min(1.0, (step - cfg.warmup) / max(1, steps - 1 - cfg.warmup))
    ratio = cfg.final_lr_ratio
    return cfg.lr * (ratio + (1 - ratio) * (1 + math.cos(math.pi * progress)) / 2)


def adamw(cfg: OptimConfig, parameters: dict[str, nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient, decay on those with two dimensions or more."""
    trained = [p for p in parameters.values() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise InputError("no weight is left to train: the model is frozen as a whole; free a part of it in model.*")
    # The fused kernel does one pass over memory; it exists for floating-point weights on these devices.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=fused)
