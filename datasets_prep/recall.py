"""A word to be remembered, asked for many turns later: dialogues of a scripted policy. There is no file to read.

Our own task (`ilql/envs/recall.py`), under this package's licence; it stands for the cue and the delay of every memory
task, such as https://arxiv.org/abs/2307.03864. One dialogue, as turns (`user` is the game), its reward in brackets:

    user       The word is green.
    assistant  red
    user       Which word was it?
    assistant  green [1]
    user       Right.

with `--delay 1`; every text ends with a newline. At each turn the policy says the word that was named with the
probability `--skill`, and draws one uniformly otherwise: with 0, the default, the logs remember nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets_prep.rejects import Reject
from ilql.envs.recall import QUESTION, RIGHT, WAIT, WRONG, Recall, first
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn


def episodes(
    inputs: Sequence[Path],
    *,
    seed: int,
    dialogues: int = 2000,
    delay: int = 8,
    cues: int = 4,
    skill: float = 0.0,
    logp: bool = False,
) -> Iterator[Episode | Reject]:
    """The generated logs; dialogue i depends on (seed, i) and the options alone.

    logp: whether turns have their log-probability under the scripted policy.
    """
    if inputs:
        raise InputError(
            "the recall corpus is generated and reads no file: leave --input out, and give --validation a fraction"
        )
    if dialogues < 1:
        raise InputError(f"--dialogues is {dialogues}, but must be at least 1")
    if not 0 <= skill <= 1:
        raise InputError(f"--skill is {skill}, but must be a share from 0 to 1")
    game = Recall(delay, cues)
    return (_play(game, f"recall-{i:06d}", random.Random(f"{seed}/{i}"), skill, logp) for i in range(dialogues))


def turn_texts(*, cues: int = 4, **others: object) -> tuple[list[str], list[str]]:
    """All that the agent and the game may say, for `--turn-tokens`."""
    words = Recall(cues=cues).words
    return list(words), [*map(first, words), WAIT, QUESTION, RIGHT, WRONG]


def _play(game: Recall, name: str, rng: random.Random, skill: float, logged: bool) -> Episode:
    """One dialogue, played in the environment itself."""
    turns = [Turn(PARTNER, game.name(rng.choice(game.words)))]
    while True:
        word = game.word if rng.random() < skill else rng.choice(game.words)
        chance = skill * (word == game.word) + (1 - skill) / len(game.words)
        reply = game.step(word)
        turns += [Turn(AGENT, word, reply.reward, math.log(chance) if logged else None), Turn(PARTNER, reply.text)]
        if reply.over:
            return Episode(name, tuple(turns), reply.terminated, {"group": name, **game.facts()})
