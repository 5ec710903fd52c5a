"""Attention within the pieces of a packed batch. Decision: linear layers see one (T, D) matrix without padding, and
only attention knows where a dialogue ends, through an attention function that transformers' models call by name.

Segments of the batch (`ilql.prefix`) without ancestors lie beside each other in rectangles, near-equal lengths in one
call, without a mask: what fills up a shorter one lies in the future of all of its tokens. Branches are calls of their
own behind their ancestors' gathered keys, short neighbours together under a block mask. Nothing of a piece can reach
another piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from ilql.prefix import Segments, paths
from ilql.recurrent import is_recurrent

NAME = "ilql_packed"
LONGEST_TABLE = 512  # queries of a call whose scores may be kept for backward
CALL = 64  # a call costs about what attention among so many tokens does
SHARED = 64  # tokens of short branches that share a call
CHUNK = 256  # queries of a branch that share a call: under a mask, what lies above the diagonal costs time too


class Rectangle(NamedTuple):
    """Segments without ancestors, each a row."""

    rows: int
    width: int

    @property
    def queries(self) -> int:
        return self.rows * self.width

    def takes(self, length: int) -> bool:
        """Whether a row for so many tokens is cheaper than another call, and at least half full."""
        return length <= self.width <= 2 * length and self.width**2 - length**2 <= CALL**2

    def seen(self, window: int | None) -> np.ndarray | None:
        """Which keys of its row each query sees, (width, width); None where that is all of them up to itself."""
        if window is None or self.width <= window:
            return None
        distance = np.subtract.outer(np.arange(self.width), np.arange(self.width))
        return (distance >= 0) & (distance < window)


class Branches(NamedTuple):
    """Consecutive segments behind the same ancestors."""

    lengths: tuple[int, ...]
    depth: int  # of ancestors, which are the first keys

    @property
    def queries(self) -> int:
        return sum(self.lengths)

    def seen(self, window: int | None) -> np.ndarray:
        """Which keys each query sees, (queries, depth + queries)."""
        segment = np.repeat(np.arange(len(self.lengths)), self.lengths)
        place = np.concatenate([np.arange(self.depth, self.depth + n) for n in self.lengths])
        distance = place[:, None] - np.append(np.arange(self.depth), place)
        near = (distance >= 0) & (distance < (window or np.inf))
        near[:, self.depth :] &= segment[:, None] == segment
        return near


class Plan:
    """How to attend within the segments of a batch; made once and used by every layer."""

    def __init__(self, segments: Segments, device: torch.device | str) -> None:
        rectangles, roots = _rectangles(segments)
        branches, reach = _branches(segments)
        self.calls: list[Rectangle | Branches] = [*rectangles, *branches]
        self.sizes = [call.queries for call in self.calls]
        self.reach = [len(keys) for keys in reach]  # keys of the branches
        self.rows = torch.from_numpy(np.concatenate(reach)).to(device) if reach else None
        own = [keys[call.depth :] for call, keys in zip(branches, reach, strict=True)]
        laid = np.concatenate([*roots, *own])
        self.layout = None if (laid == np.arange(len(laid))).all() else Layout(laid, device)
        self.device = device
        self._masks: dict[int | None, list[Tensor | None]] = {}

    def masks(self, window: int | None) -> list[Tensor | None]:
        """Of every call; calls of one shape share one."""
        if window not in self._masks:
            seen = {call: call.seen(window) for call in dict.fromkeys(self.calls)}
            made = {c: None if m is None else torch.from_numpy(m).to(self.device) for c, m in seen.items()}
            self._masks[window] = [made[call] for call in self.calls]
        return self._masks[window]

    def split(self, x: Tensor) -> list[Tensor]:
        """What each call has of queries, keys or values (1, heads, T, d): (rows, heads, width, d)."""
        parts = (x if self.layout is None else self.layout.lay(x)).split(self.sizes, 2)
        shapes = [(c.rows, c.width) if isinstance(c, Rectangle) else (1, c.queries) for c in self.calls]
        return [part[0].unflatten(1, shape).transpose(0, 1) for part, shape in zip(parts, shapes, strict=True)]

    def keys(self, x: Tensor) -> list[Tensor]:
        """What the queries of each call attend to, of keys or values, likewise."""
        own = self.split(x)
        if self.rows is None:
            return own
        reached = x[0].transpose(0, 1).index_select(0, self.rows).transpose(0, 1)[None].split(self.reach, 2)
        return own[: len(own) - len(self.reach)] + list(reached)

    def join(self, parts: list[Tensor]) -> Tensor:
        """The calls' results (rows, heads, width, d) as those of the batch: (1, T, heads, d)."""
        laid = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])
        return (laid if self.layout is None else self.layout.take(laid))[None]


def _rectangles(segments: Segments) -> tuple[list[Rectangle], list[np.ndarray]]:
    """Of the segments without ancestors, the longest first; and the rows of the batch in them, -1 for padding."""
    begins = np.cumsum([0, *segments.lengths])
    made: list[Rectangle] = []
    rows: list[np.ndarray] = []
    roots = [i for i, depth in enumerate(segments.depths) if not depth]
    for i in sorted(roots, key=lambda i: -segments.lengths[i]):
        length = segments.lengths[i]
        if made and made[-1].takes(length):
            made[-1] = Rectangle(made[-1].rows + 1, made[-1].width)
        else:
            made.append(Rectangle(1, length))
        rows += [np.arange(begins[i], begins[i + 1]), np.full(made[-1].width - length, -1)]
    return made, rows


def _branches(segments: Segments) -> tuple[list[Branches], list[np.ndarray]]:
    """Of the segments with ancestors; and the rows of the batch that are their keys."""
    made: list[Branches] = []
    rows: list[np.ndarray] = []
    neighbour = None
    for path, length, parent, depth in zip(paths(segments), *segments, strict=True):
        if depth and neighbour == (parent, depth) and made[-1].queries + length <= SHARED:
            made[-1] = Branches((*made[-1].lengths, length), depth)
            rows[-1] = np.append(rows[-1], path[depth:])
            continue
        for begin in range(0, length if depth else 0, CHUNK):
            end = min(length, begin + CHUNK)
            made.append(Branches((end - begin,), depth + begin))
            rows.append(path[: depth + end])
        neighbour = (parent, depth) if depth and length <= SHARED else None
    return made, rows


class Layout:
    """The rows of a batch in the order of its calls, with padding. Both ways are gathers, also in backward, where the
    gradient at padding is 0 or dropped: adding up by index takes several times as long."""

    def __init__(self, laid: np.ndarray, device: torch.device | str) -> None:
        """laid: the row of the batch at each place, -1 for padding."""
        real = laid >= 0
        where = np.empty(int(real.sum()), np.int64)
        where[laid[real]] = np.flatnonzero(real)
        self.there = torch.from_numpy(np.where(real, laid, 0)).to(device)
        self.back = torch.from_numpy(where).to(device)
        self.real = None if real.all() else torch.from_numpy(real).to(device)[:, None, None]

    def lay(self, x: Tensor) -> Tensor:
        """(1, heads, T, d) -> (1, heads, places, d)."""
        return _Lay.apply(x[0].transpose(0, 1), self).transpose(0, 1)[None]

    def take(self, x: Tensor) -> Tensor:
        """(places, heads, d) -> (T, heads, d)."""
        return _Take.apply(x, self)


class _Lay(torch.autograd.Function):
    """No query looks at a key of padding, and nothing reads a query of it: their gradients are 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.there)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.layout.back), None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        laid = grad.index_select(0, ctx.layout.there)
        return laid if ctx.layout.real is None else laid * ctx.layout.real, None


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_plan: Plan | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The interface of transformers: query (1, heads, T, d), key, value (1, kv heads, T, d) -> (1, T, heads, d)."""
    if packed_plan is None:
        raise RuntimeError("packed attention was called without a plan: the trunk dropped the argument `packed_plan`")
    if softcap is not None:
        raise NotImplementedError("this trunk caps its attention logits, which packed training does not support")
    attend = _products if _by_products(query, dropout) else _fused
    calls = zip(
        packed_plan.split(query),
        packed_plan.keys(key),
        packed_plan.keys(value),
        packed_plan.masks(sliding_window),
        strict=True,
    )
    return packed_plan.join([attend(q, k, v, mask, scaling, dropout) for q, k, v, mask in calls]), None


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float) -> Tensor:
    """One call of torch's own attention: (B, heads, L, d) of queries, (B, kv heads, S, d) of keys and values."""
    shared = q.shape[1] != k.shape[1]  # grouped queries
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, mask is None, scale=scaling, enable_gqa=shared)


def _by_products(query: Tensor, dropout: float) -> bool:
    """Whether to attend by plain matrix products: CPUs multiply bf16 several times faster than their fused attention
    goes backward in it."""
    return query.dtype == torch.bfloat16 and query.device.type == "cpu" and not dropout


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float) -> Tensor:
    """The same by products of (B heads, L, S), small enough to be kept; long pieces go the fused way."""
    if q.shape[2] > LONGEST_TABLE:
        return _fused(q, k, v, mask, scaling, dropout)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    hidden = q.new_zeros(q.shape[2], k.shape[2])
    if mask is None:
        hidden.fill_(-torch.inf).triu_(1)
    else:
        hidden.masked_fill_(~mask, -torch.inf)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    shape = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, shape)


AttentionInterface.register(NAME, attention)


@contextmanager
def packed(trunk: PreTrainedModel) -> Iterator[None]:
    """Let the trunk attend by plan within this block. No mask function is registered under the name, so no model
    builds a mask of its own."""
    config = trunk.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def supports(trunk: PreTrainedModel) -> bool:
    """Whether the trunk calls its attention by name and keeps no state; others run padded instead."""
    return bool(getattr(trunk, "_supports_attention_backend", False)) and not is_recurrent(trunk)
