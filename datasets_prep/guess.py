"""Games of two scripted people, one of whom asks and guesses an object that only the other sees. Generated from a seed.

The rules are of Das et al. 2017's toy world (https://arxiv.org/abs/1703.06585), the texts are our own
(`ilql/envs/guess.py`), and so no licence or terms but this package's hold. There is no file to read.

One game from the questioner's side, as turns (`user` is what it is told, `assistant` the questioner), rewards in
brackets; the answerer's episode of it begins with `filled red star` and the first question:

    user       Find colour and shape.
    assistant  which colour
    user       red
    assistant  red any which style [0.5]
    user       filled
    assistant  red any

Decision: people err, a questioner in what it asks, an answerer in what it says, and both often: what a clone of them is
worth leaves room above it, and the logs show all that the best pair does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from datasets_prep.rejects import Reject
from ilql.envs.guess import QUESTIONER, Guess, Person
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn


def episodes(
    inputs: Sequence[Path],
    *,
    seed: int,
    seat: Literal["questioner", "answerer"] = "questioner",
    dialogues: int = 4000,
    rounds: int = 2,
    slip: float = 0.3,
    lie: float = 0.2,
) -> Iterator[Episode | Reject]:
    """The generated games from one seat; game i depends on (seed, i) alone, and is the same from the other seat.

    slip, lie: how often people err, see `ilql.envs.guess.Person`. meta: that of the environment.
    """
    if inputs:
        raise InputError(
            "the guess corpus is generated and reads no file: leave --input out, and give --validation a fraction"
        )
    if dialogues < 1:
        raise InputError(f"--dialogues is {dialogues}, but must be at least 1")
    Guess(seat, rounds, slip, lie)  # refuses a bad option before anything is read
    return (_game(seed, i, seat, rounds, slip, lie) for i in range(dialogues))


def _game(seed: int, i: int, seat: str, rounds: int, slip: float, lie: float) -> Episode:
    number = random.Random(f"{seed}/{i}").getrandbits(48)
    env = Guess(QUESTIONER, rounds, slip, lie)
    first = env.reset(number)
    asks = Person(QUESTIONER, random.Random(f"asks {number}"), slip, lie)
    heard = [first]
    said: list[str] = []
    rewards: list[float] = []
    while True:
        said.append(asks.say(heard, said, len(said) == rounds))
        reply = env.step(said[-1])
        rewards.append(reply.reward)
        if reply.over:
            break
        heard.append(reply.text)
    turns = _asker(heard, said, rewards) if seat == QUESTIONER else _answerer(env, heard, said, rewards)
    name = f"guess-{i:06d}"
    meta = {"group": name, **env.game.facts(0 if seat == QUESTIONER else 1)}
    return Episode(name, turns, True, meta)


def _asker(heard: Sequence[str], said: Sequence[str], rewards: Sequence[float]) -> tuple[Turn, ...]:
    pairs = zip(heard, said, rewards, strict=True)
    return tuple(turn for text, mine, r in pairs for turn in (Turn(PARTNER, text), Turn(AGENT, mine, r)))


def _answerer(env: Guess, heard: Sequence[str], said: Sequence[str], rewards: Sequence[float]) -> tuple[Turn, ...]:
    """An answer is paid when the guess that follows it is said."""
    turns = []
    for t, (answer, reward) in enumerate(zip(heard[1:], rewards[1:], strict=True)):
        question = " ".join(said[t].split()[2 if t else 0 :])
        turns.append(Turn(PARTNER, question if t else f"{' '.join(env.game.object)}\n{question}"))
        turns.append(Turn(AGENT, answer, reward))
    return tuple(turns)
