"""Games of Wordle as in LMRL-Gym, played by a scripted policy of a given skill. It reads no file but a word list.

The published data (Abdulhai et al. 2023, MIT licence, https://lmrl-gym.github.io) come from a policy that draws a third
of its guesses uniformly among the words that all answers so far allow, and the others uniformly among all words; its
mean return is -4.1. `--skill` is that share. Words are drawn uniformly from the list, each game by its own generator.

One dialogue, as turns (`user` is the game, `assistant` the player), rewards in brackets:

    user       Wordle:
    assistant  s t o r y [-1]
    user       b b g b b
    assistant  w h o l e [0]
    user       g g g g g

every text ends with a newline. With `--turn-tokens` each word and each of the 243 patterns is one token.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from datasets_prep.rejects import Reject
from ilql.envs.wordle import OWN_WORDS, PATTERNS, START, Wordle, colours, load_words, spell, unspell
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

Allowed = Callable[[str, str], frozenset[str]]


def episodes(
    inputs: Sequence[Path],
    *,
    seed: int,
    games: int = 20000,
    skill: float = 1 / 3,
    rules: Literal["official", "lmrl"] = "official",
    words: Path | None = None,
) -> Iterator[Episode | Reject]:
    """The generated games; game i depends on (seed, i) and the options alone.

    skill: share of the guesses that are drawn among the words that the answers allow. rules: of the colours. words: a
    file with one word a line, None for our own list.
    """
    if inputs:
        raise InputError(
            "the wordle corpus is generated: leave --input out (--words names a word list), and give --validation a "
            "fraction"
        )
    if games < 1:
        raise InputError(f"--games is {games}, but must be at least 1")
    if not 0 <= skill <= 1:
        raise InputError(f"--skill is {skill}, but must be a share from 0 to 1")
    game = Wordle(rules, load_words(words or OWN_WORDS))
    allowed = consistent(game.words, rules)
    return (play(game, f"wordle-{i:06d}", random.Random(f"{seed}/{i}"), skill, allowed) for i in range(games))


def turn_texts(*, words: Path | None = None, **others: object) -> tuple[list[str], list[str]]:
    """All that the player and the game may say, for `--turn-tokens`."""
    return [spell(word) for word in load_words(words or OWN_WORDS)], [START, *PATTERNS]


def consistent(words: Sequence[str], rules: str) -> Allowed:
    """A function of a guess and the answer to it: the words that would have been answered so."""

    @functools.cache
    def by_answer(guess: str) -> dict[str, frozenset[str]]:
        found: dict[str, list[str]] = {}
        for word in words:
            found.setdefault(colours(guess, word, rules), []).append(word)
        return {answer: frozenset(members) for answer, members in found.items()}

    return lambda guess, answer: by_answer(guess)[answer]


def play(game: Wordle, name: str, rng: random.Random, skill: float, allowed: Allowed) -> Episode:
    """One game of the scripted policy, in the environment itself."""
    turns = [Turn(PARTNER, game.hide(rng.choice(game.words)))]
    left = game.words
    while True:
        guess = rng.choice(left if rng.random() < skill else game.words)
        reply = game.step(spell(guess))
        turns += [Turn(AGENT, spell(guess), reply.reward), Turn(PARTNER, reply.text)]
        if reply.over:
            return Episode(name, tuple(turns), reply.terminated, {"group": name, **game.facts()})
        answer = allowed(guess, unspell(reply.text))
        left = tuple(word for word in left if word in answer)
