"""Offline ArCHer (Zhou et al. 2024): a critic of utterances by implicit Q-learning, and an actor of tokens that learns
from what the critic says of the utterance that they make up; decoding needs no critic.

    y    = r + gamma V(s')                                          V(s') = 0 after termination
    L_Q  = sum_k (Q_k(s, a) - y)^2                                  Q is read at the utterance's last token
    L_V  = |tau - 1(u < 0)| u^2,  u = min_k Qtarget_k(s, a) - V(s)  V at the token before the utterance
    L_pi = -min(exp(beta u), clip) log pi(a_h | s, a_1 .. a_h-1)    for every token h of the utterance
    L    = L_Q + L_V + L_pi

Decision: these are the losses of `ilql.algos.awac` where an action is an utterance. All tokens of an utterance have its
weight, since the critic knows nothing of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from ilql.algos import limits
from ilql.algos.awac import BOOTSTRAPS, PER_TOKEN, loss, scores

__all__ = ["BOOTSTRAPS", "PER_TOKEN", "Config", "loss", "scores"]

STEPS = ("utterance",)
CRITIC = "scalar"


@dataclass(frozen=True)
class Config:
    """gamma: discount an utterance. tau: expectile of V. beta: how sharply the actor prefers an advantage, in units of
    1 / scaled reward; 0 clones. clip: the largest weight of an utterance. polyak: the targets' step towards the critics
    after every optimizer step."""

    gamma: float = 0.99
    tau: float = 0.7
    beta: float = 1.0
    clip: float = 20.0
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("archer.gamma", self.gamma)
        limits.expectile("archer.tau", self.tau)
        limits.not_negative("archer.beta", self.beta)
        limits.positive("archer.clip", self.clip)
        limits.share("archer.polyak", self.polyak)
