"""Trunks whose past is a state (Mamba and its like, and hybrids with attention). Decision: known by what transformers
says of a family, and never packed: behind a dialogue in one row, the state would run on into the next. Dialogues are
rows of their own, padded behind, where padding lies in the future of every token.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

PASTS = ("past_key_values", "cache_params")  # what families call the past that they take and give


def is_recurrent(trunk: PreTrainedModel) -> bool:
    """Whether some layer keeps a state: the family is marked stateful, or its layers are not all attention."""
    kinds = getattr(trunk.config, "layer_types", None) or ()
    attention = all("attention" in kind and "linear" not in kind for kind in kinds)
    return bool(getattr(trunk, "_is_stateful", False)) or not attention


def past_name(trunk: Any) -> str | None:
    """Which of `PASTS` the trunk's forward takes; None where it is neither."""
    taken = inspect.signature(trunk.forward).parameters
    return next((name for name in PASTS if name in taken), None)


def taken(trunk: Any, **given: Any) -> dict[str, Any]:
    """Those arguments that the trunk's forward names: recurrent ones know no positions, or fall over them."""
    names = inspect.signature(trunk.forward).parameters
    return {name: value for name, value in given.items() if name in names}


def read(trunk: Any, given: dict[str, Any]) -> Any:
    """What the trunk gives for whole rows, without a past. given: arguments of a forward; where `attention_mask` (B, T)
    tells of padding in front, the trunk reads it behind."""
    mask = given.get("attention_mask")
    if mask is None or bool((mask[:, 0] != 0).all()):
        return trunk(**taken(trunk, **given, use_cache=False))
    first = mask.ne(0).int().argmax(1)  # (B) of each row's first token
    place = torch.arange(mask.shape[1], device=mask.device)
    moved = dict(given)
    for name in ("input_ids", "inputs_embeds", "attention_mask", "position_ids"):
        if given.get(name) is not None:
            moved[name] = _take(given[name], place + first[:, None])
    out = trunk(**taken(trunk, **moved, use_cache=False))
    out.last_hidden_state = _take(out.last_hidden_state, place - first[:, None])
    return out


def _take(x: Tensor, place: Tensor) -> Tensor:
    """x (B, T, ...) at places (B, T), around the end."""
    rows = torch.arange(len(x), device=x.device)[:, None]
    return x[rows, place % x.shape[1]]
