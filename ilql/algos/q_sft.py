"""Q-SFT, Q-learning via supervised fine-tuning (Hong, Dragan and Levine 2024): Q-learning as a cross-entropy, in which
the probability of a token is its value times its likelihood in the logs.

    y   = r + gamma V(s'),  V(s') = low + (high - low) max_a' min_k pbar_k(a' | s') / pi(a' | s'), at most high
    w   = (y - low) / (high - low), within [0, 1]
    L_p = -sum_k [w log p_k(a | s) + (1 - w) rest_k(s, a)]          so that p becomes pi w: the ratio is the value
    L_V = (V(s) - y)^2
    L   = L_p + L_V - log pi(a | s)

rest: `uniform`, the paper's loss, spreads the remaining probability over all other tokens (the mean of their log p);
`dummy`, with which the paper derives it, gives it to an action that nobody can take.

Decision: what a critic says is p as a value, low + (high - low) p, which is at most the value of the token; decoding by
log pi + beta (Q - V) is then the paper's pi exp(beta p), with beta per unit of scaled reward. No backup reads V: it is
the mean of y over the logs, for scores and metrics. p and pi share the trunk; the paper trains two language models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import nll, td, td_target, weighted_ce
from ilql.scores import advantage as scores
from ilql.types import InputError

__all__ = ["Config", "loss", "scores"]

STEPS = ("token",)
CRITIC = "likelihood"
BOOTSTRAPS = True
BACKUP = "likelihood"
PER_TOKEN = frozenset({"bc"})


@dataclass(frozen=True)
class Config:
    """gamma: discount a token. low, high: the smallest and the largest return to go that there can be, in units of
    scaled reward; values outside are cut off. rest: who gets the probability that a token is not worth. support: a next
    state's value rests on tokens that the actor finds at least this share as likely as its likeliest. polyak: the
    targets' step towards the critics after every optimizer step."""

    gamma: float = 0.99
    low: float = 0.0
    high: float = 1.0
    rest: Literal["uniform", "dummy"] = "uniform"
    support: float = 0.1
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("q_sft.gamma", self.gamma)
        limits.share("q_sft.support", self.support)
        limits.share("q_sft.polyak", self.polyak)
        limits.finite("q_sft.low", self.low)
        limits.finite("q_sft.high", self.high)
        if not self.low < self.high:
            raise InputError(f"q_sft.low is {self.low}, but must be below q_sft.high, {self.high}")


def fields(returns: np.ndarray, cfg: Config) -> dict[str, Any]:
    return {"likelihood": {"low": cfg.low, "high": cfg.high, "rest": cfg.rest, "support": cfg.support}}


def advise(returns: np.ndarray, cfg: Config) -> str | None:
    """returns: of whole dialogues, scaled."""
    low, high = float(returns.min()), float(returns.max())
    if cfg.low <= low and high <= cfg.high:
        return None
    return (
        f"q_sft.low and q_sft.high are {cfg.low:g} and {cfg.high:g}, but the dialogues' scaled returns reach from "
        f"{low:g} to {high:g}: values outside are cut off; set both, or data.reward_scale"
    )


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    target = td_target(batch.reward, batch.discount, out.q_next)
    weight = ((target - cfg.low) / (cfg.high - cfg.low)).clamp(0, 1)
    return {
        "q": weighted_ce(out.q_logp, out.q_rest, weight),
        "v": td(out.v[None], target),
        "bc": nll(out.logp),
    }
