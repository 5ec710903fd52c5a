"""REINFORCE on logs (Williams 1992; the utterance or the token as the action): what was followed by more than the
baseline becomes likelier, what was followed by less, less likely.

    L_pi = -(G - b(s)) log pi(a | s)                                G = r + gamma G', the return to go
    L_V  = (V(s) - G)^2                                             where b is V
    L    = L_pi + L_V

Decision: no importance weight. The gradient is that of the policy which wrote the dialogues, so the first step from a
clone of it is right, and every further one less so: after that the logs belong to another policy. `ilql.algos.ppo`
weighs them; here it is seen what comes of it if nobody does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ilql.algos import baseline, limits
from ilql.algos.baseline import Baseline, level
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import per_action, td
from ilql.scores import actor as scores

__all__ = ["Config", "level", "loss", "scores"]

STEPS = ("token", "utterance")
CRITIC = "value"
BOOTSTRAPS = False
PER_TOKEN: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Config:
    """gamma: discount of a time step. baseline: what a return is compared with, `value` (V of the state), `mean` (the
    mean return to go of the training dialogues), or a number in the log's units (0: nothing)."""

    gamma: float = 0.99
    baseline: Baseline = "value"

    def __post_init__(self) -> None:
        limits.share("reinforce.gamma", self.gamma)
        baseline.check("reinforce", self.baseline)


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    advantage = baseline.advantage(out, batch, cfg.baseline)
    out.token_weight = advantage[batch.owner]  # before logp: see there
    value = {"v": td(out.v[None], batch.ret)} if cfg.baseline == "value" else {}
    return {"actor": -advantage * per_action(out.logp, batch.owner, batch.n), **value}
