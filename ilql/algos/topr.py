"""Tapered off-policy REINFORCE (TOPR, Le Roux et al. 2025): whole dialogues that went well are imitated, whoever would
say them, and those that went badly are unlearned as far as the actor would still say them.

    A    = R - c                                                    R: what the dialogue earned, c: the baseline
    rho  = pi(dialogue) / mu(dialogue)                              mu: the policy that wrote the log, its column `logp`
    w    = rho within `positive` where A >= 0, within `negative` where A < 0      by default 1, and rho within [0, 1]
    L_pi = -w A log pi(a | s)                                       for every action of the dialogue; w is a constant

Decision: the paper's equation 7, of which the defaults are its canonical form, equation 8. Other bounds are other
methods of its table 1: `negative: [0, 0]` imitation of the good, `negative: [1, 1]` plain REINFORCE. Returns are not
discounted, and all actions of a dialogue share one. The paper's rewards are 1 and -1; of others, what is good is
decided by c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import of_dialogue, per_action, tapered_ratio
from ilql.scores import actor as scores
from ilql.types import InputError

__all__ = ["Config", "loss", "scores"]

STEPS = ("token", "utterance")
CRITIC = None
BOOTSTRAPS = False
PER_TOKEN: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Config:
    """baseline: what a dialogue's return is compared with, `mean` (of the training dialogues' returns) or a number in
    the log's units. positive, negative: lower and upper bound of the ratio of dialogues above and below it."""

    baseline: Literal["mean"] | float = "mean"
    positive: tuple[float, float] = (1.0, 1.0)
    negative: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.baseline, str):
            limits.finite("topr.baseline", self.baseline)
        for name in ("positive", "negative"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < math.inf:
                raise InputError(f"topr.{name} is [{low}, {high}], but must be two ascending numbers of at least 0")


def behaviour(cfg: Config) -> bool:
    """Whether the loss reads the log-probabilities of the logs' policy."""
    return True


def whole(cfg: Config) -> bool:
    """Whether the loss reads the decisions of a dialogue together."""
    return True


def fields(returns: np.ndarray, cfg: Config) -> dict[str, Any]:
    """returns: of whole dialogues, in the log's units."""
    return {"baseline": float(returns.mean()) if isinstance(cfg.baseline, str) else cfg.baseline}


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    begins = batch.first.nonzero().squeeze(1)[batch.first.long().cumsum(0) - 1]
    advantage = batch.ret[begins] - out.model.config.baseline * out.model.config.reward_scale
    logp = per_action(out.logp, batch.owner, batch.n)
    now, then = (of_dialogue(each, batch.first) for each in (logp, batch.behaviour))
    weight = tapered_ratio(now, then, advantage, cfg.positive, cfg.negative)
    return {"actor": -weight * advantage * logp}
