"""Single-step critics, or SARSA (Brandfonbrener et al. 2021; the single-step baseline of Snell et al. 2022): Q of the
policy that wrote the logs, from which decoding takes one step of improvement.

    y   = r + gamma V(s')                                           V(s') = 0 after termination
    L_Q = sum_k (Q_k(s, a) - y)^2
    L_V = u^2 / 2,  u = min_k Qtarget_k(s, a) - V(s)                the expectile at tau = .5: V = E_{a ~ logs} Q(s, a)
    L   = L_Q + L_V + cql_weight sum_k [lse Q_k(s, .) - Q_k(s, a)] - log pi(a | s)

Decision: the target takes V(s') and not Q(s', a') of the next logged action. Both have the same mean over the logs, V
has the smaller variance, and a dialogue that was cut off has a next state but no next action. At utterance steps the
critics are of whole utterances, and there is no penalty: its sum is over a vocabulary.
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

STEPS = ("token", "utterance")
CRITIC = "vocabulary"
BOOTSTRAPS = True
PER_TOKEN = frozenset({"bc"})
TAU = 0.5


@dataclass(frozen=True)
class Config:
    """gamma: discount of a time step. cql_weight: of the conservative penalty (0 to 1); 0 at utterance steps. polyak:
    the targets' step towards the critics after every optimizer step."""

    gamma: float = 0.99
    cql_weight: float = 0.01
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("sarsa.gamma", self.gamma)
        limits.not_negative("sarsa.cql_weight", self.cql_weight)
        limits.share("sarsa.polyak", self.polyak)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    # q_lse first: see Out.q
    penalty = {"cql": cfg.cql_weight * cql(q_lse=out.q_lse, q=out.q)} if cfg.cql_weight else {}
    target = td_target(batch.reward, batch.discount, out.v_next)
    return {
        "q": td(out.q, target),
        "v": expectile(out.v, out.q_target, TAU),
        "bc": nll(out.logp),
        **penalty,
    }
