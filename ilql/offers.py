"""The replies that could have been, in a batch. Decision: a candidate is one more piece of the batch, the window of its
state with itself behind it; so the trunk computes once what candidates share with each other and with their dialogue,
and a candidate that says what was logged is the logged reply itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ilql.pieces import Pieces


class Offers(NamedTuple):
    """last (P): position of each candidate's last token; owner (P): the decision that it is offered to, ascending."""

    last: Tensor
    owner: Tensor


def lay(row: Mapping[str, Any], windows: Sequence[int], logged: Sequence[int], pieces: Pieces) -> list[list[int]]:
    """Positions of the last tokens of the distinct candidates of each state of a dialogue, (E) lists.

    windows (E): where the window of each state begins. logged (n): positions of the last tokens of the logged actions.
    A state without candidates is offered its logged reply.
    """
    tokens = np.ascontiguousarray(row["tokens"], np.int32).tobytes()
    start, end = row["start"].tolist(), row["end"].tolist()
    places: list[list[int]] = []
    for i, begin in enumerate(windows):
        at = start[i] if i < len(start) else len(tokens) // 4
        state = (pieces.bos if begin else b"") + tokens[4 * begin : 4 * at]
        said = tokens[4 * at : 4 * end[i]] if i < len(start) else None
        found: dict[bytes, int] = {}
        for candidate in row["proposals"][i]:
            words = np.ascontiguousarray(candidate, np.int32).tobytes()
            if words not in found:
                piece = state + words
                found[words] = logged[i] if words == said else pieces.lay(piece) + len(piece) // 4 - 1
        places.append(list(found.values()) or list(logged[i : i + 1]))
    return places


def here(places: Sequence[Sequence[int]], logged: Sequence[int], keep: int, first: int) -> list[tuple[int, int]]:
    """What a dialogue's first `keep` decisions, which number `first` and on, could have said but for what they did:
    positions, each with its decision."""
    return [(p, first + i) for i in range(keep) for p in places[i] if p != logged[i]]


def after(places: Sequence[Sequence[int]], keep: int, first: int) -> list[tuple[int, int]]:
    """What could be said at their next states, likewise."""
    return [(p, first + i) for i in range(min(keep, len(places) - 1)) for p in places[i + 1]]


def gather(pairs: Iterable[tuple[int, int]]) -> Offers:
    """Positions with their decisions as tensors."""
    last, owner = torch.tensor(list(pairs), dtype=torch.long).reshape(-1, 2).T.contiguous()
    return Offers(last, owner)
