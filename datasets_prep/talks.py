"""Many dialogues with their turns end to end, as columns. Decision: what is asked of every turn is asked of whole
columns at once, and only a dialogue that fails such a question is looked at by itself, to say why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ilql.types import AGENT, Episode


def spread(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """start_0, start_0 + 1, ... (size_0 of them), start_1, ...: the places of lists that lie end to end."""
    ends = np.cumsum(size)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - size), size)


def offsets(size: np.ndarray) -> np.ndarray:
    """Where lists of these sizes begin end to end, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(size)))


class Talks:
    """Dialogues (B) and their turns (n): first (B + 1) is where a dialogue's turns begin."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        turns = [turn for episode in episodes for turn in episode.turns]
        self.episodes = episodes
        self.first = offsets(np.array([len(episode.turns) for episode in episodes], np.int64))
        self.role = [turn.role for turn in turns]
        self.text = [turn.text for turn in turns]
        self.reward: list[Any] = [turn.reward for turn in turns]
        self.logp: list[Any] = [turn.logp for turn in turns]
        self.calls = [turn.tool_calls for turn in turns]
        self.calling = [k for k, calls in enumerate(self.calls) if calls]
        self.is_action = np.array([turn.role == AGENT and turn.act for turn in turns], bool)

    def __len__(self) -> int:
        return len(self.episodes)

    def take(self, which: Sequence[int]) -> Talks:
        """Some of the dialogues."""
        return Talks([self.episodes[i] for i in which])

    def holders(self, turns: Sequence[int] | np.ndarray) -> list[int]:
        """The dialogues that hold any of these turns, in order."""
        return np.unique(np.searchsorted(self.first, turns, side="right") - 1).tolist()
