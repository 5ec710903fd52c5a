"""Pairs made of dialogues with rewards, so that the truth behind them is known. Decision: as in Ouyang et al. 2022, a
labeler ranks K dialogues that begin alike, and every two of them are a pair. The labeler here is Bradley-Terry's: the
dialogue with return R is preferred to one with R' with probability sigmoid((R - R') / noise), without noise where
R > R'.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from datasets_prep.rejects import Reject
from datasets_prep.split import group
from ilql.types import Episode, Turn


def compare(
    dialogues: Iterable[Episode | Reject], *, seed: int, ranked: int, noise: float
) -> Iterator[tuple[Episode, Episode] | Reject]:
    """The preferred and the other dialogue of each pair; rejects as they come.

    ranked: dialogues that are compared with each other. They begin with the same observation, and are of one group
    where the corpus keeps several dialogues together. Equal dialogues, and without noise those of equal return, are no
    pair; nor has a dialogue one that is alone with its beginning.
    """
    alike: dict[tuple[Any, ...], list[Episode]] = defaultdict(list)
    for one in dialogues:
        if isinstance(one, Reject):
            yield one
        else:
            alike[_beginning(one)].append(one)
    rng = random.Random(f"compare/{seed}")
    for some in alike.values():
        for k in range(0, len(some), ranked):
            block = some[k : k + ranked]
            for one, other in combinations(block, 2):
                yield from _pair(one, other, block[0], noise, rng)


def _beginning(one: Episode) -> tuple[Any, ...]:
    """The turns before the agent's first, and what splits keep together beyond the dialogue itself."""
    first = next((k for k, turn in enumerate(one.turns) if turn.is_action), len(one.turns))
    own = one.meta.get("group")
    return tuple(_said(turn) for turn in one.turns[:first]), None if own in (None, one.id) else group(one.id, one.meta)


def _said(turn: Turn) -> tuple[str, str, str]:
    return turn.role, turn.text, repr(turn.tool_calls)


def _pair(
    one: Episode, other: Episode, first: Episode, noise: float, rng: random.Random
) -> Iterator[tuple[Episode, Episode]]:
    if list(map(_said, one.turns)) == list(map(_said, other.turns)):
        return
    gain = one.total_reward - other.total_reward
    if noise:
        wins = rng.random() < (1 + math.tanh(gain / (2 * noise))) / 2
    elif gain:
        wins = gain > 0
    else:
        return
    best, worst = (one, other) if wins else (other, one)
    own = group(first.id, first.meta)
    name = f"{one.id}/{other.id}"
    yield _judged(best, name, "chosen", 1.0, own), _judged(worst, name, "rejected", 0.0, own)


def _judged(one: Episode, pair: str, side: str, verdict: float, own: str) -> Episode:
    """A dialogue with the verdict in the place of its rewards; what it was worth is a fact in its meta."""
    last = max(k for k, turn in enumerate(one.turns) if turn.is_action)
    turns = [replace(turn, reward=verdict if k == last else 0.0) for k, turn in enumerate(one.turns)]
    meta = {**one.meta, "group": own, "return": one.total_reward}
    return replace(one, id=f"{pair}:{side}", turns=turns, meta=meta, pair=pair)
