"""Implicit language Q-learning (Snell et al. 2022): IQL backups (Kostrikov et al. 2021) at token steps, a CQL penalty
that keeps unseen tokens low, and a BC actor that decoding re-weights by beta (Q - V).

    y   = r + gamma V(s')                                           V(s') = 0 after termination
    L_Q = sum_k (Q_k(s, a) - y)^2
    L_V = |tau - 1(u < 0)| u^2,  u = min_k Qtarget_k(s, a) - V(s)
    L   = L_Q + L_V + cql_weight sum_k [lse Q_k(s, .) - Q_k(s, a)] - log pi(a | s)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import cql, expectile, nll, td, td_target
from ilql.scores import advantage as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("token",)
CRITIC = "vocabulary"
BOOTSTRAPS = True
PER_TOKEN = frozenset({"bc"})


@dataclass(frozen=True)
class Config:
    """gamma: discount a token. tau: expectile of V. cql_weight: of the conservative penalty (0 to 1). polyak: the
    targets' step towards the critics after every optimizer step."""

    gamma: float = 0.99
    tau: float = 0.7
    cql_weight: float = 0.01
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("ilql.gamma", self.gamma)
        limits.expectile("ilql.tau", self.tau)
        limits.not_negative("ilql.cql_weight", self.cql_weight)
        limits.share("ilql.polyak", self.polyak)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    # q_lse first: see Out.q
    penalty = {"cql": cfg.cql_weight * cql(q_lse=out.q_lse, q=out.q)} if cfg.cql_weight else {}
    target = td_target(batch.reward, batch.discount, out.v_next)
    return {
        "q": td(out.q, target),
        "v": expectile(out.v, out.q_target, cfg.tau),
        "bc": nll(out.logp),
        **penalty,
    }
