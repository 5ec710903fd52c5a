"""Behaviour cloning: the maximum-likelihood actor of the logs, over the agent's tokens only. The baseline, and the
pi_b that every critic re-weights.

Decision: one weight, on how a dialogue is closed. Where that takes reading all of it (what was agreed on), it is a few
tokens among many that are easier, and a small model learns it last. The turn's first token keeps weight 1, so that the
chance to close stays that of the logs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ilql.algos import limits
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
    """closing: weight of the tokens, behind the first, of the turn that ends its dialogue."""

    closing: float = 1.0

    def __post_init__(self) -> None:
        limits.positive("bc.closing", self.closing)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    if cfg.closing == 1:
        return {"bc": nll(out.logp)}
    weight = 1 + (cfg.closing - 1) * batch.closing.double()
    out.token_weight = weight  # before logp: see there
    return {"bc": nll(out.logp, weight.to(out.logp.dtype))}
