"""Wordle as in LMRL-Gym (Abdulhai et al. 2023, https://lmrl-gym.github.io), text in and text out.

Decision: the published texts, rewards and tries byte for byte, but the word list is our own (`wordle.txt` beside this
file; `words` names another), and the colours are by default those of the game itself.

    user       Wordle:\\n
    assistant  c r a n e\\n        reward -1
    user       g b y b b\\n        green: right letter and place; yellow: right letter, wrong place; b: neither
    assistant  c h a i r\\n        reward 0, and the end

A guess that is not the word costs 1, the word itself nothing. Anything that is not of the list costs 1 too, is answered
by `\\n`, and is a try. There are six tries: returns lie in [-6, 0]. The limit is the game's own, so it terminates.

`rules`: with "official", a letter of the guess is coloured at most as often as the word has it, greens first, then
yellows from the left. With "lmrl", as published, every letter that occurs anywhere in the word is yellow at least.

The word is taken from the seed and not drawn: as many consecutive seeds as the list has words play each of them once.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ilql.types import Episode, InputError, Reply

SEATS = 1
LETTERS = 5
TRIES = 6
RULES = ("official", "lmrl")
GREEN, YELLOW, BLACK = "gyb"
START = "Wordle:\n"
NO_WORD = "\n"
OWN_WORDS = Path(__file__).with_name("wordle.txt")


def spell(letters: str) -> str:
    """A word or its colours as a turn's text: `crane` -> `c r a n e\\n`."""
    return " ".join(letters) + "\n"


def unspell(text: str) -> str:
    """A turn's text without its white space."""
    return "".join(text.split())


PATTERNS = tuple(spell("".join(colours)) for colours in itertools.product((BLACK, YELLOW, GREEN), repeat=LETTERS))


def colours(guess: str, word: str, rules: str = "official") -> str:
    """The answer to a guess, one of g, y and b a letter."""
    if rules == "lmrl":
        return "".join(GREEN if a == b else YELLOW if a in word else BLACK for a, b in zip(guess, word, strict=True))
    left = Counter(b for a, b in zip(guess, word, strict=True) if a != b)  # letters of the word that are not hit
    answer = ""
    for a, b in zip(guess, word, strict=True):
        if a == b:
            answer += GREEN
        elif left[a]:
            left[a] -= 1
            answer += YELLOW
        else:
            answer += BLACK
    return answer


class Wordle:
    """One game.

    rules: "official" or "lmrl". words: what may be guessed and what the word is one of.
    Public facts: `word`, `words`, `guesses` (as said, without white space), `solved`.
    """

    def __init__(self, rules: str = "official", words: Sequence[str] | None = None) -> None:
        if rules not in RULES:
            raise InputError(f"the rules of wordle are {rules!r}, but must be {' or '.join(RULES)}")
        self.rules = rules
        self.words = load_words(OWN_WORDS) if words is None else tuple(words)
        self._known = frozenset(self.words)
        self.word = self.words[0]
        self.guesses: list[str] = []
        self._over = True

    def reset(self, seed: int) -> str:
        """Start with word number `seed` modulo their number, in an order shuffled once and for all."""
        order = _order(len(self.words))
        return self.hide(self.words[order[seed % len(order)]])

    def hide(self, word: str) -> str:
        """Start with a word of the list; returns the first observation."""
        if word not in self._known:
            raise ValueError(f"{word!r} is not of the list")
        self.word = word
        self.guesses = []
        self._over = False
        return START

    def step(self, utterance: str) -> Reply:
        """Take a guess; white space around and between its letters is no matter. RuntimeError after the end."""
        if self._over:
            raise RuntimeError("the game is over: call reset")
        guess = unspell(utterance)
        self.guesses.append(guess)
        self._over = guess == self.word or len(self.guesses) == TRIES
        text = spell(colours(guess, self.word, self.rules)) if guess in self._known else NO_WORD
        return Reply(text, 0.0 if guess == self.word else -1.0, terminated=self._over)

    @property
    def solved(self) -> bool:
        return self.guesses[-1:] == [self.word]

    def facts(self) -> dict[str, Any]:
        """What a transcript records of the game so far."""
        invalid = sum(guess not in self._known for guess in self.guesses)
        return {"word": self.word, "solved": self.solved, "guesses": len(self.guesses), "invalid": invalid}


@functools.cache
def _order(size: int) -> list[int]:
    order = list(range(size))
    random.Random(0).shuffle(order)
    return order


def load_words(path: str | Path) -> tuple[str, ...]:
    """The words of a file, one a line, in its order. InputError names file and line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read words from {path} ({reason}); name a file with one word a line") from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        word = line.strip()
        if not word:
            continue
        if len(word) != LETTERS or not (word.isascii() and word.isalpha() and word.islower()):
            raise InputError(f"{path}, line {number}: {word!r} is not five small letters from a to z")
        if word in found:
            raise InputError(f"{path}, line {number}: {word!r} stands on line {found[word]} too; leave one out")
        found[word] = number
    if not found:
        raise InputError(f"{path} is empty; write one word of five letters a line")
    return tuple(found)


def make(rules: str = "official", words: str = "") -> Callable[[], Wordle]:
    """A factory of games, as `rollout` asks for. words: a file with one word a line, "" for our own list."""
    if words and not Path(words).is_file():
        raise InputError(f"words={words}: no such file; name the list that the dataset was built with (words=FILE)")
    listed = load_words(words or OWN_WORDS)
    Wordle(rules, listed)  # a bad option fails here, with one sentence, and not in the middle of a rollout
    return lambda: Wordle(rules, listed)


def summary(episodes: Sequence[Episode]) -> dict[str, list[float | None]]:
    """Extra columns of an evaluation: solved (%), the number of guesses, and the share of them that are no word (%)."""
    return {
        "solved %": [100.0 * episode.meta["solved"] for episode in episodes],
        "guesses": [float(episode.meta["guesses"]) for episode in episodes],
        "no word %": [100.0 * episode.meta["invalid"] / max(1, episode.meta["guesses"]) for episode in episodes],
    }
