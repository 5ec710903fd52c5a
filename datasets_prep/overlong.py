"""Dialogues longer than `--max-length` tokens. Decision: nothing is cut silently, and never inside a turn.

reject (the default): such a dialogue is a counted reject.
front: the fewest turns are dropped from the front, system turns kept, because the last turns and the outcome matter
    most; their rewards go with them.
tail: turns are dropped from the end. What is left was cut off, so `terminated` becomes False, and the row ends with an
    observation and the agent's header, from which the last transition bootstraps; only where no such cut fits it ends
    with an action, which then has no target.
A single action longer than the limit is a reject in every mode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datasets_prep.columns import Columns
from datasets_prep.encode import encode_all
from datasets_prep.layout import Layout
from datasets_prep.rejects import Reject
from datasets_prep.talks import Talks
from ilql.types import Episode, Turn

MODES = ("front", "tail", "reject")


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cut cost: turns dropped, and how many of them carried a reward."""

    turns: int = 0
    rewards: int = 0


def fit_all(
    layout: Layout, talks: Talks, step: str, max_length: int | None, mode: str
) -> tuple[Columns, dict[int, Reject]]:
    """`encode_all` within max_length tokens a dialogue (None: any number)."""
    columns, faults = encode_all(layout, talks, step)
    if max_length is None or not (columns.size > max_length).any():
        return columns, faults
    places = [i for i in range(len(talks)) if i not in faults]
    shorter: dict[int, tuple[Episode, Cut]] = {}
    for k in np.flatnonzero(columns.size > max_length).tolist():
        try:
            shorter[k] = _shorten(layout, talks.episode(places[k]), columns.take([k]), max_length, mode)
        except Reject as fault:
            faults[places[k]] = fault.with_traceback(None)
    again, none = encode_all(layout, Talks.of([episode for episode, _ in shorter.values()]), step)
    again.cut[:] = [(cut.turns, cut.rewards) for _, cut in shorter.values()] or 0
    moved = {k: len(columns) + n for n, k in enumerate(shorter)}
    order = [moved.get(k, k) for k, i in enumerate(places) if i not in faults]
    return Columns.together([columns, again]).take(order), faults | none


def _shorten(layout: Layout, episode: Episode, row: Columns, limit: int, mode: str) -> tuple[Episode, Cut]:
    """A dialogue, whose row is longer than the limit, cut. Raises Reject where it cannot be."""
    if (row.end - row.start).max() + 2 > limit:  # BOS and at least one token of header stand before an action
        raise Reject("", 0, "content", f"an action is longer than --max-length {limit} allows")
    if mode == "reject":
        raise Reject("", 0, "messages", f"longer than --max-length {limit} tokens; --overlong front or tail cuts")
    cut = (_front if mode == "front" else _tail)(layout, episode, row, limit)
    if cut is None:
        raise Reject("", 0, "messages", f"no whole turns with an action fit into --max-length {limit} tokens")
    return cut


def _fits(layout: Layout, episode: Episode, step: str, limit: int) -> bool:
    columns, faults = encode_all(layout, Talks.of([episode]), step)
    return not faults and int(columns.size[0]) <= limit  # at fault: a template that wants a user's turn first


def _front(layout: Layout, episode: Episode, row: Columns, limit: int) -> tuple[Episode, Cut] | None:
    turns = list(episode.turns)
    head = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    last = max(i for i, turn in enumerate(turns) if turn.is_action)
    for first in range(head + 1, last + 1):
        if _certainly_longer(row, len(turns), first, limit):
            continue
        kept = replace(episode, turns=turns[:head] + turns[first:])
        if _fits(layout, kept, row.step, limit):
            return kept, _cost(turns[head:first])
    return None


def _certainly_longer(row: Columns, turns: int, first: int, limit: int) -> bool:
    """A cheap bound that spares encoding: the turns from `first` on alone are longer than the limit.

    Only where every turn has a beginning of its own in the row (the agent's open header may follow).
    """
    begins = row.turn.tolist()
    if len(begins) not in (turns, turns + 1) or first >= len(begins):
        return False
    return len(row.tokens) - begins[first] > limit + 64  # a template may write its first turn shorter than others


def _tail(layout: Layout, episode: Episode, row: Columns, limit: int) -> tuple[Episode, Cut] | None:
    turns = list(episode.turns)
    first = next(i for i, turn in enumerate(turns) if turn.is_action)
    ends_in_action: tuple[Episode, Cut] | None = None
    for stop in range(len(turns) - 1, first, -1):
        begins = row.turn.tolist()
        if len(begins) >= len(turns) and stop < len(begins) and begins[stop] > limit + 64:
            continue
        if turns[stop - 1].is_action and ends_in_action is not None:
            continue
        kept = replace(episode, turns=turns[:stop], terminated=False)
        if not _fits(layout, kept, row.step, limit):
            continue
        if not turns[stop - 1].is_action:
            return kept, _cost(turns[stop:])
        ends_in_action = kept, _cost(turns[stop:])
    return ends_in_action


def _cost(dropped: list[Turn]) -> Cut:
    return Cut(len(dropped), sum(1 for turn in dropped if turn.reward))
