"""Attention within the pieces of a packed batch. Decision: linear layers see one (T, D) matrix without padding, and
only attention knows where a dialogue ends, through an attention function that transformers' models call by name.

Each segment of the batch (`ilql.prefix`) is a call of its own on views of queries, keys and values, and without a mask
unless it has ancestors, whose keys are gathered. Short neighbours share a call under a block mask. Nothing is padded,
and nothing of a piece can reach another piece.
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

NAME = "ilql_packed"
LONGEST_TABLE = 512  # queries of a call whose scores may be kept for backward
SHARED = 64  # tokens of short neighbours that share a call
CHUNK = 256  # queries of a branch that share a call: under a mask, what lies above the diagonal costs time too


class Call(NamedTuple):
    """Consecutive queries behind the same ancestors."""

    lengths: tuple[int, ...]  # of the segments
    depth: int  # of ancestors, which are the first keys

    @property
    def queries(self) -> int:
        return sum(self.lengths)

    def seen(self, window: int | None) -> np.ndarray | None:
        """Which keys each query sees, (queries, depth + queries); None where that is all of them up to itself."""
        if len(self.lengths) == 1 and not self.depth and (window is None or self.queries <= window):
            return None
        segment = np.repeat(np.arange(len(self.lengths)), self.lengths)
        place = np.concatenate([np.arange(self.depth, self.depth + n) for n in self.lengths])
        distance = place[:, None] - np.append(np.arange(self.depth), place)
        near = (distance >= 0) & (distance < (window or np.inf))
        near[:, self.depth :] &= segment[:, None] == segment
        return near


class Plan:
    """How to attend within the segments of a batch; made once and used by every layer."""

    def __init__(self, segments: Segments, device: torch.device | str) -> None:
        self.calls: list[Call] = []
        rows: list[np.ndarray] = []
        neighbour = None
        for path, length, parent, depth in zip(paths(segments), *segments, strict=True):
            if neighbour == (parent, depth) and self.calls[-1].queries + length <= SHARED:
                self.calls[-1] = Call((*self.calls[-1].lengths, length), depth)
                if depth:
                    rows[-1] = np.append(rows[-1], path[depth:])
                continue
            step = CHUNK if depth else length
            for begin in range(0, length, step):
                end = min(length, begin + step)
                self.calls.append(Call((end - begin,), depth + begin))
                if depth:
                    rows.append(path[: depth + end])
            neighbour = (parent, depth) if length <= SHARED else None
        self.sizes = [call.queries for call in self.calls]
        self.reach = [len(keys) for keys in rows]  # keys of the calls that have ancestors
        self.rows = torch.from_numpy(np.concatenate(rows)).to(device) if rows else None
        self.device = device
        self._masks: dict[int | None, list[Tensor | None]] = {}

    def masks(self, window: int | None) -> list[Tensor | None]:
        """Of every call; calls of one shape share one."""
        if window not in self._masks:
            seen = {call: call.seen(window) for call in dict.fromkeys(self.calls)}
            made = {c: None if m is None else torch.from_numpy(m).to(self.device) for c, m in seen.items()}
            self._masks[window] = [made[call] for call in self.calls]
        return self._masks[window]

    def keys(self, x: Tensor) -> list[Tensor]:
        """What the queries of each call attend to, of keys or values (1, heads, T, d)."""
        own = x.split(self.sizes, 2)
        if self.rows is None:
            return list(own)
        ours = x[0].transpose(0, 1).index_select(0, self.rows).transpose(0, 1)[None].split(self.reach, 2)
        gathered = iter(ours)
        return [next(gathered) if call.depth else part for call, part in zip(self.calls, own, strict=True)]


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
    queries = query.split(packed_plan.sizes, 2)
    masks = packed_plan.masks(sliding_window)
    attend = _products if _by_products(query, dropout) else _fused
    triples = zip(queries, packed_plan.keys(key), packed_plan.keys(value), masks, strict=True)
    parts = [attend(q, k, v, mask, scaling, dropout) for q, k, v, mask in triples]
    return torch.cat([part.transpose(1, 2) for part in parts], 1), None


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float) -> Tensor:
    """One call of torch's own attention: (1, heads, L, d) of queries, (1, kv heads, S, d) of keys and values."""
    shared = q.shape[1] != k.shape[1]  # grouped queries
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, mask is None, scale=scaling, enable_gqa=shared)


def _by_products(query: Tensor, dropout: float) -> bool:
    """Whether to attend by plain matrix products: CPUs multiply bf16 several times faster than their fused attention
    goes backward in it."""
    return query.dtype == torch.bfloat16 and query.device.type == "cpu" and not dropout


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, dropout: float) -> Tensor:
    """The same by products of (heads, L, S), which has to be small enough to be kept; long pieces go the fused way."""
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
    scores = torch.baddbmm(hidden, q[0], k[0].transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v[0])[None]


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
    """Whether the trunk calls its attention by name; others (recurrent ones, old remote code) run padded instead."""
    return bool(getattr(trunk, "_supports_attention_backend", False))
