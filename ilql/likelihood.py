"""Critics whose values are probabilities: softmax over the vocabulary, as in Q-SFT (Hong et al. 2024). Decision:
outside of a loss such a critic answers as any other, with values in units of reward, low + (high - low) p(a | s); so
decoding, scores and metrics need not know of it. What the loss reads of it are logits.

Shapes: D width of the trunk, H of what the vocabulary's weights read, V vocabulary, N rows, C some tokens of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilql.heads import VocabularyHead

RESTS = ("uniform", "dummy")


@dataclass(frozen=True)
class Likelihood:
    """low, high: the values that probabilities 0 and 1 stand for. rest: who gets the probability that a taken action is
    not worth: all other tokens alike (`uniform`), or an action beyond the vocabulary whose logit is 0 (`dummy`).
    support: the smallest likelihood under the actor, as a share of its likeliest token's, of a token that a state's
    value may rest on."""

    low: float = 0.0
    high: float = 1.0
    rest: str = "uniform"
    support: float = 0.1


class LikelihoodHead(nn.Module):
    """p(. | s) = softmax of a head's logits over the vocabulary, with one logit of 0 more where `rest` is dummy."""

    def __init__(self, logits: VocabularyHead, how: Likelihood) -> None:
        super().__init__()
        self.logits, self.how = logits, how

    def features(self, h: Tensor) -> Tensor:
        """What the vocabulary's weights read: (..., D) -> (..., H)."""
        return self.logits.features(h)

    def words(self) -> tuple[Tensor, Tensor]:
        """The vocabulary's weights (V, H) and biases (V)."""
        return self.logits.words()

    def value(self, logp: Tensor) -> Tensor:
        """What a log-probability stands for."""
        return self.how.low + (self.how.high - self.how.low) * logp.exp()

    def norm(self, lse: Tensor) -> Tensor:
        """log of the sum that a softmax divides by, given the log-sum-exp over the vocabulary."""
        return F.softplus(lse) if self.how.rest == "dummy" else lse

    def forward(self, h: Tensor) -> Tensor:
        """The values of all actions: (..., D) -> (..., V)."""
        return self.values(self.logits(h))

    def values(self, logits: Tensor) -> Tensor:
        """The values of all actions, given their logits: (..., V) -> (..., V)."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.value(logits - self.norm(logits.logsumexp(-1, keepdim=True)))

    def taken(self, h: Tensor, action: Tensor) -> Tensor:
        """The value of the logged action: (N, D), (N) -> (N). The sum over the vocabulary is made all the same."""
        taken, norm = self.taken_and_lse(h, action)
        return self.value(taken - norm)

    def among(self, z: Tensor, action: Tensor) -> Tensor:
        """The values of some actions of each row: features (N, H), (N, C) -> (N, C)."""
        return self.values(F.linear(z, *self.words())).gather(1, action)

    def taken_and_lse(self, h: Tensor, action: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logged action's logit and what a softmax subtracts: (N, D), (N) -> two (N). share: see `heads`."""
        taken, lse = self.logits.taken_and_lse(h, action, share)
        return taken, self.norm(lse)

    def mean_logit(self, h: Tensor) -> Tensor:
        """The mean of the logits over the vocabulary, O(N H): (N, D) -> (N)."""
        weight, bias = self.words()
        wide = torch.promote_types(weight.dtype, torch.float32)
        return self.features(h).to(wide) @ weight.mean(0, dtype=wide) + bias.mean(dtype=wide)
