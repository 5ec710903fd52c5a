"""KL-control (Jaques et al. 2019, 2020): Q-learning of the words of an utterance in which the actor's own logits are Q,
and which pays for every step away from a language model, the prior p: the actor as training began with it.

    backup max   y = r - c (log pi(a | s) - log p(a | s)) + gamma max_a' Q(s', a')       pi = softmax(Q)
    backup lse   y = r / c + log p(a | s) + gamma log sum_a' exp Q(s', a')               Psi-learning
    Q(s', a') = min over `passes` of dropout of an average of the actor                  0 after termination
    L    = smooth L1 of Q(s, a) - y

Decision: an utterance's reward is received once, with its last word, and only what ends the dialogue has no next state,
as the papers say. Their published code adds the reward at every word, gives no word of the last utterance a next state,
and takes the minimum over passes of the backed-up values: `reward_at`, `ends` and `least` are for that. In units of
rewards, Psi-learning's Q is c times what the logits say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out
from ilql.losses import huber, kl_to_prior, psi_target, td_target
from ilql.scores import actor as scores
from ilql.types import InputError

__all__ = ["Config", "loss", "scores"]

STEPS = ("token",)
CRITIC = None
BOOTSTRAPS = True
PRIOR = True
PER_TOKEN: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Config:
    """gamma: discount a word. c: what a nat away from the prior costs, in units of scaled rewards. backup: see above.
    passes: of the average actor with a dropout each; the least of their Q is believed. least: of every word's Q, before
    the backup (action), or of the values behind it (value). reward_at: an utterance's reward with its last word, or at
    every word of it. ends: whether in the utterance that ends a dialogue its last word alone has no next state (word),
    or none of its words has one (utterance). prior_words: in decoding, the best Q among so many words, the prior's
    likeliest (discrete BCQ); null for all. polyak: the average's step towards the actor after every optimizer step."""

    gamma: float = 0.99
    c: float = 0.1
    backup: Literal["max", "lse"] = "lse"
    passes: int = 1
    least: Literal["action", "value"] = "action"
    reward_at: Literal["last", "every"] = "last"
    ends: Literal["word", "utterance"] = "word"
    prior_words: int | None = None
    polyak: float = 0.005

    def __post_init__(self) -> None:
        limits.share("kl_control.gamma", self.gamma)
        limits.share("kl_control.polyak", self.polyak)
        (limits.positive if self.backup == "lse" else limits.not_negative)("kl_control.c", self.c)
        for name, value in (("passes", self.passes), ("prior_words", self.prior_words)):
            if value is not None and value < 1:
                raise InputError(f"kl_control.{name} is {value}, but must be at least 1")


def fields(returns: np.ndarray, cfg: Config) -> dict[str, Any]:
    """What the model has beside an actor."""
    return {"target_actor": True, "prior_words": cfg.prior_words}


def whole(cfg: Config) -> bool:
    """Whether the loss has to know which words are of one utterance."""
    return cfg.reward_at == "every" or cfg.ends == "utterance"


def loss(out: Out, batch: Batch, cfg: Config) -> dict[str, Tensor]:
    n = batch.n  # an action is a word; words without a decision come last
    reward, discount = received(batch, cfg)
    follows = out.actor_next(cfg.backup, cfg.passes, cfg.least)
    prior_logp = out.prior_logp[:n]
    if cfg.backup == "lse":
        target = psi_target(reward, prior_logp, discount, follows, cfg.c)
    else:
        with torch.no_grad():  # as a reward, and so at a third of the cost
            cost = cfg.c * kl_to_prior(out.logp[:n], prior_logp)
        target = td_target(reward - cost, discount, follows)
    return {"q": huber(out.logit[:n], target)}


def received(batch: Batch, cfg: Config) -> tuple[Tensor, Tensor]:
    """Reward and discount of every word, (N) each."""
    reward, discount = batch.reward, batch.discount
    if whole(cfg):
        of = batch.utterance
        if cfg.reward_at == "every":
            reward = torch.zeros_like(reward).index_add(0, of, reward)[of]
        if cfg.ends == "utterance":
            ended = torch.zeros_like(discount).index_add(0, of, (discount == 0).to(discount))[of]
            discount = torch.where(ended > 0, 0.0, discount)
    return reward, discount
