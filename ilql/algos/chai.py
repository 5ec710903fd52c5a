"""CHAI (Verma et al. 2022): Q-learning over whole utterances, in which the maximum is one over what a language model
proposes, and the penalty is one against it.

    y     = r + gamma B(s')                                         B(s') = 0 after termination
    B(s') = max_a' min_k Qtarget_k(s', a') over the proposals at s', or their mean under softmax(. / temperature)
    L_Q   = sum_k (Q_k(s, a) - y)^2
    L_CQL = sum_k [log sum_a' exp Q_k(s, a') - Q_k(s, a)]           over the proposals at s and a, equal ones once
    L_V   = u^2 / 2,  u = min_k Qtarget_k(s, a) - V(s)
    L     = L_Q + L_V + cql_weight L_CQL - bc_weight log pi(a | s)

Decision: the logged reply stands under the sum of L_CQL too, which so is never below 0. The published code leaves
- Q(s, a) out, and what is left has no lower bound. No backup reads V: it is the mean of Q over the logs' replies, so
that scores have an advantage to show. Proposals are a column of the dataset, made once, by a model that stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import best_among, cql, expectile, lse_among, nll, soft_among, td, td_target
from ilql.scores import advantage as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("utterance",)
CRITIC = "scalar"
BOOTSTRAPS = True
OFFERED = True
PER_TOKEN = frozenset({"bc"})
TAU = 0.5


@dataclass(frozen=True)
class Config:
    """gamma: discount an utterance. backup: what a state is worth by its proposals, the best of them or their mean
    under softmax(Q / temperature). temperature: of that, in units of scaled rewards. cql_weight: of the conservative
    penalty. bc_weight: of cloning; 0 leaves the actor as `init_from` gave it. polyak: the targets' step towards the
    critics after every optimizer step."""

    gamma: float = 0.99
    backup: Literal["max", "softmax"] = "max"
    temperature: float = 1.0
    cql_weight: float = 0.1
    bc_weight: float = 1.0
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("chai.gamma", self.gamma)
        limits.positive("chai.temperature", self.temperature)
        limits.not_negative("chai.cql_weight", self.cql_weight)
        limits.not_negative("chai.bc_weight", self.bc_weight)
        limits.share("chai.polyak", self.polyak)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {
        "q": td(out.q, td_target(batch.reward, batch.discount, backup(out, batch, cfg))),
        "v": expectile(out.v, out.q_target, TAU),
    }
    if cfg.cql_weight:
        others = batch.offered.owner  # type: ignore[union-attr]
        found["cql"] = cfg.cql_weight * cql(out.q, lse_among(out.q, out.q_offered, others))
    if cfg.bc_weight:
        found["bc"] = cfg.bc_weight * nll(out.logp)
    return found


def backup(out: Out, batch: Batch, cfg: Config) -> Tensor:
    """What the next states are worth by their proposals, (N)."""
    q, owner = out.q_target_offered, batch.offered_next.owner  # type: ignore[union-attr]
    if cfg.backup == "max":
        return best_among(q, owner, batch.n)
    return soft_among(q, owner, batch.n, cfg.temperature)
