"""Conservative Q-learning (Kumar et al. 2020) at token steps: Q-learning with a maximum over the whole vocabulary, held
down where the logs say nothing.

    y     = r + gamma max_a' min_k Qtarget_k(s', a')                0 after termination
    L_Q   = sum_k (Q_k(s, a) - y)^2
    L_CQL = sum_k [log sum_a' exp Q_k(s, a') - Q_k(s, a)]           CQL(H), eq. 4 of the paper
    L_V   = u^2 / 2,  u = min_k Qtarget_k(s, a) - V(s)
    L     = L_Q + L_V + cql_weight L_CQL - log pi(a | s)

With `calibrated`, L_CQL has max(Q_k(s, a'), G) in place of Q_k(s, a') under the sum (Cal-QL, Nakamoto et al. 2023).
G is the dialogue's return to go at s: the penalty pushes no token below what the logs' policy got from there, and
pushes the logged one up to it at least. A dialogue that was cut off has no G, and its states no floor.

Decision: the paper's policy for discrete actions is the largest Q. Decoding by log pi + beta (Q - V) tends to it,
within the actor's support, as beta grows, and is the logs' policy at beta 0. No backup reads V: it is the mean of Q
over the logs' actions, so that scores have an advantage to show; a constant over actions, it changes no policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ilql import losses
from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import expectile, nll, td, td_target
from ilql.scores import advantage as scores

__all__ = ["Config", "loss", "scores"]

STEPS = ("token",)
CRITIC = "vocabulary"
BOOTSTRAPS = True
BACKUP = "max"
PER_TOKEN = frozenset({"bc"})
TAU = 0.5


@dataclass(frozen=True)
class Config:
    """gamma: discount a token. cql_weight: of the conservative penalty; without it the maximum believes whatever Q is
    for tokens that no log has. calibrated: push no Q below the return to go of the logs. polyak: the targets' step
    towards the critics after every optimizer step."""

    gamma: float = 0.99
    cql_weight: float = 0.1
    calibrated: bool = False
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("cql.gamma", self.gamma)
        limits.not_negative("cql.cql_weight", self.cql_weight)
        limits.share("cql.polyak", self.polyak)
        limits.calibration("cql", self.calibrated, self.cql_weight)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    # The log-sum-exp first: see Out.q.
    lse = (out.q_lse_floored if cfg.calibrated else out.q_lse) if cfg.cql_weight else None
    penalty = {} if lse is None else {"cql": cfg.cql_weight * losses.cql(q_lse=lse, q=out.q)}
    target = td_target(batch.reward, batch.discount, out.q_next)
    return {
        "q": td(out.q, target),
        "v": expectile(out.v, out.q_target, TAU),
        "bc": nll(out.logp),
        **penalty,
    }
