"""Advantage-leftover-lunch RL, A-LoL (Baheti et al. 2023): policy gradient on the logs, an utterance being one action,
from those alone that were better than the logs' policy is on average.

    y    = r + gamma V(s')                                          V(s') = 0 after termination
    L_Q  = sum_k (Q_k(s, a) - y)^2
    L_V  = u^2 / 2,  u = min_k Qtarget_k(s, a) - V(s)               the mean of Q: the value of the logs' policy
    rho  = pi(a | s) / pi_ref(a | s), between 1 - clip and 1 + clip, of the utterance as a whole
    L_pi = -max(u, 0) rho log pi(a | s)                             u and rho are constants
    L    = L_Q + L_V + L_pi

Decision: the paper's dialogues have one reward, at the end of one utterance; its R(s, a) - V_ref(s) is, where more
follows, Q - V of the policy that wrote the logs, by the critics of `ilql.algos.sarsa`. The reference is read from the
column `logp` and not computed beside the actor, so that there is no second trunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import clipped_ratio, expectile, per_action, td, td_target
from ilql.scores import actor as scores
from ilql.types import InputError

__all__ = ["Config", "loss", "scores"]

STEPS = ("utterance",)
CRITIC = "scalar"
BOOTSTRAPS = True
PER_TOKEN: frozenset[str] = frozenset()
TAU = 0.5


@dataclass(frozen=True)
class Config:
    """gamma: discount an utterance. ratio: rho, of the whole utterance, or none, 1 (the paper's reference-free form,
    which needs no column `logp`). clip: how far rho may be from 1. polyak: the targets' step towards the critics after
    every optimizer step."""

    gamma: float = 0.99
    ratio: Literal["utterance", "none"] = "utterance"
    clip: float = 0.9
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("a_lol.gamma", self.gamma)
        limits.share("a_lol.polyak", self.polyak)
        if not 0 <= self.clip < 1:
            raise InputError(f"a_lol.clip is {self.clip}, but must be in [0, 1)")


def behaviour(cfg: Config) -> bool:
    """Whether the loss reads the log-probabilities of the logs' policy."""
    return cfg.ratio == "utterance"


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    target = td_target(batch.reward, batch.discount, out.v_next)
    logp = per_action(out.logp, batch.owner, len(out.v))
    weight = (out.q_target - out.v).detach().clamp(min=0.0)
    if behaviour(cfg):
        weight = weight * clipped_ratio(logp, batch.behaviour, cfg.clip)
    return {
        "q": td(out.q, target),
        "v": expectile(out.v, out.q_target, TAU),
        "actor": -weight * logp,
    }
