"""Heads over the vocabulary. Decision: training never sees a table of decisions x vocabulary; what a loss needs of it
is two numbers a decision, the taken action's logit and the log-sum-exp over all actions, and `taken_and_lse` makes
both in row chunks, forward and backward.

Shapes: D width of the trunk, H of a head's hidden layer, V vocabulary, N rows. Critics are `Linear(D, H) - ReLU -
Linear(H, V)` with H = 2D, as in the papers' code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 1 << 22  # numbers in the largest table alive: 16 MiB in float32


def _rows(vocabulary: int) -> int:
    return max(1, CHUNK // vocabulary)


class _TakenAndLse(torch.autograd.Function):
    """q_a = z . W[a] + b[a] and lse = log sum exp(z W^T + b), keeping z, W and lse for a chunked backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor | None, action: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(z.dtype, torch.float32)  # a sum over the vocabulary is not for bf16
        taken = torch.empty(len(z), dtype=wide, device=z.device)
        lse = torch.empty_like(taken)
        step = _rows(len(weight))
        for i in range(0, len(z), step):
            logits = F.linear(z[i : i + step], weight, bias).to(wide)
            taken[i : i + step] = logits.gather(1, action[i : i + step, None]).squeeze(1)
            lse[i : i + step] = logits.logsumexp(1)
        ctx.save_for_backward(z, weight, bias, action, lse)
        return taken, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_taken: Tensor, g_lse: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, bias, action, lse = ctx.saved_tensors
        need_z, need_weight, need_bias, _ = ctx.needs_input_grad
        dz = torch.empty_like(z) if need_z else None
        dweight = torch.zeros_like(weight) if need_weight else None
        dbias = torch.zeros_like(bias) if need_bias else None
        step = _rows(len(weight))
        for i in range(0, len(z), step):
            part = slice(i, i + step)
            logits = F.linear(z[part], weight, bias).to(lse.dtype)
            grad = logits.sub_(lse[part, None]).exp_().mul_(g_lse[part, None])
            grad.scatter_add_(1, action[part, None], g_taken[part, None])
            grad = grad.to(z.dtype)
            if dz is not None:
                torch.mm(grad, weight, out=dz[part])
            if dweight is not None:
                dweight.addmm_(grad.T, z[part])
            if dbias is not None:
                dbias += grad.sum(0)
        return dz, dweight, dbias, None


def taken_and_lse(z: Tensor, weight: Tensor, bias: Tensor | None, action: Tensor) -> tuple[Tensor, Tensor]:
    """The taken action's logit and the log-sum-exp over the vocabulary.

    z (N, H), weight (V, H), bias (V) or None, action (N) in [0, V) -> two vectors (N), in float32 or wider. Exact and
    differentiable once in z, weight and bias; only a chunk of rows of the (N, V) table is alive at a time.
    """
    if torch.is_autocast_enabled(z.device.type):
        low = torch.get_autocast_dtype(z.device.type)
        z, weight, bias = z.to(low), weight.to(low), None if bias is None else bias.to(low)
    return _TakenAndLse.apply(z, weight, bias, action)  # type: ignore[no-any-return]


class VocabularyHead(nn.Module):
    """Q(s, .) over the vocabulary, read at the state."""

    def __init__(self, width: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, vocabulary)

    def forward(self, h: Tensor) -> Tensor:
        """All actions: (..., D) -> (..., V). For decoding and for tests; a loss has no use for it."""
        return self.out(F.relu(self.hidden(h)))

    def taken(self, h: Tensor, action: Tensor) -> Tensor:
        """The logged action only, O(N H): (N, D), (N) -> (N)."""
        z = F.relu(self.hidden(h))
        return (z * self.out.weight[action].to(z.dtype)).sum(-1) + self.out.bias[action]

    def taken_and_lse(self, h: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The logged action and the log-sum-exp over all: (N, D), (N) -> two (N)."""
        return taken_and_lse(F.relu(self.hidden(h)), self.out.weight, self.out.bias, action)


class ScalarHead(nn.Module):
    """One number a position: V(s) at a state, or Q(s, a) at an utterance's last token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(..., D) -> (...)."""
        return self.out(F.relu(self.hidden(h))).squeeze(-1)


@torch.no_grad()
def init_head(head: VocabularyHead | ScalarHead) -> None:
    """He-uniform hidden layer; a small output, so that values start near 0 whatever the trunk's scale."""
    nn.init.kaiming_uniform_(head.hidden.weight, a=math.sqrt(5))
    nn.init.zeros_(head.hidden.bias)
    nn.init.normal_(head.out.weight, std=0.02)
    nn.init.zeros_(head.out.bias)
