"""Rewards learned from preferences (Ziegler et al. 2019, Ouyang et al. 2022): of two dialogues that begin alike, which
one somebody liked better.

    r_k(s, a)   the k-th critic at the last token of the last action     k = 1 .. K, an ensemble of heads on one trunk
    L_BT = -sum_k log sigmoid(r_k(s, chosen) - r_k(s, rejected))         (Bradley and Terry 1952)
    L_V  = (mean_k r_k(s, a) - V(s))^2 / 2                               r is constant here
    L_c  = center sum_k (r_k(s, chosen) + r_k(s, rejected))^2            (Eisenstein et al. 2023)
    L    = L_BT + value L_V + L_c

Decision: a pair is two rows of a batch, and each of its two decisions has the pair's loss, so that the trainer's mean
over decisions is the mean over pairs. Only the last action of a dialogue is a decision: it is what was judged, with all
that came before. V is what replies are worth in this context on average; Bradley-Terry does not say where 0 lies, and
r - V does. The language model's head is not trained, nor is it a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import bradley_terry, expectile
from ilql.scores import actor as scores

__all__ = ["Config", "loss", "prepare", "scores"]

STEPS = ("utterance",)
CRITIC = "scalar"
BOOTSTRAPS = False
PAIRED = True
PER_TOKEN: frozenset[str] = frozenset()
TAU = 0.5


@dataclass(frozen=True)
class Config:
    """center: of the penalty that keeps the two rewards of a pair around 0; a preference does not say where they lie.
    value: weight of V's regression, small, as it moves the trunk too and says nothing of what was preferred.
    polyak: 1 keeps the targets, which judge after training, equal to the critics."""

    center: float = 0.0
    value: float = 0.1
    polyak: float = 1.0

    def __post_init__(self) -> None:
        limits.not_negative("reward_model.center", self.center)
        limits.positive("reward_model.value", self.value)
        limits.share("reward_model.polyak", self.polyak)


def prepare(row: Mapping[str, Any], note: Callable[[str], list[int]], cfg: Config) -> dict[str, Any]:
    """A row whose only decision is its last action."""
    return {**row, **{name: row[name][-1:] for name in ("start", "end", "reward", "logp") if name in row}}


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    chosen, rejected = batch.pair.T
    q = out.q

    def each(pairs: Tensor) -> Tensor:
        """What pairs lose, (P), for both of their decisions, (N)."""
        return torch.zeros_like(q[0]).index_add(0, batch.pair.flatten(), pairs.repeat_interleave(2))

    found = {"pair": each(bradley_terry(q[:, chosen], q[:, rejected]).sum(0))}
    if cfg.center:
        found["center"] = cfg.center * each((q[:, chosen] + q[:, rejected]).square().sum(0))
    return found | {"v": cfg.value * expectile(out.v, q.mean(0), TAU)}
