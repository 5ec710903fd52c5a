"""Proximal policy optimisation on logs (Schulman et al. 2017): the policy gradient of `ilql.algos.reinforce`, weighed
by how likely an action is now against when it was logged, and clipped where the two have come apart.

    rho  = pi(a | s) / mu(a | s)                                    mu: the policy that wrote the log, its column `logp`
    A    = G - b(s)                                                 G: the return to go; a constant
    L_pi = -min(rho A, clip(rho, 1 - clip, 1 + clip) A)
    L_V  = (V(s) - G)^2                                             where b is V
    L    = L_pi + L_V + kl_weight KL(pi(. | s) || p(. | s))         p: the prior, the actor that training began with

Decision: mu is what wrote the log, for good, and not the actor of some steps ago; there is no newer data. The ratio of
a step corrects for the action, but neither for the states that pi would be in nor for what it would do afterwards:
exact to first order at pi = mu, and the clip stays near it. `ratio: dialogue` is the whole correction, the product of
the ratios of all steps, whose gradient goes through a step's own: unbiased however far pi is from mu, and of a variance
that grows with the dialogue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ilql.algos import baseline, limits
from ilql.algos.baseline import Baseline, level
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import importance_ratio, of_dialogue, per_action, ppo_clip, td
from ilql.scores import actor as scores
from ilql.types import InputError

__all__ = ["Config", "level", "loss", "scores"]

STEPS = ("token", "utterance")
CRITIC = "value"
BOOTSTRAPS = False
PER_TOKEN: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Config:
    """gamma: discount of a time step. baseline: as in `reinforce`. ratio: of a `step` (token or utterance) or of the
    whole `dialogue`. clip: how far from 1 a ratio still teaches, None for any distance. limit: the largest ratio; one
    above it counts as that. kl_weight: of the divergence from the prior, in scaled rewards a nat."""

    gamma: float = 0.99
    baseline: Baseline = "value"
    ratio: Literal["step", "dialogue"] = "step"
    clip: float | None = 0.2
    limit: float = 100.0
    kl_weight: float = 0.0

    def __post_init__(self) -> None:
        limits.share("ppo.gamma", self.gamma)
        baseline.check("ppo", self.baseline)
        if self.clip is not None and not 0 < self.clip < 1:
            raise InputError(f"ppo.clip is {self.clip}, but must be above 0 and below 1, or null")
        if not 1 < self.limit < math.inf:
            raise InputError(f"ppo.limit is {self.limit}, but must be above 1")
        limits.not_negative("ppo.kl_weight", self.kl_weight)


def behaviour(cfg: Config) -> bool:
    """Whether the loss reads the log-probabilities of the logs' policy."""
    return True


def prior(cfg: Config) -> bool:
    """Whether the loss reads the actor that training began with."""
    return cfg.kl_weight > 0


def whole(cfg: Config) -> bool:
    """Whether the loss reads the decisions of a dialogue together."""
    return cfg.ratio == "dialogue"


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    advantage = baseline.advantage(out, batch, cfg.baseline)
    logp, logged = per_action(out.logp, batch.owner, batch.n), batch.behaviour
    if whole(cfg):
        logp, logged = of_dialogue(logp, batch.first), of_dialogue(logged, batch.first)
    ratio = importance_ratio(logp, logged, cfg.limit)
    losses = {"actor": ppo_clip(ratio, advantage, cfg.clip)}
    if cfg.baseline == "value":
        losses["v"] = td(out.v[None], batch.ret)
    if prior(cfg):
        losses["kl"] = cfg.kl_weight * per_action(out.kl, batch.owner, batch.n)
    return losses
