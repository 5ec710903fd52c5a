"""Filtered behaviour cloning: clone the best dialogues only, by a share of the returns or a threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ilql.algos import limits
from ilql.algos.bc import BOOTSTRAPS, CRITIC, PER_TOKEN, STEPS, loss, scores
from ilql.types import InputError

__all__ = ["BOOTSTRAPS", "CRITIC", "PER_TOKEN", "STEPS", "Config", "loss", "scores", "select"]


@dataclass(frozen=True)
class Config:
    """top: the share of dialogues to keep, by undiscounted return. min_return: instead, keep those with at least this
    return, in the log's units. closing: as in `bc`."""

    top: float = 0.1
    min_return: float | None = None
    closing: float = 1.0

    def __post_init__(self) -> None:
        limits.positive("filtered_bc.closing", self.closing)


def select(returns: np.ndarray, cfg: Config) -> np.ndarray:
    """Which dialogues to clone, a mask (rows). Equal returns are kept in the order of the file, up to the share."""
    if cfg.min_return is not None:
        mask = returns >= cfg.min_return
        if not mask.any():
            raise InputError(f"filtered_bc.min_return is {cfg.min_return}, but the largest return is {returns.max()}")
        return mask
    if not 0 < cfg.top <= 1:
        raise InputError(f"filtered_bc.top is {cfg.top}, but must be a share in (0, 1]")
    best = np.argsort(-returns, kind="stable")[: max(1, round(cfg.top * len(returns)))]
    mask = np.zeros(len(returns), bool)
    mask[best] = True
    return mask
