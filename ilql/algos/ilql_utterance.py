"""Implicit Q-learning (Kostrikov et al. 2021) where an action is a whole utterance: the actor clones, proposes at
decoding, and the critic picks.

    y   = r + gamma V(s')                                           V(s') = 0 after termination
    L_Q = sum_k (Q_k(s, a) - y)^2                                   Q is read at the utterance's last token
    L_V = |tau - 1(u < 0)| u^2,  u = min_k Qtarget_k(s, a) - V(s)   V at the token before the utterance
    L   = L_Q + L_V - log pi(a | s)                                 the last over the utterance's tokens

Decision: no conservative penalty. A sum over all utterances cannot be had, and none is needed: V never asks for an
utterance that nobody said, and decoding asks only for what the actor proposes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import expectile, nll, td, td_target
from ilql.scores import advantage as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("utterance",)
CRITIC = "scalar"
BOOTSTRAPS = True
PER_TOKEN = frozenset({"bc"})


@dataclass(frozen=True)
class Config:
    """gamma: discount an utterance. tau: expectile of V. polyak: the targets' step towards the critics after every
    optimizer step."""

    gamma: float = 0.99
    tau: float = 0.7
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("ilql_utterance.gamma", self.gamma)
        limits.expectile("ilql_utterance.tau", self.tau)
        limits.share("ilql_utterance.polyak", self.polyak)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    target = td_target(batch.reward, batch.discount, out.v_next)
    return {
        "q": td(out.q, target),
        "v": expectile(out.v, out.q_target, cfg.tau),
        "bc": nll(out.logp),
    }
