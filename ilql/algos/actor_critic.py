"""An actor-critic that stays near a language model (Jaques et al. 2020): a critic of utterances, a policy gradient of
the actor weighed by what the critic says, and a price c on every nat away from the prior p, the actor as training began
with it.

    y    = r + gamma V(s')                                          V(s') = 0 after termination
    L_Q  = sum_k (Q_k(s, a) - y)^2
    L_V  = u^2 / 2,  u = min_k Qtarget_k(s, a) - V(s)               the mean of Q over the logs
    rho  = pi(a | s) / mu(a | s), at most `limit`                   mu: who wrote the log, or the prior that clones it
    kl exact     L_pi = -rho u log pi(a | s),   L_KL = c sum_h KL(pi || p) at the utterance's words, over the vocabulary
    kl sampled   L_pi = -rho (u - c (log pi(a | s) - log p(a | s))) log pi(a | s)
    L    = L_Q + L_V + L_pi + L_KL                                  rho and what it multiplies are constants

Decision: the gradient is weighed by rho. Without it (`ratio: none`) an utterance that was worse than the mean is pushed
down without end, price or not; with it, and logs that p would have written, it is the gradient of E_pi[Q] less
c KL(pi || p), whose maximum is p exp(Q / c) / Z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import expectile, importance_ratio, kl_to_prior, per_action, td, td_target
from ilql.scores import actor as scores
from ilql.types import InputError

__all__ = ["Config", "loss", "scores"]

STEPS = ("utterance",)
CRITIC = "scalar"
BOOTSTRAPS = True
PRIOR = True
PER_TOKEN: frozenset[str] = frozenset()
TAU = 0.5


@dataclass(frozen=True)
class Config:
    """gamma: discount an utterance. c: what a nat away from the prior costs, in units of scaled rewards. kl: the exact
    divergence at the logged utterances' words, or sampled by them. ratio: to the prior, to the log's own `logged`
    log-probabilities, or none, 1. limit: the largest ratio. polyak: the targets' step towards the critics after every
    optimizer step."""

    gamma: float = 0.99
    c: float = 0.1
    kl: Literal["exact", "sampled"] = "exact"
    ratio: Literal["prior", "logged", "none"] = "prior"
    limit: float = 10.0
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("actor_critic.gamma", self.gamma)
        limits.not_negative("actor_critic.c", self.c)
        limits.share("actor_critic.polyak", self.polyak)
        if not 1 < self.limit < math.inf:
            raise InputError(f"actor_critic.limit is {self.limit}, but must be above 1")


def behaviour(cfg: Config) -> bool:
    """Whether the loss reads the log-probabilities of the logs' policy."""
    return cfg.ratio == "logged"


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    def whole(each: Tensor) -> Tensor:
        return per_action(each, batch.owner, batch.n)

    logp = whole(out.logp)
    weight = (out.q_target - out.v).detach()
    if cfg.kl == "sampled":
        weight = weight - cfg.c * whole(kl_to_prior(out.logp, out.prior_logp)).detach()
    if cfg.ratio != "none":
        logged = batch.behaviour if behaviour(cfg) else whole(out.prior_logp)
        weight = weight * importance_ratio(logp, logged, cfg.limit).detach()
    losses = {
        "q": td(out.q, td_target(batch.reward, batch.discount, out.v_next)),
        "v": expectile(out.v, out.q_target, TAU),
        "actor": -weight * logp,
    }
    if cfg.kl == "exact":
        losses["kl"] = cfg.c * whole(out.kl)
    return losses
