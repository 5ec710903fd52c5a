"""Implicit language Q-learning (Snell et al. 2022): IQL backups (Kostrikov et al. 2021) at token steps, a CQL penalty
that keeps unseen tokens low, and a BC actor that decoding re-weights by beta (Q - V).

    y   = r + gamma V(s')                                           V(s') = 0 after termination
    L_Q = sum_k (Q_k(s, a) - y)^2
    L_V = |tau - 1(u < 0)| u^2,  u = min_k Qtarget_k(s, a) - V(s)
    L   = L_Q + L_V + cql_weight sum_k [lse Q_k(s, .) - Q_k(s, a)] - log pi(a | s)

In place of the expectile, V may regress on Q as in extreme Q-learning (`v_loss: gumbel`, Garg et al. 2023) or in sparse
Q-learning (`v_loss: sparse`, Xu et al. 2023); both too use actions of the logs only. `calibrated` puts a floor under Q
in the penalty, as in `ilql.algos.cql`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import cql, expectile, gumbel, nll, sparse, td, td_target
from ilql.scores import advantage as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("token",)
CRITIC = "vocabulary"
BOOTSTRAPS = True
PER_TOKEN = frozenset({"bc"})


@dataclass(frozen=True)
class Config:
    """gamma: discount a token. v_loss: how V regresses on Q. tau: of the expectile. v_temperature: of the other two, in
    units of scaled rewards; towards 0 V becomes the largest Q, above it the mean. gumbel_clip: from where on exp is
    linear. cql_weight: of the conservative penalty (0 to 1). calibrated: push no Q below the return to go of the logs.
    polyak: the targets' step towards the critics after every optimizer step."""

    gamma: float = 0.99
    v_loss: Literal["expectile", "gumbel", "sparse"] = "expectile"
    tau: float = 0.7
    v_temperature: float = 1.0
    gumbel_clip: float = 7.0
    cql_weight: float = 0.01
    calibrated: bool = False
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("ilql.gamma", self.gamma)
        limits.expectile("ilql.tau", self.tau)
        limits.positive("ilql.v_temperature", self.v_temperature)
        limits.positive("ilql.gumbel_clip", self.gumbel_clip)
        limits.not_negative("ilql.cql_weight", self.cql_weight)
        limits.share("ilql.polyak", self.polyak)
        limits.calibration("ilql", self.calibrated, self.cql_weight)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    # The log-sum-exp first: see Out.q.
    lse = (out.q_lse_floored if cfg.calibrated else out.q_lse) if cfg.cql_weight else None
    penalty = {} if lse is None else {"cql": cfg.cql_weight * cql(q_lse=lse, q=out.q)}
    target = td_target(batch.reward, batch.discount, out.v_next)
    return {
        "q": td(out.q, target),
        "v": v_loss(out, cfg),
        "bc": nll(out.logp),
        **penalty,
    }


def v_loss(out: Out, cfg: Config) -> Tensor:
    """The loss of V by its name in the config, (N)."""
    if cfg.v_loss == "gumbel":
        return gumbel(out.v, out.q_target, cfg.v_temperature, cfg.gumbel_clip)
    if cfg.v_loss == "sparse":
        return sparse(out.v, out.q_target, cfg.v_temperature)
    return expectile(out.v, out.q_target, cfg.tau)
