"""Monte-Carlo returns: Q regresses on the discounted return to go, without bootstrapping (the "MC" of LMRL-Gym), V on
the same; the policy re-weights the BC actor as ILQL's does. It improves one step over the behaviour policy and cannot
stitch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import cql, nll, td
from ilql.scores import advantage as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("token",)
CRITIC = "vocabulary"
BOOTSTRAPS = False
PER_TOKEN = frozenset({"bc"})


@dataclass(frozen=True)
class Config:
    """gamma: discount. cql_weight: of the conservative penalty. polyak: 1 keeps the targets, by which decoding reads
    Q, equal to the critics: nothing bootstraps from them here."""

    gamma: float = 0.99
    cql_weight: float = 0.01
    polyak: float = 1.0


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    return {
        "q": td(out.q, batch.ret),
        "v": td(out.v[None], batch.ret),
        "cql": cfg.cql_weight * cql(out.q, out.q_lse),
        "bc": nll(out.logp),
    }
