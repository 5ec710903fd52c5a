"""Behaviour cloning: the maximum-likelihood actor of the logs, over the agent's tokens only. The baseline, and the
pi_b that every critic re-weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import nll
from ilql.scores import actor as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("token", "utterance")
CRITIC = None
BOOTSTRAPS = False
PER_TOKEN = frozenset({"bc"})


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    return {"bc": nll(out.logp)}
