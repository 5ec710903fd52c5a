"""Advantage-weighted actor critic (Nair et al. 2020), with the critics of implicit Q-learning: the improvement is
trained into the actor, and decoding needs no critic.

    y    = r + gamma V(s')                                          V(s') = 0 after termination
    L_Q  = sum_k (Q_k(s, a) - y)^2
    L_V  = |tau - 1(u < 0)| u^2,  u = min_k Qtarget_k(s, a) - V(s)
    L_pi = -min(exp(beta u), clip) log pi(a | s)                    the weight is a constant
    L    = L_Q + L_V + L_pi

Decision: the paper's critics ask for Q of the actor's own tokens, which no log has; V by an expectile asks for logged
ones only (tau = .5: the logs' own value). A token whose next state was not logged has no advantage and weighs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import awr_weight, expectile, nll, td, td_target
from ilql.scores import actor as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("token",)
CRITIC = "vocabulary"
BOOTSTRAPS = True
PER_TOKEN = frozenset({"actor"})


@dataclass(frozen=True)
class Config:
    """gamma: discount a token. tau: expectile of V. beta: how sharply the actor prefers an advantage, in units of
    1 / scaled reward; 0 clones. clip: the largest weight of a token. polyak: the targets' step towards the critics
    after every optimizer step."""

    gamma: float = 0.99
    tau: float = 0.7
    beta: float = 1.0
    clip: float = 20.0
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("awac.gamma", self.gamma)
        limits.expectile("awac.tau", self.tau)
        limits.not_negative("awac.beta", self.beta)
        limits.positive("awac.clip", self.clip)
        limits.share("awac.polyak", self.polyak)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    target = td_target(batch.reward, batch.discount, out.v_next)
    weight = awr_weight(out.q_target - out.v, cfg.beta, cfg.clip)
    each = weight.new_zeros(batch.m)  # tokens without a decision come last
    each[: len(batch.owner)] = weight[batch.owner]
    out.token_weight = each  # before logp: see there
    return {
        "q": td(out.q, target),
        "v": expectile(out.v, out.q_target, cfg.tau),
        "actor": nll(out.logp, each.to(out.logp.dtype)),
    }
