"""Attention within the pieces of a packed batch. Decision: linear layers see one (T, D) matrix without padding, and
only attention knows where a dialogue ends, through an attention function that transformers' models call by name.

Pieces of like length go through one call, padded at their right end to the longest of them: under a causal mask no
real query sees that padding, so no mask tensor exists. Nothing of a piece can reach another piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

NAME = "ilql_packed"
SLACK = 1.25  # pieces up to this much longer than the group's shortest share a call


class Group(NamedTuple):
    """Pieces that share a call: where their tokens lie (G, L), padding included, and which of the G * L are real."""

    place: Tensor
    real: Tensor


class Plan(NamedTuple):
    """How to attend within the pieces; made once a batch and used by every layer."""

    groups: list[Group]
    inverse: Tensor | None  # from the groups' order back to the batch's; None where nothing moves
    lengths: Sequence[int]


def plan(lengths: Sequence[int], device: torch.device | str) -> Plan:
    """Group pieces of like length. lengths: tokens of each piece, in the order in which they are packed."""
    sizes = np.asarray(lengths)
    starts = np.cumsum(sizes) - sizes
    order = np.argsort(sizes, kind="stable")
    groups: list[Group] = []
    begin = 0
    placed: list[np.ndarray] = []
    while begin < len(order):
        end = int(np.searchsorted(sizes[order], int(sizes[order[begin]] * SLACK), side="right"))
        members = np.sort(order[begin:end])
        longest = int(sizes[members].max())
        column = np.arange(longest)
        real = column < sizes[members, None]
        index = starts[members, None] + np.minimum(column, sizes[members, None] - 1)
        placed.append(index[real])
        groups.append(Group(torch.from_numpy(index).to(device), torch.from_numpy(real).to(device)))
        begin = end
    flat = np.concatenate(placed)
    inverse = None if (flat == np.arange(len(flat))).all() else torch.from_numpy(np.argsort(flat)).to(device)
    return Plan(groups, inverse, lengths)


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
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, d)
    parts = []
    for group in packed_plan.groups:
        a, b, c = (x[group.place].transpose(1, 2) for x in (q, k, v))  # (G, heads, L, d)
        mask = None
        if sliding_window is not None and a.shape[2] > sliding_window:
            place = torch.arange(a.shape[2], device=a.device)
            distance = place[:, None] - place
            mask = (distance >= 0) & (distance < sliding_window)
        out = F.scaled_dot_product_attention(
            a, b, c, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=a.shape[1] != b.shape[1]
        )
        parts.append(out.transpose(1, 2)[group.real])  # (real tokens, heads, d)
    flat = torch.cat(parts)
    return (flat if packed_plan.inverse is None else flat[packed_plan.inverse])[None], None


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
