"""Past keys and values of a batch of prompts, row by row. Decision: room for all tokens is made once and rows leave as
they finish (the last row takes the place of one that left), so that a step copies nothing of the past and computes no
row whose answer is known.

Rows lie right-aligned, so that all write a step's token into the same column; the columns before a shorter prompt are
masked. `LeanRows` decodes a trunk that `ilql.lean` has written out, `TrunkRows` any other as transformers has it, and
`AnewRows` one whose past cannot be kept so: it reads everything again for every token. `LeanTree` and `TrunkTree` do
the same for prompts that go on in several ways at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ilql import packed, recurrent
from ilql.lean import Lean, attend_packed
from ilql.prefix import apart


class LeanRows:
    """prompts: token ids, one list a row. room: tokens that each row may take beyond its prompt.

    Keys and values are kept in float32 at least on a CPU, whose attention is slow in low precision.
    """

    past: Tensor  # (layers, B, 2, kv heads, columns, d)
    position: Tensor  # (B), of each row's next token
    mask: Tensor  # (B, 1, 1, columns), -inf before a shorter prompt

    def __init__(
        self, lean: Lean, prompts: Sequence[Sequence[int]], room: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.lean, self.device = lean, device
        self.dtype = torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype
        self.rows = [tuple(p) for p in prompts]
        self.filled = max(map(len, self.rows))  # columns
        self.columns = self.filled + room

    def prefill(self) -> Tensor:
        """h at each prompt's last token (B, D). Equal prompts are computed once."""
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(self.rows))}
        lengths = torch.tensor([len(p) for p in place])
        plan = packed.Plan(apart(lengths.tolist()), self.device)
        position = torch.cat([torch.arange(len(p)) for p in place]).to(self.device)
        last = (lengths.cumsum(0) - 1).to(self.device)
        row = torch.arange(len(place)).repeat_interleave(lengths).to(self.device)
        lengths = lengths.to(self.device)
        column = position + (self.filled - lengths)[row]
        tokens = torch.tensor([t for p in place for t in p], device=self.device)
        shape = (self.lean.layers, len(place), 2, self.lean.kv_heads, self.columns, self.lean.head_width)
        self.past = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self._begin(lengths)

        def attend(layer: int, q: Tensor, kv: Tensor, scale: float) -> Tensor:
            self.past[layer][row, :, :, column] = kv.to(self.dtype)
            if len(q) < len(kv):  # the last layer is asked for the last tokens only
                keys, values = self.past[layer].narrow(3, 0, self.filled).unbind(1)
                return self._read(keys, values, q, scale, self.mask.narrow(3, 0, self.filled))
            return attend_packed(plan, q, kv, scale)

        hidden = self.lean.forward(tokens, position, attend, last)
        if len(place) == len(self.rows):
            return hidden
        which = torch.tensor([place[p] for p in self.rows], device=self.device)
        self.past = self.past[:, which]
        self._begin(lengths[which])
        return hidden[which]

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row: (B) -> h (B, D)."""
        newest = self.past.select(4, self.filled).unbind(0)
        self.filled += 1
        mask = self.mask.narrow(3, 0, self.filled)
        so_far = self.past.narrow(4, 0, self.filled).unbind(0)

        def attend(layer: int, q: Tensor, kv: Tensor, scale: float) -> Tensor:
            newest[layer].copy_(kv)
            keys, values = so_far[layer].unbind(1)
            return self._read(keys, values, q, scale, mask)

        hidden = self.lean.forward(tokens, self.position, attend, None)
        self.position = self.position + 1
        return hidden

    def keep(self, index: Tensor) -> None:
        """Let the rows be those of `index`, in its order; the others leave."""
        moved = (index != torch.arange(len(index), device=self.device)).nonzero().squeeze(1)
        self.past[:, moved] = self.past[:, index[moved]]
        self.past = self.past[:, : len(index)]
        self.mask, self.position = self.mask[index], self.position[index]

    def _begin(self, lengths: Tensor) -> None:
        self.position = lengths
        empty = torch.arange(self.columns, device=self.device) < (self.filled - lengths)[:, None]
        mask = torch.zeros(empty.shape, dtype=self.dtype, device=self.device)
        self.mask = mask.masked_fill_(empty, -torch.inf)[:, None, None]

    def _read(self, keys: Tensor, values: Tensor, q: Tensor, scale: float, mask: Tensor) -> Tensor:
        """One query a row, of all columns so far: keys (B, kv heads, n, d), q (B, heads, d) -> (B, heads * d)."""
        shared = q.unflatten(1, (keys.shape[1], -1)).to(self.dtype)  # the queries of one key stand together
        out = F.scaled_dot_product_attention(shared, keys, values, mask, scale=scale)
        return out.reshape(len(q), -1).to(q.dtype)


class TrunkRows:
    """The same by the trunk's own forward and cache."""

    def __init__(self, lm: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self.trunk: Any = lm.base_model
        longest = max(len(p) for p in prompts)
        self.tokens = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=lm.device)
        self.real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=lm.device)
        self.takes_position = "position_ids" in inspect.signature(self.trunk.forward).parameters
        self.name = recurrent.past_name(self.trunk) or recurrent.PASTS[0]
        self.recurs = recurrent.is_recurrent(lm)
        self.past: Any = None

    def prefill(self) -> Tensor:
        """h at each prompt's last token (B, D)."""
        return self._forward(self.tokens, (self.real.cumsum(1) - 1).clamp_(min=0))

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row: (B) -> h (B, D)."""
        self.real = F.pad(self.real, (0, 1), value=1)
        return self._forward(tokens[:, None], self.real.sum(1, keepdim=True) - 1)

    def keep(self, index: Tensor) -> None:
        """Let the rows be those of `index`, in its order; the others leave."""
        self.real = self.real[index]
        # layers with a state know no batch_select_indices, but this, which does the same
        self.past.reorder_cache(index) if self.recurs else self.past.batch_select_indices(index)

    def _forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        extra: dict[str, Any] = {"position_ids": position} if self.takes_position else {}
        if self.past is None or self.name != "cache_params":  # states alone have forgotten the padding before them
            extra["attention_mask"] = self.real
        out = self.trunk(input_ids=tokens, use_cache=True, **{self.name: self.past}, **extra)
        self.past = getattr(out, self.name)
        return out.last_hidden_state[:, -1]  # type: ignore[no-any-return]


class LeanTree:
    """Prompts that each go on in several branches. Decision: all keys and values of a prompt's branches lie in one row
    and never move; what a branch sees of them is its mask. So a prompt is stored and read once for all its branches,
    and to branch copies masks only.

    prompts: token ids, one list each. room: tokens that all branches of a prompt may take in all, dead ones included.
    """

    past: Tensor  # (layers, P, 2, kv heads, columns, d)
    position: Tensor  # (P), of the next token
    mask: Tensor  # (P, branches, columns), 0 where a branch has been, else -inf

    def __init__(
        self, lean: Lean, prompts: Sequence[Sequence[int]], room: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.lean, self.room = lean, room
        self.root = LeanRows(lean, prompts, 0, dtype, device)

    def prefill(self) -> Tensor:
        """h at each prompt's last token (P, D). Equal prompts are computed once."""
        hidden = self.root.prefill()
        past, self.filled, self.position = self.root.past, self.root.filled, self.root.position
        self.past = past.new_zeros((*past.shape[:4], self.filled + self.room, past.shape[5]))
        self.past.narrow(4, 0, self.filled).copy_(past)
        self.mask = past.new_full((past.shape[1], 1, self.filled + self.room), -torch.inf)
        self.mask.narrow(2, 0, self.filled).copy_(self.root.mask[:, 0])
        del self.root
        return hidden

    def branch(self, prompts: Tensor | None, parent: Tensor) -> None:
        """Let the prompts be those of `prompts` (P), in its order, None for all, with branches that go on where those
        of the numbers `parent` (P, branches) end. The others leave."""
        if prompts is not None:
            self._keep(prompts)
        self.mask = self.mask[torch.arange(len(parent), device=parent.device)[:, None], parent]

    def _keep(self, prompts: Tensor) -> None:
        moved = (prompts != torch.arange(len(prompts), device=prompts.device)).nonzero().squeeze(1)
        if len(moved):
            so_far = self.past.narrow(4, 0, self.filled)
            so_far[:, moved] = so_far[:, prompts[moved]]
        self.past = self.past[:, : len(prompts)]
        self.position, self.mask = self.position[prompts], self.mask[prompts]

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each branch: (P, branches) -> h (P * branches, D)."""
        prompts, width = tokens.shape
        newest = self.past.narrow(4, self.filled, width).unbind(0)
        self.mask.narrow(2, self.filled, width).diagonal(dim1=1, dim2=2).zero_()
        self.filled += width
        groups = -1  # queries of one key
        mask: Tensor | None = None
        so_far = self.past.narrow(4, 0, self.filled).unbind(0)

        def attend(layer: int, q: Tensor, kv: Tensor, scale: float) -> Tensor:
            nonlocal groups, mask
            newest[layer].copy_(kv.unflatten(0, (prompts, width)).permute(0, 2, 3, 1, 4))
            keys, values = so_far[layer].unbind(1)
            if mask is None:
                groups = q.shape[1] // keys.shape[1]
                mask = self.mask.narrow(2, 0, self.filled)[:, None]
                mask = mask if groups == 1 else mask.repeat(1, 1, groups, 1)
            shared = q.to(self.past.dtype).unflatten(0, (prompts, width)).unflatten(2, (-1, groups))
            shared = shared.permute(0, 2, 3, 1, 4).flatten(2, 3)  # (P, kv heads, groups * branches, d)
            out = F.scaled_dot_product_attention(shared, keys, values, mask, scale=scale)
            return out.unflatten(2, (groups, width)).permute(0, 3, 1, 2, 4).reshape(len(q), -1).to(q.dtype)

        hidden = self.lean.forward(tokens.flatten(), self.position.repeat_interleave(width), attend, None)
        self.position = self.position + 1
        return hidden


class TrunkTree:
    """The same by the trunk's own forward and cache, of which every branch has a copy."""

    def __init__(self, lm: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self.rows, self.width = rows_of(lm)(lm, prompts, pad), 1

    def prefill(self) -> Tensor:
        return self.rows.prefill()

    def branch(self, prompts: Tensor | None, parent: Tensor) -> None:
        prompts = torch.arange(len(parent), device=parent.device) if prompts is None else prompts
        self.rows.keep((prompts[:, None] * self.width + parent).flatten())
        self.width = parent.shape[1]

    def step(self, tokens: Tensor) -> Tensor:
        return self.rows.step(tokens.flatten())


class AnewRows:
    """The same without any past: whole rows, padded behind."""

    def __init__(self, lm: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self.trunk: Any = lm.base_model
        self.pad = pad
        self.rows = [torch.tensor(p, device=lm.device) for p in prompts]

    def prefill(self) -> Tensor:
        """h at each prompt's last token (B, D)."""
        ids = torch.nn.utils.rnn.pad_sequence(self.rows, batch_first=True, padding_value=self.pad)
        last = torch.tensor([len(row) - 1 for row in self.rows], device=ids.device)
        real = (torch.arange(ids.shape[1], device=ids.device) <= last[:, None]).long()
        out = self.trunk(**recurrent.taken(self.trunk, input_ids=ids, attention_mask=real, use_cache=False))
        return out.last_hidden_state[torch.arange(len(last), device=ids.device), last]  # type: ignore[no-any-return]

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row: (B) -> h (B, D)."""
        self.rows = [torch.cat([row, token]) for row, token in zip(self.rows, tokens.split(1), strict=True)]
        return self.prefill()

    def keep(self, index: Tensor) -> None:
        """Let the rows be those of `index`, in its order; the others leave."""
        self.rows = [self.rows[i] for i in index.tolist()]


@torch.no_grad()
def rows_of(lm: PreTrainedModel) -> type[TrunkRows] | type[AnewRows]:
    """How to decode a trunk by its own forward. A recurrent one is tried on rows of unequal length: what it keeps of
    them, padded in front, must give what whole rows give."""
    if not recurrent.is_recurrent(lm):
        return TrunkRows
    made: list[Tensor] = []
    for kind in (AnewRows, TrunkRows):
        try:
            rows = kind(lm, [[0, 1, 2, 3, 1], [2, 1], [1, 3, 2]], 0)
            made.append(rows.prefill()[:2])
            rows.keep(torch.tensor([1, 0], device=lm.device))
            made += [rows.step(torch.tensor(tokens, device=lm.device)) for tokens in ([3, 1], [2, 2])]
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            if kind is AnewRows:
                raise
            return AnewRows
    want, have = torch.cat(made[:3]), torch.cat(made[3:])
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-4}.get(want.dtype, 0.1) * float(want.abs().max())
    return TrunkRows if float((have - want).abs().max()) <= tolerance else AnewRows
