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

from datasets_prep.encode import Encoder, Row
from datasets_prep.rejects import Reject
from ilql.types import Episode, Turn

MODES = ("front", "tail", "reject")


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cut cost: turns dropped, and how many of them carried a reward."""

    turns: int = 0
    rewards: int = 0


def fit(encoder: Encoder, episode: Episode, step: str, max_length: int | None, mode: str) -> tuple[Row, Cut]:
    """The dialogue's row within max_length tokens (None: any length). Raises Reject where it cannot be."""
    row = encoder.encode(episode, step)
    size = len(row["tokens"])
    if max_length is None or size <= max_length:
        return row, Cut()
    utterances = row if step == "utterance" else encoder.encode(_without_logp(episode), "utterance")
    longest = max(e - s for s, e in zip(utterances["start"], utterances["end"], strict=True))
    if longest + 2 > max_length:  # BOS and at least one token of header stand before an action
        raise Reject("", 0, "content", f"an action is longer than --max-length {max_length} allows")
    if mode == "reject":
        raise Reject("", 0, "messages", f"longer than --max-length {max_length} tokens; --overlong front or tail cuts")
    cut = (_front if mode == "front" else _tail)(encoder, episode, row, step, max_length)
    if cut is None:
        raise Reject("", 0, "messages", f"no whole turns with an action fit into --max-length {max_length} tokens")
    return cut


def _without_logp(episode: Episode) -> Episode:
    return replace(episode, turns=[replace(turn, logp=None) for turn in episode.turns])


def _front(encoder: Encoder, episode: Episode, row: Row, step: str, limit: int) -> tuple[Row, Cut] | None:
    turns = list(episode.turns)
    head = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    last = max(i for i, turn in enumerate(turns) if turn.is_action)
    for first in range(head + 1, last + 1):
        if _certainly_longer(row, len(turns), first, limit):
            continue
        try:
            kept = encoder.encode(replace(episode, turns=turns[:head] + turns[first:]), step)
        except Reject:  # a template that wants a user's turn first
            continue
        if len(kept["tokens"]) <= limit:
            return kept, _cost(turns[head:first])
    return None


def _certainly_longer(row: Row, turns: int, first: int, limit: int) -> bool:
    """A cheap bound that spares encoding: the turns from `first` on alone are longer than the limit.

    Only where every turn has a beginning of its own in the row (the agent's open header may follow).
    """
    begins = row["turn"]
    if len(begins) not in (turns, turns + 1) or first >= len(begins):
        return False
    return len(row["tokens"]) - begins[first] > limit + 64  # a template may write its first turn shorter than others


def _tail(encoder: Encoder, episode: Episode, row: Row, step: str, limit: int) -> tuple[Row, Cut] | None:
    turns = list(episode.turns)
    first = next(i for i, turn in enumerate(turns) if turn.is_action)
    ends_in_action: tuple[Row, Cut] | None = None
    for stop in range(len(turns) - 1, first, -1):
        begins = row["turn"]
        if len(begins) >= len(turns) and stop < len(begins) and begins[stop] > limit + 64:
            continue
        kept_turns = turns[:stop]
        if kept_turns[-1].is_action and ends_in_action is not None:
            continue
        try:
            kept = encoder.encode(replace(episode, turns=kept_turns, terminated=False), step)
        except Reject:
            continue
        if len(kept["tokens"]) > limit:
            continue
        if not kept_turns[-1].is_action:
            return kept, _cost(turns[stop:])
        ends_in_action = kept, _cost(turns[stop:])
    return ends_in_action


def _cost(dropped: list[Turn]) -> Cut:
    return Cut(len(dropped), sum(1 for turn in dropped if turn.reward))
