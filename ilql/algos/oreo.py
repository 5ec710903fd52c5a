"""Offline reasoning optimisation (OREO, Wang et al. 2024): of the policy that earns most where every nat away from a
reference costs beta, value and policy obey the soft Bellman equation on every dialogue, whoever wrote it.

    D_t  = beta (log pi(a_t | s_t) - log ref(a_t | s_t))            ref: the actor of the beginning, or the log's policy
    S_t  = r_t - D_t + gamma S_t+1                                  at a cut-off end S = V; a constant
    L_V  = (V(s_t) - S_t)^2
    L_pi = (V(s_t) - S_t - sg(D_t) + D_t)^2                         the gradient goes through D_t alone
    L    = L_V + L_pi + kl_weight KL(pi(. | s) || p(. | s))

Decision: the paper's sums run to the dialogue's end, so that rewards need no time to travel back, and so do these; what
was cut off has V for the rest. In L_pi the value and what follows a_t are constants (sg), so dialogues whose partner is
a matter of luck do no harm: the two regressions are linear in S. Token steps are the paper's own, utterance steps its
step-level variant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import oreo_policy, oreo_value, per_action, soft_return
from ilql.scores import actor as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("token", "utterance")
CRITIC = "value"
BOOTSTRAPS = True
PER_TOKEN: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Config:
    """gamma: discount of a time step. beta: what a nat away from the reference costs, in units of scaled rewards.
    reference: the `prior`, which is the actor that training began with, or the policy that wrote the `log`, by its
    log-probabilities. kl_weight: of the exact divergence from the prior at the logged states (the paper's alpha), in
    scaled rewards squared a nat."""

    gamma: float = 1.0
    beta: float = 0.1
    reference: Literal["prior", "log"] = "prior"
    kl_weight: float = 0.0

    def __post_init__(self) -> None:
        limits.share("oreo.gamma", self.gamma)
        limits.positive("oreo.beta", self.beta)
        limits.not_negative("oreo.kl_weight", self.kl_weight)


def level(to_go: np.ndarray, cfg: Config) -> float:
    """Where V begins, in the log's units: a V far above all returns would take every logged action for a bad one."""
    return float(to_go.mean()) if len(to_go) else 0.0


def behaviour(cfg: Config) -> bool:
    """Whether the loss reads the log-probabilities of the logs' policy."""
    return cfg.reference == "log"


def prior(cfg: Config) -> bool:
    """Whether the loss reads the actor that training began with."""
    return cfg.reference == "prior" or cfg.kl_weight > 0


def whole(cfg: Config) -> bool:
    """Whether the loss reads the decisions of a dialogue together."""
    return True


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    logp = per_action(out.logp, batch.owner, batch.n)
    reference = batch.behaviour if behaviour(cfg) else per_action(out.prior_logp, batch.owner, batch.n)
    cost = cfg.beta * (logp - reference)
    soft = soft_return(batch.reward - cost, batch.discount, out.v_next, batch.first)
    losses = {"v": oreo_value(out.v, soft), "actor": oreo_policy(out.v, soft, cost)}
    if cfg.kl_weight:
        losses["kl"] = cfg.kl_weight * per_action(out.kl, batch.owner, batch.n)
    return losses
