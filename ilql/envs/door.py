"""Doors, two partially observed tasks of textbooks in words: one asks for information first, one for a coin.

Decision: both under one name and the option `variant`, since they are the two halves of one lesson, that the last
observation is no state. Numbers are chosen so that memory is worth much more than the luck of 500 episodes.

`listen` (after the tiger of Kaelbling, Littman and Cassandra 1998): a prize is behind one of two doors. Listening costs
.1 and tells the right side with probability .85, each time anew; opening ends it, with 1 for the prize and -4 for the
other door. Whoever remembers listens until one side was heard twice more often than the other, and gets .58; whoever
sees the last answer alone can do no better than to listen once, .15, since an answer is right as often whatever was
heard before.

    user       A prize is behind one of two doors.
    assistant  listen [-0.1]
    user       You hear it on the left.
    assistant  open left [1]
    user       The prize!                          (or "Nothing but a draught.")

`corridor` (example 13.1 of Sutton and Barto 2018): three places that look the same, the exit to the right of the third.
In the second one the two moves are switched. A move costs 1. Whoever sees the last observation alone does the same
everywhere: always right or always left never arrives, and the best coin, right with probability 2 - sqrt(2) = .586,
needs 11.66 moves on average. Whoever remembers needs three: right, left, right.

    user       You stand between two doors.
    assistant  go right [-1]
    user       You stand between two doors.        (at last "You are out.")

White space around an utterance is no matter; one that is none of these costs as much as the cheapest and changes
nothing. After 100 utterances it is cut off: that limit comes from outside, so it truncates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from ilql.types import Episode, InputError, Reply

SEATS = 1
VARIANTS = ("listen", "corridor")
SIDES = ("left", "right")
STEP_LIMIT = 100
LATE = "It is too late.\n"

LISTEN = "listen\n"
OPEN = {side: f"open {side}\n" for side in SIDES}
CLOSED, SILENCE, PRIZE, DRAUGHT = (
    "A prize is behind one of two doors.\n",
    "You hear nothing.\n",
    "The prize!\n",
    "Nothing but a draught.\n",
)
HEARD = {side: f"You hear it on the {side}.\n" for side in SIDES}
ACCURACY, COST, WON, LOST = 0.85, 0.1, 1.0, -4.0

GO = {side: f"go {side}\n" for side in SIDES}
BETWEEN, OUT = "You stand between two doors.\n", "You are out.\n"
SWITCHED, LENGTH = 1, 3  # the place where the moves are switched; how many places there are


class Door:
    """One visit. variant: "listen" or "corridor".

    Public facts for policies and generators: `moves` (what may be said, newlines included), `prize` (the side), `place`
    (0 to 2, 3 is out), `steps`.
    """

    def __init__(self, variant: str = "listen") -> None:
        if variant not in VARIANTS:
            raise InputError(f"the door's variant is {variant!r}, but must be {' or '.join(VARIANTS)}")
        self.variant = variant
        self.moves = (LISTEN, *OPEN.values()) if variant == "listen" else tuple(GO.values())
        self.prize = SIDES[0]
        self.place = self.steps = 0
        self.success = False
        self._over = True
        self._noise = random.Random()

    def reset(self, seed: int) -> str:
        """`listen`: the prize is on the left for even seeds, and the seed decides what will be heard. `corridor`: every
        seed is the same."""
        self._noise = random.Random(f"door/{seed}")
        self.prize = SIDES[seed % 2]
        self.place = self.steps = 0
        self.success = self._over = False
        return CLOSED if self.variant == "listen" else BETWEEN

    def step(self, utterance: str) -> Reply:
        """Listen, open or go. RuntimeError after the end."""
        if self._over:
            raise RuntimeError("the visit is over: call reset")
        self.steps += 1
        said = utterance.strip() + "\n"
        reply = self._listen(said) if self.variant == "listen" else self._go(said)
        if not reply.over and self.steps == STEP_LIMIT:
            reply = Reply(LATE, reply.reward, truncated=True)
        self._over = reply.over
        return reply

    def _listen(self, said: str) -> Reply:
        if said in OPEN.values():
            self.success = said == OPEN[self.prize]
            return Reply(PRIZE if self.success else DRAUGHT, WON if self.success else LOST, terminated=True)
        if said != LISTEN:
            return Reply(SILENCE, -COST)
        other = SIDES[1 - SIDES.index(self.prize)]
        return Reply(HEARD[self.prize if self._noise.random() < ACCURACY else other], -COST)

    def _go(self, said: str) -> Reply:
        self.place = after(self.place, said)
        self.success = self.place == LENGTH
        return Reply(OUT, -1.0, terminated=True) if self.success else Reply(BETWEEN, -1.0)

    def facts(self) -> dict[str, Any]:
        """What a transcript records: whether the prize was found or the way out, and after how many utterances."""
        return {"success": self.success, "steps": self.steps}


def after(place: int, said: str) -> int:
    """The place of the corridor that a move leads to; the wall on the left, or an utterance that is no move, stays."""
    if said not in GO.values():
        return place
    right = (said == GO["right"]) != (place == SWITCHED)
    return max(0, place + (1 if right else -1))


def make(variant: str = "listen") -> Callable[[], Door]:
    """A factory of visits, as `rollout` asks for."""
    Door(variant)  # a bad option fails here, with one sentence, and not in the middle of a rollout
    return lambda: Door(variant)


def summary(episodes: Sequence[Episode]) -> dict[str, list[float | None]]:
    """Extra columns of an evaluation: whether the prize or the way out was found (in %), the number of utterances."""
    return {
        "success %": [100.0 * episode.meta["success"] for episode in episodes],
        "steps": [float(episode.meta["steps"]) for episode in episodes],
    }
