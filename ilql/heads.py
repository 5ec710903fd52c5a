"""Heads over the vocabulary. Decision: training never sees a table of decisions x vocabulary; what a loss needs of it
is two numbers a decision, the taken action's logit and the log-sum-exp over all actions.

The gradient of a mean over decisions weighs every row's log-sum-exp alike, so all of it but one factor is known before
the loss is: `taken_and_lse` makes the softmax's share of it in the forward, while a chunk of the table is at hand, and
backward scales it. That is three matrix products in all. Where the rows turn out to be weighed differently, backward
computes the table again, chunk by chunk (two products more), and is as exact. The taken action's share touches its own
row of the weights only.

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


def _parts(rows: int, vocabulary: int) -> list[slice]:
    """Row slices whose tables stay within CHUNK, of nearly equal size."""
    count = max(1, -(-rows * vocabulary // CHUNK))
    step = -(-rows // count)
    return [slice(i, min(i + step, rows)) for i in range(0, rows, max(1, step))]


class _TakenAndLse(torch.autograd.Function):
    """q_a = z . W[a] + b[a] and lse = log sum exp(z W^T + b)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor | None, action: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(z.dtype, torch.float32)  # a sum over the vocabulary is not for bf16
        taken = torch.empty(len(z), dtype=wide, device=z.device)
        lse = torch.empty_like(taken)
        grads = _Softmax(ctx.needs_input_grad, z, weight, bias, wide)
        for part in _parts(len(z), len(weight)):
            logits = F.linear(z[part], weight, bias).to(wide)
            taken[part] = logits.gather(1, action[part, None]).squeeze(1)
            lse[part] = logits.logsumexp(1)
            if any(ctx.needs_input_grad):
                grads.add(part, logits.sub_(lse[part, None]).exp_())
        ctx.save_for_backward(z, weight, bias, action, lse, grads.z, grads.weight, grads.bias)
        return taken, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_taken: Tensor, g_lse: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, bias, action, lse, *made = ctx.saved_tensors
        scale = g_lse[:1] if len(g_lse) else g_lse.new_zeros(1)
        if bool((g_lse == scale).all()):
            dz, dweight, dbias = (None if x is None else (x * scale.to(x.dtype)) for x in made)
        else:
            grads = _Softmax(ctx.needs_input_grad, z, weight, bias, lse.dtype)
            for part in _parts(len(z), len(weight)):
                table = F.linear(z[part], weight, bias).to(lse.dtype).sub_(lse[part, None]).exp_()
                grads.add(part, table.mul_(g_lse[part, None]))
            dz, dweight, dbias = grads.z, grads.weight, grads.bias
        if dz is not None:
            dz = dz.to(z.dtype).addcmul_(weight[action], g_taken[:, None].to(z.dtype))
        if dweight is not None:
            dweight.index_add_(0, action, (z * g_taken[:, None].to(z.dtype)).to(dweight.dtype))
            dweight = dweight.to(weight.dtype)
        if dbias is not None:
            dbias = dbias.index_add_(0, action, g_taken.to(dbias.dtype)).to(bias.dtype)
        return dz, dweight, dbias, None


class _Softmax:
    """Gradients through the table, gathered chunk by chunk: dz = P W, dW = P^T z, db = P^T 1, for what needs one.

    Sums over rows are kept in `wide`: bf16 would lose what the later chunks add.
    """

    def __init__(
        self, needs: tuple[bool, ...], z: Tensor, weight: Tensor, bias: Tensor | None, wide: torch.dtype
    ) -> None:
        self.inputs = z, weight
        self.z = torch.empty_like(z) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None

    def add(self, part: slice, table: Tensor) -> None:
        """table (rows of the part, V): softmax, or softmax times a weight a row."""
        z, weight = self.inputs
        if self.bias is not None:
            self.bias += table.sum(0)
        table = table.to(z.dtype)
        if self.z is not None:
            torch.mm(table, weight, out=self.z[part])
        if self.weight is not None:
            if self.weight.dtype == table.dtype:
                self.weight.addmm_(table.T, z[part])
            else:
                self.weight += table.T @ z[part]


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
