"""Decision transformer (Chen et al. 2021) in dialogue: behaviour cloning of an agent that is told, at the beginning of
each of its turns, the return that it goes on to get. Decoding tells it the return that is wanted.

    L = -log pi(a | s, G),  G = sum of the rewards from this turn on, undiscounted, as text of few digits

Decision: the return is a text in front of the turn (`ilql.control`), so any tokenizer that can write digits, any trunk
and any pretrained model serve. It is derived from the rewards at training; datasets hold facts only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ilql import control
from ilql.algos import limits
from ilql.algos.bc import BOOTSTRAPS, CRITIC, PER_TOKEN, STEPS, loss, scores
from ilql.data import Row
from ilql.types import InputError

__all__ = ["BOOTSTRAPS", "CRITIC", "PER_TOKEN", "STEPS", "Config", "loss", "scores"]


@dataclass(frozen=True)
class Config:
    """digits: significant digits of a return that is told. closing: as in `bc`."""

    digits: int = 2
    closing: float = 1.0

    def __post_init__(self) -> None:
        limits.positive("dt.closing", self.closing)
        if not 1 <= self.digits <= 6:
            raise InputError(f"dt.digits is {self.digits}, but must be between 1 and 6")


def fields(returns: np.ndarray, cfg: Config) -> dict[str, Any]:
    """returns: of whole dialogues, in the log's units."""
    return {"control": {"digits": cfg.digits, "low": float(returns.min()), "high": float(returns.max())}}


def prepare(row: Row, note: control.Note, cfg: Config) -> dict[str, Any]:
    return control.prepare(row, note, cfg.digits)
