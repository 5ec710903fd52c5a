"""Haggling with a *simulated buyer*: the agent sells one of sixty things, in words, by rules of our own.

Decision: a partially observed task on purpose, small enough to be solved exactly. Asking for the buyer's budget costs
time and brings no money by itself, but tells most of what is hidden. All that happens follows from two acts, the
seller's and the buyer's (`react`); the words around them are drawn at random and say nothing more.

    user       For sale: oak desk, $120. Is the oak desk still available?
    assistant  What is your budget?                          reward -.02, as every utterance
    user       I can spend 85% of the price at most.
    assistant  I can do 90%.
    user       That is too much for me. I would give 65%.
    assistant  What about 85%?                               reward .68 = (85 - 50) / 50 - .02
    user       All right, 85% it is. Deal!

**The buyer** is drawn from the seed, each of these by itself: its `limit`, the most it pays, 55, 60, ..., 100 % of the
list price, all equally likely; `gap` 10, 20 or 30; `style` concedes (.5), stubborn (.3) or erratic (.2); `candour`
frank (.7), shrewd (.15) or silent (.15); `patience` 2, 4, 6 or 8. The thing is the seed modulo 60. Prices are whole
percents of the list price.

**The seller's acts.** Any text is one of these; the first line that fits decides, case does not matter:

| act | is a text with |
|---|---|
| offer P | a price: `P%`, `P percent`, or `$P`, which counts relative to the list price; the last one in the text |
| leave | bye, goodbye, or "no deal" |
| ask | budget, spend, or afford |
| hold | firm, final, or lower |
| accept | accept, agreed, sold, or deal |
| talk | anything else |

**The buyer's answers.** An offer up to its limit is a deal at that price. A higher one is refused and costs 2 of its
patience, one more than 20 above the limit 4; the buyer then bids limit - gap at its first refusal and goes on by style:
a stubborn one stays there, one that concedes adds 10 at each refusal, an erratic one bids 10 less than at first, 10
more, and as at first, in turns; never above its limit. To hold is to offer the last price again. To accept is a deal at
the buyer's latest bid. To ask the first time costs no patience: a frank buyer says its limit, a shrewd one 20 less, a
silent one does not tell; asked again it says the same, for 2. Talk costs 1, and so does to hold or to accept where
there is no price yet. A buyer whose patience is used up goes away instead of answering.

**Reward**, on the utterance that brings it: a deal at P % is worth (P - 50) / 50, since the thing has cost the seller
50 %; no deal, whoever leaves, -.2; and every utterance costs .02. All ends are the task's own: they terminate.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ilql.types import Episode, Reply

SEATS = 1
COST = 50  # what the thing has cost the seller, in percent of the list price
UTTERANCE_COST, NO_DEAL = 0.02, -0.2
LIMITS = tuple(range(55, 101, 5))
GAPS = (10, 20, 30)
STYLES = {"concedes": 0.5, "stubborn": 0.3, "erratic": 0.2}  # name -> share
CANDOUR = {"frank": 0.7, "shrewd": 0.15, "silent": 0.15}
PATIENCE = (2, 4, 6, 8)
SHREWD, OUTRAGE = 20, 20  # how far a shrewd buyer's word is from its limit; how far above it an offer is an outrage

OFFER, LEAVE, ASK, HOLD, ACCEPT, TALK = ACTS = "offer", "leave", "ask", "hold", "accept", "talk"
DEAL, GONE, BID, BUDGET, SILENCE, CHAT = "deal", "gone", "bid", "budget", "silence", "chat"  # the buyer's

_NUMBER = r"([0-9]{1,6}(?:\.[0-9]{1,6})?)"
_PRICE = re.compile(rf"(?<![\w.]){_NUMBER} ?(?:%|percent\b)|\$ ?{_NUMBER}(?![\w%]|\.[0-9])")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3})")
_WORDS = (
    (LEAVE, re.compile(r"\b(?:good)?bye\b|\bno deal\b")),
    (ASK, re.compile(r"\b(?:budget|spend|afford)\b")),
    (HOLD, re.compile(r"\b(?:firm|final|lower)\b")),
    (ACCEPT, re.compile(r"\b(?:accept|agreed|sold|deal)\b")),
)

# Things and their list prices in dollars.
ITEMS = tuple(
    (name, int(price))
    for name, price in re.findall(
        r"([a-z][a-z ]*) (\d+)[,.]",
        """oak desk 120, red bike 180, floor lamp 40, leather sofa 450, coffee table 90, electric guitar 260,
        baby stroller 75, gas grill 150, wool rug 110, road bike 520, office chair 85, dining table 300, wall mirror 45,
        queen mattress 240, book shelf 60, garden bench 95, camping tent 130, snow board 160, tennis racket 55,
        sewing machine 140, record player 125, game console 210, kitchen mixer 170, espresso machine 280,
        washing machine 320, bar stool 35, fish tank 105, bird cage 50, dog crate 65, golf set 230, rowing machine 340,
        yoga mat 20, bunk bed 270, night stand 48, filing cabinet 70, desk fan 25, space heater 58, air purifier 115,
        digital camera 360, video projector 290, studio monitor 190, acoustic guitar 175, upright piano 800,
        drum kit 410, car rack 135, roof box 220, winter tires 310, tool chest 155, table saw 380, lawn mower 235,
        leaf blower 88, pressure washer 145, picnic table 128, porch swing 165, antique clock 330, silver tray 78,
        oil painting 425, silk curtain 68, stone fountain 275, vintage radio 98.""",
    )
)

_OPENINGS = (
    "Is the {item} still available?",
    "Hi, I saw your {item}.",
    "Hello, I like the {item}.",
    "Good morning, do you still have the {item}?",
    "Hey, I need one like that.",
)
_TEXTS = {
    DEAL: (
        "All right, {price}% it is. Deal!",
        "{price}% is fine, I take it.",
        "You have a deal at {price}%.",
        "Great, I will pay {price}%.",
        "Done, {price}%. See you soon.",
    ),
    GONE: (
        "I have had enough. Bye.",
        "Forget it, I am out.",
        "This leads nowhere. Goodbye.",
        "I will look somewhere else.",
        "No thanks, I am leaving.",
    ),
    BID: (
        "That is too much for me. I would give {price}%.",
        "No, but I can pay {price}%.",
        "Hmm, what about {price}%?",
        "Too high. My offer is {price}%.",
        "I was thinking of {price}%.",
        "Could you do {price}% instead?",
        "Others sell it for {price}%.",
    ),
    BUDGET: (
        "I can spend {price}% of the price at most.",
        "My budget is {price}%.",
        "I have {price}% with me, not more.",
        "Up to {price}% would be fine.",
        "Honestly, {price}% is all I have.",
    ),
    SILENCE: (
        "I would rather not say.",
        "That is my business.",
        "You name a price first.",
        "It depends.",
    ),
    CHAT: (
        "Nice. So what is your price?",
        "Sure. How much do you want?",
        "I see. What do you ask for it?",
        "Okay, let us talk about the price.",
    ),
}


class Buyer(NamedTuple):
    """What is hidden; see above. Prices in percent of the list price."""

    limit: int
    gap: int
    style: str
    candour: str
    patience: int


class State(NamedTuple):
    """How far a talk has come: patience left, refusals so far, whether it was asked, the latest bid and offer."""

    patience: int
    refusals: int = 0
    asked: bool = False
    bid: int | None = None
    offer: int | None = None


class Move(NamedTuple):
    """What a side does: one of ACTS, or one of the buyer's, with its price where it has one."""

    act: str
    price: int | None = None


def draw_buyer(rng: random.Random) -> Buyer:
    style, candour = (rng.choices(list(shares), list(shares.values()))[0] for shares in (STYLES, CANDOUR))
    return Buyer(rng.choice(LIMITS), rng.choice(GAPS), style, candour, rng.choice(PATIENCE))


def react(buyer: Buyer, state: State, move: Move) -> tuple[State, Move]:
    """The rules: the buyer's answer to the seller's move, and the state behind it."""
    act, price = move
    if act == LEAVE:
        return state, Move(GONE)
    if act == ACCEPT and state.bid is not None:
        return state, Move(DEAL, state.bid)
    if act == HOLD and state.offer is not None:
        act, price = OFFER, state.offer
    if act == OFFER and price is not None:
        return _offered(buyer, state, price)
    if act == ASK:
        state = state._replace(asked=True, patience=state.patience - 2 * state.asked)
        told = {"frank": Move(BUDGET, buyer.limit), "shrewd": Move(BUDGET, buyer.limit - SHREWD)}
        return _unless_gone(state, told.get(buyer.candour, Move(SILENCE)))
    return _unless_gone(state._replace(patience=state.patience - 1), Move(CHAT))


def _offered(buyer: Buyer, state: State, price: int) -> tuple[State, Move]:
    if price <= buyer.limit:
        return state._replace(offer=price), Move(DEAL, price)
    more = {"concedes": 10 * state.refusals, "stubborn": 0, "erratic": (0, -10, 10)[state.refusals % 3]}[buyer.style]
    bid = min(buyer.limit, buyer.limit - buyer.gap + more)
    patience = state.patience - (4 if price > buyer.limit + OUTRAGE else 2)
    return _unless_gone(State(patience, state.refusals + 1, state.asked, bid, price), Move(BID, bid))


def _unless_gone(state: State, answer: Move) -> tuple[State, Move]:
    return state, answer if state.patience > 0 else Move(GONE)


def worth(answer: Move) -> float:
    """The reward of an utterance that is answered so."""
    if answer.act == DEAL and answer.price is not None:
        return (answer.price - COST) / COST - UTTERANCE_COST
    return (NO_DEAL if answer.act == GONE else 0.0) - UTTERANCE_COST


def parse(utterance: str, list_price: int) -> Move:
    """The seller's move that a text is; see the table above."""
    text = _THOUSANDS.sub("", utterance.lower())
    prices = _PRICE.findall(text)
    if prices:
        percent, dollars = prices[-1]
        return Move(OFFER, round(float(percent) if percent else 100 * float(dollars) / list_price))
    return Move(next((act for act, words in _WORDS if words.search(text)), TALK))


class Haggle:
    """One talk.

    Public facts: `buyer` (hidden from the policy), `item` (its number in ITEMS), `state`, `answer` (the buyer's latest,
    None before the first), `asked` (how often the seller asked for the budget), `utterances`.
    """

    def __init__(self) -> None:
        self.buyer = Buyer(LIMITS[0], GAPS[0], "stubborn", "silent", PATIENCE[0])
        self.item = 0
        self._begin()
        self._over = True

    def _begin(self) -> None:
        self.state = State(self.buyer.patience)
        self.answer: Move | None = None
        self.asked = self.utterances = 0
        self._over = False

    def reset(self, seed: int) -> str:
        """Meet the buyer of a seed, who wants thing number `seed` modulo 60."""
        rng = random.Random(f"haggle/{seed}")
        return self.meet(draw_buyer(rng), seed % len(ITEMS), rng)

    def meet(self, buyer: Buyer, item: int, rng: random.Random) -> str:
        """Begin with a given buyer, whose words `rng` chooses; returns the first observation, which is the thing's."""
        self.buyer, self.item, self._rng = buyer, item, rng
        self._begin()
        name, price = ITEMS[item]
        return f"For sale: {name}, ${price}. {_OPENINGS[item % len(_OPENINGS)].format(item=name)}"

    def step(self, utterance: str) -> Reply:
        """Hear an utterance. RuntimeError after the end."""
        if self._over:
            raise RuntimeError("the talk is over: call reset")
        move = parse(utterance, ITEMS[self.item][1])
        self.asked += move.act == ASK
        self.utterances += 1
        self.state, self.answer = react(self.buyer, self.state, move)
        self._over = self.answer.act in (DEAL, GONE)
        text = self._rng.choice(_TEXTS[self.answer.act]).format(price=self.answer.price)
        return Reply(text, worth(self.answer), terminated=self._over)

    def facts(self) -> dict[str, Any]:
        """What a transcript records: the buyer, and how it went. `price` is None without a deal."""
        deal = self.answer is not None and self.answer.act == DEAL
        price = self.answer.price if deal and self.answer else None
        return {"item": ITEMS[self.item][0], **self.buyer._asdict(), "asked": self.asked, "deal": deal, "price": price}


def make() -> Callable[[], Haggle]:
    """A factory of talks, as `rollout` asks for; there are no options."""
    return Haggle


def summary(episodes: Sequence[Episode]) -> dict[str, list[float | None]]:
    """Extra columns of an evaluation: talks that end in a deal (%), the deals' prices (% of the list price), talks in
    which the seller asked for the budget (%), and the seller's utterances."""
    return {
        "deal %": [100.0 * episode.meta["deal"] for episode in episodes],
        "price (deals)": [episode.meta["price"] for episode in episodes],
        "asked %": [100.0 * (episode.meta["asked"] > 0) for episode in episodes],
        "utterances": [float(sum(turn.is_action for turn in episode.turns)) for episode in episodes],
    }
