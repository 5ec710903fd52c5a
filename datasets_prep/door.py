"""Visits to doors by a scripted policy that remembers nothing, generated from a seed. There is no file to read.

Two textbook tasks (`ilql/envs/door.py`), under this package's licence: `--variant listen`, after the tiger of
Kaelbling, Littman and Cassandra 1998 (https://doi.org/10.1016/S0004-3702(98)00023-X), and `--variant corridor`, example
13.1 of Sutton and Barto 2018 (http://incompleteideas.net/book/the-book.html). One dialogue, as turns (`user` is the
world), rewards in brackets:

    user       A prize is behind one of two doors.
    assistant  listen [-0.1]
    user       You hear it on the left.
    assistant  open left [1]
    user       The prize!

every text ends with a newline. The policy listens with the probability `--share`, .5 where it is not given, and opens
either door with half of the rest; in the corridor it goes right with the probability `--share`. A visit that the limit
of 100 utterances cut off ends with the agent's last one and is not terminated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from datasets_prep.rejects import Reject
from ilql.envs.door import BETWEEN, CLOSED, DRAUGHT, GO, HEARD, LISTEN, OPEN, OUT, PRIZE, SILENCE, Door
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn


def episodes(
    inputs: Sequence[Path],
    *,
    seed: int,
    variant: Literal["listen", "corridor"] = "listen",
    dialogues: int = 4000,
    share: float = 0.5,
    logp: bool = False,
) -> Iterator[Episode | Reject]:
    """The generated logs; dialogue i depends on (seed, i) and the options alone.

    share: of listening, or of moves to the right. logp: whether turns have their log-probability under the scripted
    policy.
    """
    if inputs:
        raise InputError(
            "the door corpus is generated and reads no file: leave --input out, and give --validation a fraction"
        )
    if dialogues < 1:
        raise InputError(f"--dialogues is {dialogues}, but must be at least 1")
    if not 0 < share < 1:
        raise InputError(f"--share is {share}, but must be above 0 and below 1")
    door = Door(variant)
    chances = policy(variant, share)
    return (_visit(door, f"door-{i:06d}", random.Random(f"{seed}/{i}"), chances, logp) for i in range(dialogues))


def turn_texts(*, variant: str = "listen", **others: object) -> tuple[list[str], list[str]]:
    """All that the agent and the world may say, for `--turn-tokens`."""
    world = [CLOSED, *HEARD.values(), SILENCE, PRIZE, DRAUGHT] if variant == "listen" else [BETWEEN, OUT]
    return list(Door(variant).moves), world


def policy(variant: str, share: float) -> dict[str, float]:
    """What the scripted policy says, and with what probability."""
    if variant == "corridor":
        return {GO["right"]: share, GO["left"]: 1 - share}
    return {LISTEN: share, **dict.fromkeys(OPEN.values(), (1 - share) / 2)}


def _visit(door: Door, name: str, rng: random.Random, chances: dict[str, float], logged: bool) -> Episode:
    """One dialogue, played in the environment itself."""
    turns = [Turn(PARTNER, door.reset(rng.getrandbits(32)))]
    while True:
        (said,) = rng.choices(list(chances), list(chances.values()))
        reply = door.step(said)
        turns.append(Turn(AGENT, said, reply.reward, math.log(chances[said]) if logged else None))
        if not reply.truncated:
            turns.append(Turn(PARTNER, reply.text))
        if reply.over:
            return Episode(name, tuple(turns), reply.terminated, {"group": name, **door.facts()})
