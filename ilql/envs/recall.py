"""A word that must be remembered: a partially observed task whose only difficulty is memory.

Decision: everything is certain but the first observation, so that what a policy reaches says what it remembers, and
nothing else. The first turn names a word. After `delay` utterances, which change nothing, it is asked for:

    user       The word is green.
    assistant  red
    user       Wait.                  (delay - 1 times)
    assistant  blue
    user       Which word was it?
    assistant  green [1]
    user       Right.                 (or Wrong.)

The right word is worth 1, anything else 0, and either ends it. White space around an utterance is no matter.

The last question is the same whatever the word was. A policy that sees the last observation alone says the right word
with the mean over words of the probability that it gives to each, which is 1 / cues for every policy, deterministic or
stochastic; one that remembers the first turn gets 1. It need not see the first turn: a policy that sees its own last
utterance can say the word again at every turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ilql.types import Episode, InputError, Reply

SEATS = 1
WORDS = ("red", "green", "blue", "yellow", "black", "white", "brown", "purple")
WAIT, QUESTION, RIGHT, WRONG = "Wait.\n", "Which word was it?\n", "Right.\n", "Wrong.\n"


class Recall:
    """One word, asked for after `delay` utterances. cues: how many words there are, from the first of `WORDS` on.

    Public facts for policies and generators: `words` (what may be asked for, newlines included), `word`.
    """

    def __init__(self, delay: int = 8, cues: int = 4) -> None:
        if not 1 <= delay <= 1000:
            raise InputError(f"recall's delay is {delay}, but must be from 1 to 1000")
        if not 2 <= cues <= len(WORDS):
            raise InputError(f"recall's number of cues is {cues}, but must be from 2 to {len(WORDS)}")
        self.delay = delay
        self.words = tuple(f"{word}\n" for word in WORDS[:cues])
        self.word = self.words[0]
        self.steps = 0
        self.right = False
        self._over = True

    def reset(self, seed: int) -> str:
        """Name word number `seed` modulo `cues`; as many consecutive seeds as there are words are each word once."""
        return self.name(self.words[seed % len(self.words)])

    def name(self, word: str) -> str:
        """Name one of `words`; returns the first observation."""
        if word not in self.words:
            raise ValueError(f"{word!r} is none of the words {self.words}")
        self.word = word
        self.steps = 0
        self.right = self._over = False
        return first(word)

    def step(self, utterance: str) -> Reply:
        """Wait, or answer the question. RuntimeError after the end."""
        if self._over:
            raise RuntimeError("the question is answered: call reset")
        self.steps += 1
        if self.steps <= self.delay:
            return Reply(QUESTION if self.steps == self.delay else WAIT)
        self._over = True
        self.right = utterance.strip() == self.word.strip()
        return Reply(RIGHT if self.right else WRONG, float(self.right), terminated=True)

    def facts(self) -> dict[str, Any]:
        """What a transcript records."""
        return {"word": self.word.strip(), "right": self.right}


def first(word: str) -> str:
    """The first observation, newline included."""
    return f"The word is {word.strip()}.\n"


def make(delay: int = 8, cues: int = 4) -> Callable[[], Recall]:
    """A factory, as `rollout` asks for."""
    Recall(delay, cues)  # a bad option fails here, with one sentence, and not in the middle of a rollout
    return lambda: Recall(delay, cues)


def summary(episodes: Sequence[Episode]) -> dict[str, list[float | None]]:
    """Extra columns of an evaluation: whether the answer was right (in %)."""
    return {"right %": [100.0 * episode.meta["right"] for episode in episodes]}
