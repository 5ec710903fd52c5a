"""Monte-Carlo returns: Q regresses on the discounted return to go, without bootstrapping (the "MC" of LMRL-Gym), V on
the same; the policy re-weights the BC actor as ILQL's does. It improves one step over the behaviour policy and cannot
stitch. At utterance steps the critics are of whole utterances, and there is no penalty: its sum is over a vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import cql, nll, td
from ilql.scores import advantage as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("token", "utterance")
CRITIC = "vocabulary"
BOOTSTRAPS = False
PER_TOKEN = frozenset({"bc"})


@dataclass(frozen=True)
class Config:
    """gamma: discount of a time step. cql_weight: of the conservative penalty; 0 at utterance steps. polyak: 1 keeps
    the targets, by which decoding reads Q, equal to the critics: nothing bootstraps from them here."""

    gamma: float = 0.99
    cql_weight: float = 0.01
    polyak: float = 1.0

    def __post_init__(self) -> None:
        limits.share("mc.gamma", self.gamma)
        limits.not_negative("mc.cql_weight", self.cql_weight)
        limits.share("mc.polyak", self.polyak)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    # q_lse first: see Out.q
    penalty = {"cql": cfg.cql_weight * cql(q_lse=out.q_lse, q=out.q)} if cfg.cql_weight else {}
    return {
        "q": td(out.q, batch.ret),
        "v": td(out.v[None], batch.ret),
        "bc": nll(out.logp),
        **penalty,
    }
