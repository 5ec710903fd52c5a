"""Many dialogues with their turns end to end, as columns. Decision: what is asked of every turn is asked of whole
columns at once, and only a dialogue that fails such a question is looked at by itself, to say why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, Episode, Turn


def spread(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """start_0, start_0 + 1, ... (size_0 of them), start_1, ...: the places of lists that lie end to end."""
    ends = np.cumsum(size)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - size), size)


def offsets(size: np.ndarray | Sequence[int]) -> np.ndarray:
    """Where lists of these sizes begin end to end, and where the last one ends."""
    out = np.zeros(len(size) + 1, np.int64)
    np.cumsum(size, out=out[1:])
    return out


def _some(column: list[Any]) -> list[Any] | None:
    """A column, None where nothing is in it."""
    return None if all(value is None for value in column) else column


@dataclass(slots=True)
class Talks:
    """Dialogues (B) and their turns (n); what the columns mean say `Episode`, `Placed` and `Turn`.

    place: file and line; turns: how many each dialogue has; role to call_id are columns of turns. pair: None where no
    dialogue is of any. Made of these: first (B + 1), where a dialogue's turns begin; is_action (n).
    """

    id: list[str]
    terminated: list[bool]
    meta: list[dict[str, Any]]
    tools: list[Sequence[dict[str, Any]] | None]
    place: list[tuple[str, int]]
    turns: list[int]
    role: Sequence[str]
    text: Sequence[str]
    reward: list[Any]
    logp: Sequence[Any]
    act: list[bool]
    calls: list[Sequence[dict[str, Any]] | None]
    name: Sequence[str | None]
    call_id: Sequence[str | None]
    pair: list[str | None] | None = None
    prefix: list[Sequence[float] | None] | None = None
    first: np.ndarray = field(init=False)
    is_action: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.first = offsets(self.turns)
        self.is_action = np.array([role == AGENT for role in self.role], bool) & np.array(self.act, bool)

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Talks:
        turns = [turn for episode in episodes for turn in episode.turns]
        return cls(
            id=[episode.id for episode in episodes],
            terminated=[episode.terminated for episode in episodes],
            meta=[episode.meta for episode in episodes],
            tools=[episode.tools for episode in episodes],
            place=[(one.file, one.line) if isinstance(one, Placed) else ("", 0) for one in episodes],
            turns=[len(episode.turns) for episode in episodes],
            role=[turn.role for turn in turns],
            text=[turn.text for turn in turns],
            reward=[turn.reward for turn in turns],
            logp=[turn.logp for turn in turns],
            act=[turn.act for turn in turns],
            calls=[turn.tool_calls for turn in turns],
            name=[turn.name for turn in turns],
            call_id=[turn.tool_call_id for turn in turns],
            pair=[episode.pair for episode in episodes] if any(episode.pair for episode in episodes) else None,
            prefix=_some([episode.prefix for episode in episodes]),
        )

    def __len__(self) -> int:
        return len(self.id)

    def turns_of(self, i: int) -> list[Turn]:
        """The turns of one dialogue."""
        at = slice(self.first[i], self.first[i + 1])
        return list(map(Turn, *(getattr(self, column)[at] for column in TURN)))

    def episode(self, i: int) -> Episode:
        """One dialogue."""
        file, line = self.place[i]
        own = self.id[i], self.turns_of(i), self.terminated[i], self.meta[i], self.tools[i]
        pair = None if self.pair is None else self.pair[i]
        prefix = None if self.prefix is None else self.prefix[i]
        return Placed(*own, pair, prefix, file=file, line=line)

    def take(self, which: Sequence[int]) -> Talks:
        """Some of the dialogues, in this order."""
        at = [slice(self.first[i], self.first[i + 1]) for i in which]
        dialogues = {name: [getattr(self, name)[i] for i in which] for name in DIALOGUE}
        turns = {name: [x for part in at for x in getattr(self, name)[part]] for name in TURN}
        pair, prefix = (None if column is None else [column[i] for i in which] for column in (self.pair, self.prefix))
        return Talks(**dialogues, **turns, pair=pair, prefix=prefix)  # type: ignore[arg-type]

    def calling(self) -> list[int]:
        """The turns with tool calls."""
        return [k for k, calls in enumerate(self.calls) if calls] if any(self.calls) else []

    def holders(self, turns: Sequence[int] | np.ndarray) -> list[int]:
        """The dialogues that hold any of these turns, in order."""
        return np.unique(np.searchsorted(self.first, turns, side="right") - 1).tolist()

    def characters(self) -> np.ndarray:
        """Of all turns of each dialogue, (B)."""
        before = offsets(list(map(len, self.text)))
        return before[self.first[1:]] - before[self.first[:-1]]


DIALOGUE = ("id", "terminated", "meta", "tools", "place", "turns")
TURN = ("role", "text", "reward", "logp", "act", "calls", "name", "call_id")  # in the order of `Turn`


class Read(NamedTuple):
    """What was read of a corpus: dialogues, and rejects by their place among all of it."""

    talks: Talks
    rejects: dict[int, Reject]

    def items(self) -> Iterator[Episode | Reject]:
        """All of it, in order."""
        talks = iter(range(len(self.talks)))
        for k in range(len(self.talks) + len(self.rejects)):
            yield self.rejects[k] if k in self.rejects else self.talks.episode(next(talks))
