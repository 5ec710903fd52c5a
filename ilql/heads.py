"""Heads over the vocabulary. Decision: training never keeps a table of decisions x vocabulary; what a loss needs
of it is two numbers a decision, the taken action's logit and the log-sum-exp over all actions.

Where it is known beforehand in what proportion a loss weighs the rows' log-sum-exp, all of the softmax's gradient but
one factor is known before the loss is: `taken_and_lse` makes it in the forward, while a chunk of the table is at hand,
and backward scales it. That is three matrix products in all. Where the rows turn out to be weighed otherwise, backward
computes the table again, chunk by chunk (two products more), and is as exact. The taken action's share touches its own
row of the weights only.

A chunk is some rows by the whole vocabulary. Where even LEAST_ROWS rows of it are too large, it is cut along the
vocabulary too, with a running log-sum-exp, and the softmax costs a product more.

Shapes: D width of the trunk, H of what the vocabulary's weights read, V vocabulary, N rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilql import kernels

CHUNK = 1 << 26  # bytes of the largest table alive
LEAST_ROWS = 32  # fewer leave a matrix product waiting for the weights
CACHED = 1 << 18  # numbers of the softmax's working set: more does not stay in a core's cache


def _chunks(rows: int, vocabulary: int, itemsize: int) -> tuple[list[slice], list[slice]]:
    """Slices of nearly equal size, of the rows and of the vocabulary, whose tables stay within CHUNK."""
    most = max(1, CHUNK // itemsize)
    height = min(rows, LEAST_ROWS)
    width = vocabulary if height * vocabulary <= most else max(1, most // max(1, height))
    return _even(rows, max(1, most // width)), _even(vocabulary, width)


def _even(length: int, most: int) -> list[slice]:
    count = max(1, -(-length // most))
    step = -(-length // count)
    return [slice(i, min(i + step, length)) for i in range(0, length, max(1, step))]


class _Table:
    """logits = z W^T + b, chunk by chunk, in the precision `low` of z; sums are kept in `wide`."""

    def __init__(self, z: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.z = z
        self.wide = torch.promote_types(z.dtype, torch.float32)  # a sum over the vocabulary is not for bf16
        self.weight = weight.to(z.dtype)
        self.bias = None if bias is None else bias.to(z.dtype)
        self.rows, self.tiles = _chunks(len(z), len(weight), z.element_size())

    def logits(self, part: slice, tile: slice) -> Tensor:
        return F.linear(self.z[part], self.weight[tile], None if self.bias is None else self.bias[tile])

    def blocks(self, table: Tensor) -> Iterator[slice]:
        """Rows of a chunk that stay in the cache through the steps of a softmax."""
        most = max(1, CACHED // max(1, table.shape[1])) if table.device.type == "cpu" else len(table)
        yield from _even(len(table), most)


class _Gradients:
    """Gradients through the softmax, gathered chunk by chunk for what needs one: dz = P W, dW = P^T z, db = P^T 1."""

    def __init__(self, needs: tuple[bool, ...], table: _Table, weight: Tensor, bias: Tensor | None) -> None:
        self.table = table
        self.needed = any(needs)
        # Sums over rows are wide: bf16 would lose what the later chunks add.
        self.z = torch.zeros_like(table.z) if needs[0] else None
        self.weight = torch.empty_like(weight, dtype=table.wide) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=table.wide) if bias is not None and needs[2] else None
        if self.weight is not None and not table.rows:
            self.weight.zero_()

    def add(self, part: slice, tile: slice, first: bool, softmax: Tensor) -> None:
        """softmax (rows of the part, words of the tile), a weight a row within; first: whether no part came before."""
        z = self.table.z[part]
        if self.z is not None:
            self.z[part].addmm_(softmax, self.table.weight[tile])
        if self.weight is None:
            return
        into = self.weight[tile]
        if into.dtype == z.dtype:
            into.addmm_(softmax.T, z, beta=0.0 if first else 1.0)
            return
        for rows in _even(len(into), max(1, CACHED * 8 // z.shape[1])):
            product = softmax[:, rows].T @ z
            into[rows].copy_(product) if first else into[rows].add_(product.to(into.dtype))


def _softmax_(
    table: _Table, logits: Tensor, lse: Tensor | None, share: Tensor, bias: Tensor | None, make: bool
) -> Tensor:
    """Turn logits (n, V) into share * softmax in place (if `make`), add its sum over rows to `bias`; returns the rows'
    log-sum-exp. share (n) is a weight a row. lse (n): where it is known."""
    out = torch.empty(len(logits), dtype=table.wide, device=logits.device) if lse is None else lse
    if make and kernels.wanted(logits.device):
        kernels.softmax_(logits, out, share, lse is not None)
        if bias is not None:
            bias += logits.sum(0, dtype=table.wide)
        return out
    for rows in table.blocks(logits):
        block = logits[rows]
        x = block.to(table.wide)
        weight = share[rows, None]
        if lse is None:
            top = x.amax(1, keepdim=True)
            total = x.sub_(top).exp_().sum(1, keepdim=True)
            out[rows] = (total.log() + top).squeeze(1)
            weight = weight / total
        else:
            x.sub_(lse[rows, None]).exp_()
        if make:
            x.mul_(weight)
            if bias is not None:
                bias += x.sum(0)
            if x is not block:
                block.copy_(x)
    return out


def _running(table: _Table, part: slice, action: Tensor, taken: Tensor) -> Tensor:
    """log-sum-exp of the rows of a part over the vocabulary's tiles; fills in the taken logits."""
    lse = torch.full((len(action),), -torch.inf, dtype=table.wide, device=action.device)
    for tile in table.tiles:
        logits = table.logits(part, tile).to(table.wide)
        inside = (action >= tile.start) & (action < tile.stop)
        taken[inside] = logits[inside].gather(1, action[inside, None] - tile.start).squeeze(1)
        lse = torch.logaddexp(lse, logits.logsumexp(1))
    return lse


class _TakenAndLse(torch.autograd.Function):
    """q_a = z . W[a] + b[a] and lse = log sum exp(z W^T + b)."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor | None, action: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        table = _Table(z, weight, bias)
        taken = torch.empty(len(z), dtype=table.wide, device=z.device)
        lse = torch.empty_like(taken)
        made = _Gradients(ctx.needs_input_grad, table, weight, bias)
        whole = len(table.tiles) == 1
        for part in table.rows:
            if not whole:
                lse[part] = _running(table, part, action[part], taken[part])
                continue
            logits = table.logits(part, table.tiles[0])
            taken[part] = logits.gather(1, action[part, None]).squeeze(1).to(table.wide)
            lse[part] = _softmax_(table, logits, None, share[part], made.bias, made.needed)
            if made.needed:
                made.add(part, table.tiles[0], part.start == 0, logits)
        if made.needed and not whole:
            _again(table, made, lse, share)
        ctx.save_for_backward(z, weight, bias, action, share, lse)
        ctx.made = made if made.needed else None
        return taken, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_taken: Tensor, g_lse: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, bias, action, share, lse = ctx.saved_tensors
        made, ctx.made = ctx.made, None  # changed in place from here on, so a second backward makes its own
        scale = None if made is None else _proportion(g_lse, share)
        if scale is None:
            made = _Gradients(ctx.needs_input_grad, _Table(z, weight, bias), weight, bias)
            _again(made.table, made, lse, g_lse)
        elif scale != 1:
            for x in (made.z, made.weight, made.bias):
                if x is not None:
                    x.mul_(scale)
        u = g_taken[:, None]
        if made.z is not None:
            made.z += (u * weight[action].to(u.dtype)).to(z.dtype)
        if made.weight is not None:
            made.weight.index_add_(0, action, (u * z).to(made.weight.dtype))
        if made.bias is not None:
            made.bias.index_add_(0, action, g_taken.to(made.bias.dtype))
        dweight, dbias = _as(made.weight, weight), _as(made.bias, bias)
        return made.z, dweight, dbias, None, None


def _again(table: _Table, made: _Gradients, lse: Tensor, share: Tensor) -> None:
    """The softmax's gradients from tables that are computed anew."""
    for part in table.rows:
        for tile in table.tiles:
            logits = table.logits(part, tile)
            bias = None if made.bias is None else made.bias[tile]
            _softmax_(table, logits, lse[part], share[part], bias, True)
            made.add(part, tile, part.start == 0, logits)


def _proportion(g: Tensor, share: Tensor) -> float | None:
    """The factor between g (N) and share (N), but for rounding; None where there is none."""
    if not len(g):
        return 0.0
    most = int(share.abs().argmax())
    scale = g[most] / share[most]
    close = (g - scale * share).abs() <= 8 * torch.finfo(g.dtype).eps * g.abs()
    return float(scale) if bool(close.all()) else None


def _as(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)


def taken_and_lse(
    z: Tensor, weight: Tensor, bias: Tensor | None, action: Tensor, share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The taken action's logit and the log-sum-exp over the vocabulary.

    z (N, H), weight (V, H), bias (V) or None, action (N) in [0, V) -> two vectors (N), in float32 or wider. Exact and
    differentiable once in z, weight and bias; only a chunk of the (N, V) table is alive at a time. share (N): in what
    proportion the loss will weigh the log-sum-exps, None for all alike; a loss that weighs them otherwise gets its
    gradient all the same, by a longer way. Under autocast the products are made in its precision.
    """
    wide = torch.promote_types(z.dtype, torch.float32)
    if torch.is_autocast_enabled(z.device.type):
        z = z.to(torch.get_autocast_dtype(z.device.type))
    share = torch.ones(len(z), dtype=wide, device=z.device) if share is None else share.to(wide)
    return _TakenAndLse.apply(z, weight, bias, action, share)  # type: ignore[no-any-return]


class VocabularyHead(nn.Module):
    """Q(s, .) over the vocabulary, read at the state: `Linear(D, H) - ReLU - Linear(H, V)`, the papers' with H = 2D."""

    def __init__(self, width: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, vocabulary)

    def features(self, h: Tensor) -> Tensor:
        """What the vocabulary's weights read: (..., D) -> (..., H)."""
        return F.relu(self.hidden(h))

    def words(self) -> tuple[Tensor, Tensor]:
        """The vocabulary's weights (V, H) and biases (V)."""
        return self.out.weight, self.out.bias

    def forward(self, h: Tensor) -> Tensor:
        """All actions: (..., D) -> (..., V). For decoding and for tests; a loss has no use for it."""
        return F.linear(self.features(h), *self.words())

    def taken(self, h: Tensor, action: Tensor) -> Tensor:
        """The logged action only, O(N H): (N, D), (N) -> (N)."""
        weight, bias = self.words()
        z = self.features(h)
        return (z * weight[action].to(z.dtype)).sum(-1) + bias[action]

    def values(self, logits: Tensor) -> Tensor:
        """What logits of all actions say of their values (..., V): they are the values."""
        return logits

    def among(self, z: Tensor, action: Tensor) -> Tensor:
        """Some actions of each row, O(N C H) where that is less than all: features (N, H), (N, C) -> (N, C)."""
        weight, bias = self.words()
        if action.numel() >= len(weight):
            return F.linear(z, weight, bias).gather(1, action)
        wide = torch.promote_types(z.dtype, torch.float32)  # these few products are not worth rounding
        return (weight[action].to(wide) @ z[..., None].to(wide)).squeeze(2) + bias[action].to(wide)

    def taken_and_lse(self, h: Tensor, action: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logged action and the log-sum-exp over all: (N, D), (N) -> two (N). share: see `taken_and_lse`."""
        weight, bias = self.words()
        return taken_and_lse(self.features(h), weight, bias, action, share)


class TiedHead(VocabularyHead):
    """Q(s, .) read out by the language model's own output embedding E: `Linear(D, D) - ReLU - Linear(D, D)`, E z + b.

    It is another model than `VocabularyHead`, with D^2 weights in place of D V. The embedding is only read: what the
    critics learn moves their own layers and biases, never the actor's words.
    """

    def __init__(self, width: int, vocabulary: int, embedding: nn.Module) -> None:
        nn.Module.__init__(self)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self._embedding = (embedding,)  # in a tuple: no module of ours, or its weights would be saved twice

    def features(self, h: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(h)))

    def words(self) -> tuple[Tensor, Tensor]:
        weight: Any = self._embedding[0].weight
        return weight.detach(), self.bias


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
    if isinstance(head, TiedHead):
        nn.init.zeros_(head.bias)
