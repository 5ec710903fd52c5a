"""Haggling of scripted sellers with a simulated buyer, generated from a seed. There is no file to read.

The rules are our own (`ilql/envs/haggle.py`), and so are the texts: no licence or terms but this package's, no
https:// source. Sellers of four kinds, good and bad ones, wrote the logs (`SELLERS`). A quarter of them ask for the
buyer's budget, most of them first, and not all of those who ask use the answer: what asking is worth stands in the
logs, but few do it.

One dialogue, as turns (`user` is the buyer, `assistant` the seller), rewards in brackets:

    user       For sale: oak desk, $120. Is the oak desk still available?
    assistant  How about 95%? [-0.02]
    user       Too high. My offer is 55%.
    assistant  It is yours for 85%. [-0.02]
    user       Could you do 65% instead?
    assistant  Agreed, it is yours. [0.28]
    user       Done, 65%. See you soon.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets_prep.rejects import Reject
from ilql.envs.haggle import ACCEPT, ASK, BID, BUDGET, HOLD, ITEMS, LEAVE, OFFER, TALK, Haggle, Move, draw_buyer
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

STEP = 5  # all prices that a seller names are multiples of it
PHRASES = {
    OFFER: (
        "How about {price}%?",
        "I can do {price}%.",
        "It is yours for {price}%.",
        "I am asking {price}%.",
        "Let us say {price}%.",
    ),
    ASK: (
        "What is your budget?",
        "How much can you spend?",
        "How much can you afford?",
        "May I ask for your budget?",
    ),
    HOLD: ("That is my final price.", "I am firm on that.", "I can not go lower."),
    ACCEPT: ("I accept that.", "Agreed, it is yours.", "Sold!", "Okay, deal."),
    LEAVE: ("Sorry, no deal.", "Then goodbye.", "No deal, bye."),
    TALK: (
        "Hello, thanks for writing.",
        "It is in great shape.",
        "I bought it two years ago.",
        "Yes, it is still here.",
        "There is a lot of interest.",
    ),
}


class Seller(NamedTuple):
    """A scripted seller; all chances from 0 to 1, all prices in percent of the list price.

    talks: greets first. asks: asks first; asks_late: asks behind the first refusal, if not before. heeds: offers the
    budget it is told, or up to 10 more; else it goes on as if it had not asked. opening: first offers, one is drawn.
    step: how far it goes down at a refusal; holds: keeps its price instead. floor: it offers no less. content: accepts
    bids from here on; it also accepts one that its next offer would not be above.
    random: does anything instead of all that, at each turn.
    """

    talks: float
    asks: float
    asks_late: float
    heeds: float
    opening: tuple[int, ...]
    step: int
    holds: float
    floor: int
    content: int
    random: float = 0.05


SELLERS = {  # each writes a quarter of the logs
    "firm": Seller(0.3, 0.25, 0.1, 0.5, (95, 100), 5, 0.3, 75, 80),
    "middle": Seller(0.4, 0.25, 0.1, 0.8, (85, 90, 95, 100), 10, 0.1, 60, 70),
    "soft": Seller(0.5, 0.25, 0.1, 0.8, (70, 75, 80, 85, 90), 10, 0.0, 50, 50),
    "novice": Seller(0.5, 0.25, 0.1, 0.4, (60, 70, 80, 90, 100), 15, 0.2, 40, 45, 0.35),
}


def episodes(inputs: Sequence[Path], *, seed: int, dialogues: int = 20000) -> Iterator[Episode | Reject]:
    """The generated dialogues; dialogue i depends on (seed, i) alone. meta: that of the environment, and policy."""
    if inputs:
        raise InputError(
            "the haggle corpus is generated and reads no file: leave --input out, and give --validation a fraction"
        )
    if dialogues < 1:
        raise InputError(f"--dialogues is {dialogues}, but must be at least 1")
    return (_drawn(seed, i) for i in range(dialogues))


def _drawn(seed: int, i: int) -> Episode:
    rng = random.Random(f"{seed}/{i}")
    kind = rng.choice(list(SELLERS))
    env = Haggle()
    first = env.meet(draw_buyer(rng), rng.randrange(len(ITEMS)), rng)
    return play(env, first, kind, SELLERS[kind], f"haggle-{i:06d}", rng)


def play(env: Haggle, first: str, kind: str, seller: Seller, name: str, rng: random.Random) -> Episode:
    """One talk of a scripted seller in an environment that has just begun with `first`."""
    turns = [Turn(PARTNER, first)]
    script = Script(seller, rng)
    while True:
        move = script.move(env.answer)
        utterance = rng.choice(PHRASES[move.act]).format(price=move.price)
        reply = env.step(utterance)
        turns += [Turn(AGENT, utterance, reply.reward), Turn(PARTNER, reply.text)]
        if reply.over:
            return Episode(name, tuple(turns), reply.terminated, {"group": name, **env.facts(), "policy": kind})


class Script:
    """A seller in one talk: what it does next, given the buyer's latest answer."""

    def __init__(self, seller: Seller, rng: random.Random) -> None:
        self.seller, self.rng = seller, rng
        self.next = rng.choice(seller.opening)
        self.offered = False
        self.plan = [TALK] * (rng.random() < seller.talks) + [ASK] * (rng.random() < seller.asks)
        self.late = ASK not in self.plan and rng.random() < seller.asks_late

    def move(self, answer: Move | None) -> Move:
        seller, rng = self.seller, self.rng
        if rng.random() < seller.random:
            act = rng.choices((TALK, OFFER, HOLD, ACCEPT, LEAVE), (4, 8, 2, 5, 1))[0]
            return Move(act, rng.randrange(40, 101, STEP) if act == OFFER else None)
        if self.plan:
            return Move(self.plan.pop(0))
        bid = answer.price if answer and answer.act == BID else None
        if answer and answer.act == BUDGET and answer.price is not None and rng.random() < seller.heeds:
            return self._offer(answer.price + rng.choice((0, 0, STEP, 2 * STEP)))
        if bid is not None and self.late:
            self.late = False
            return Move(ASK)
        if bid is not None and (bid >= seller.content or bid >= self.next):
            return Move(ACCEPT)
        if self.offered and rng.random() < seller.holds:
            return Move(HOLD)
        return self._offer(self.next)

    def _offer(self, price: int) -> Move:
        self.offered = True
        self.next = max(self.seller.floor, price - self.seller.step)
        return Move(OFFER, price)
