"""CraigslistBargain, people who haggle over things for sale (He et al. 2018), of unstated licence,
https://stanfordnlp.github.io/cocoa/ (`train.json`, `dev.json`).

One record of the list in such a file (cut here into lines, most of it left out):

    {"uuid": "C_91d3",
     "scenario": {"category": "electronics", "kbs": [
       {"personal": {"Role": "buyer", "Target": 243, "Bottomline": null},
        "item": {"Title": "GoPro Hero4", "Price": 265, "Description": ["- Battery", "- Mount"]}},
       {"personal": {"Role": "seller", "Target": 265, "Bottomline": null}, "item": ...}]},
     "outcome": {"reward": 1, "offer": {"price": 243.0, "sides": ""}},
     "events": [
       {"agent": 0, "action": "message", "data": "how does $243 for it sound?"},
       {"agent": 1, "action": "offer", "data": {"price": 243.0, "sides": ""}},
       {"agent": 0, "action": "accept", "data": null}]}

Decision: both seats become episodes, `C_91d3:seller` and `C_91d3:buyer`, and prices become placeholders with whole
percents of the list price, so that they are comparable between things, a part of the action, and one word each:

    user       seller [line break] GoPro Hero4 [line break] - Battery - Mount [line break] list price $265, target 100%
    user       how does $PRICE 92% for it sound?
    assistant  <offer> $PARTNER_PRICE 92% [-0.83]
    user       <accept> $PARTNER_PRICE 92%

**Placeholders** are named as in CHAI (Verma et al. 2022), and what counts as a price is its rule: a number with `$`, or
one within .3 and 3 times the list price (without `$`, no letter or `%` may follow it; `5k` is 5000). Whose a price is:
`$PARTNER_PRICE` is one that, in whole percents, is the latest that the *speaker's* partner has named; `$PRICE` is any
other, which the speaker brings up. So a turn reads alike in both seats. Dollars are back by the list price of the first
observation. Listings are left as published, without the line of a description where they have none.

**Actions**: `<offer>`, `<accept>`, `<reject>` and `<quit>` are words of their own; an offer has its price behind it,
accepting and rejecting have the partner's latest offer, or else the latest one, or none where nothing was offered.

**Outcome**, on a seat's last utterance, 0 before: what is published counts. What people say behind the end is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from datasets_prep.elements import elements
from datasets_prep.files import refuse_others
from datasets_prep.records import parse
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

MESSAGE, OFFER, ACCEPT, REJECT, QUIT = ACTIONS = "message", "offer", "accept", "reject", "quit"
SELLER, BUYER = ROLES = "seller", "buyer"
NEAR = 0.3, 3.0  # times the list price: a number without $ is a price between these
VALID = 0.5, 1.5  # times the list price: deals at other prices are worth what none is
NO_DEAL = {"utility": -20.0, "fairness": -1.0, "agreement": -1.0}
REWARDS = Literal["utility", "fairness", "agreement"]

_NUMBER = r"(\d{1,3}(?:,\d{3})+(?:\.\d{1,6})?|\d{1,9}(?:\.\d{1,6})?)(k\b)?"
_PRICE = re.compile(rf"\$\s?{_NUMBER}|(?<![\w.$])(?<!\d,){_NUMBER}(?![\w%]|[.,]\d)", re.ASCII | re.IGNORECASE)


class Personal(msgspec.Struct):
    Role: str
    Target: float | None = None


class Item(msgspec.Struct):
    Title: str
    Price: float | None = None
    Description: list[str] | str | None = None


class Side(msgspec.Struct):
    personal: Personal
    item: Item


class Scenario(msgspec.Struct):
    kbs: list[Side]
    category: str = ""


class Offer(msgspec.Struct):
    price: float | None = None


class Outcome(msgspec.Struct):
    reward: int
    offer: Offer | None = None


class Event(msgspec.Struct):
    agent: int
    action: str
    data: Any = None


class Dialogue(msgspec.Struct):
    uuid: str
    scenario: Scenario
    outcome: Outcome
    events: list[Event]


def episodes(inputs: Sequence[Path], *, seed: int, reward: REWARDS = "utility") -> Iterator[Episode | Reject]:
    """Two episodes a dialogue of the published JSON lists; `seed` is not used, since nothing is drawn.

    reward: "utility", "fairness" or "agreement", see `worth`. meta: group (the dialogue), role, category, list_price,
    target (dollars), described (whether the listing has a description), outcome (deal | no_deal), price (dollars, None
    without a deal), and all three of these. A seat that says nothing is a reject.
    """
    if not inputs:
        raise InputError("craigslist needs a file: give --input train.json")
    return _episodes(inputs, reward)


def _episodes(inputs: Sequence[Path], reward: str) -> Iterator[Episode | Reject]:
    decoder = msgspec.json.Decoder(Dialogue)
    for path in inputs:
        refuse_others(path, "craigslist")
        for element in elements(path, "dialogues"):
            name = None
            try:
                dialogue = parse(decoder, element.data)
                name = dialogue.uuid
                list_price = _check(dialogue)
                texts = utterances(dialogue.events, list_price)
            except Reject as fault:
                yield element.at(path.name, fault, name)
                continue
            for role in ROLES:
                try:
                    turns, meta = _seat(dialogue, role, list_price, texts, reward)
                except Reject as fault:
                    yield element.at(path.name, fault, f"{name}:{role}")
                    continue
                yield Placed(f"{name}:{role}", turns, True, meta, file=path.name, line=element.line)


def _fault(field: str, reason: str) -> Reject:
    return Reject("", 0, field, reason)


def _check(dialogue: Dialogue) -> float:
    """The list price. Raises Reject where a record contradicts itself or has no price to compare with."""
    sides = dialogue.scenario.kbs
    if sorted(side.personal.Role for side in sides) != [BUYER, SELLER]:
        raise _fault("scenario.kbs", "it is not one buyer and one seller")
    for k, side in enumerate(sides):
        at = f"scenario.kbs[{k}]"
        for field, value in ((f"{at}.item.Price", side.item.Price), (f"{at}.personal.Target", side.personal.Target)):
            if value is None or not value > 0:
                raise _fault(field, f"it is {value if value is None else f'{value:g}'}, but must be above 0")
    price = sides[0].item.Price or 0.0
    if sides[1].item.Price != price:
        raise _fault("scenario.kbs[1].item.Price", f"it is {sides[1].item.Price:g}, but {price:g} in the other side")
    for k, event in enumerate(dialogue.events):
        _check_event(event, f"events[{k}]")
    _check_outcome(dialogue)
    return price


def _check_event(event: Event, at: str) -> None:
    if event.agent not in (0, 1):
        raise _fault(f"{at}.agent", f"{event.agent} is neither 0 nor 1")
    if event.action not in ACTIONS:
        raise _fault(f"{at}.action", f"{event.action!r} is none of {', '.join(ACTIONS)}")
    if event.action == MESSAGE and not (isinstance(event.data, str) and event.data.strip()):
        raise _fault(f"{at}.data", "a message without a text")
    if event.action == OFFER:
        price = event.data.get("price", "missing") if isinstance(event.data, dict) else "missing"
        if price is not None and (isinstance(price, bool) or not isinstance(price, int | float) or price < 0):
            raise _fault(f"{at}.data.price", f"{price!r} is no price")


def _check_outcome(dialogue: Dialogue) -> None:
    outcome = dialogue.outcome
    if outcome.reward not in (0, 1):
        raise _fault("outcome.reward", f"it is {outcome.reward}, but must be 0 or 1")
    if outcome.reward == 0:
        return
    if outcome.offer is None or outcome.offer.price is None:
        raise _fault("outcome.offer", "a deal without a price")
    if outcome.offer.price not in [event.data["price"] for event in dialogue.events if event.action == OFFER]:
        raise _fault("outcome.offer.price", f"nobody offered {outcome.offer.price:g}")
    if not any(event.action == ACCEPT for event in dialogue.events):
        raise _fault("outcome.reward", "a deal that nobody accepted")


def utterances(events: Sequence[Event], list_price: float) -> list[str]:
    """What each event says, with placeholders for prices."""
    named: list[int | None] = [None, None]  # each side's latest price in percent
    offered: list[int | None] = [None, None]
    latest: int | None = None

    def spell(side: int, percent: int) -> str:
        owner = "PARTNER_PRICE" if percent == named[1 - side] else "PRICE"
        named[side] = percent
        return f"${owner} {percent}%"

    texts = []
    for event in events:
        side = event.agent
        if event.action == MESSAGE:
            texts.append(_replaced(event.data, list_price, lambda percent, side=side: spell(side, percent)))
        elif event.action == OFFER:
            price = event.data["price"]
            offered[side] = latest = None if price is None else to_percent(price, list_price)
            texts.append(f"<{OFFER}>" if latest is None else f"<{OFFER}> {spell(side, latest)}")
        else:
            theirs = offered[1 - side]
            standing = latest if theirs is None else theirs
            told = standing is not None and event.action != QUIT
            owner = "PRICE" if theirs is None else "PARTNER_PRICE"
            texts.append(f"<{event.action}> ${owner} {standing}%" if told else f"<{event.action}>")
    return texts


def to_percent(price: float, list_price: float) -> int:
    """Whole percents of the list price, halves up; 999 for all that is more."""
    return min(999, int(100 * price / list_price + 0.5))


def _replaced(text: str, list_price: float, spell: Any) -> str:
    """A message with its prices written by `spell`, from left to right."""

    def one(match: re.Match[str]) -> str:
        dollars, thousand, bare, bare_thousand = match.groups()
        value = float((dollars or bare).replace(",", "")) * (1000 if thousand or bare_thousand else 1)
        if dollars or NEAR[0] * list_price <= value <= NEAR[1] * list_price:
            return str(spell(to_percent(value, list_price)))
        return match[0]

    return _PRICE.sub(one, text)


def worth(role: str, price: float | None, list_price: float, targets: Sequence[float]) -> dict[str, float]:
    """The three rewards of a deal, price None for none.

    utility: CHAI's for the seller, 10 (price / list - 1) within .5 to 1.5 of the list price, else -20, and no deal -20;
    for the buyer, ours, the same with the sign of the first turned. fairness: minus the distance of the price from the
    middle of both targets, in units of the list price; no deal, ours, -1. agreement: 1 for a deal, -1 for none.
    """
    if price is None:
        return dict(NO_DEAL)
    share = price / list_price
    gain = 10 * (share - 1) * (1 if role == SELLER else -1)
    utility = gain + 0.0 if VALID[0] <= share <= VALID[1] else NO_DEAL["utility"]  # no -0.0
    return {"utility": utility, "fairness": 0.0 - abs(share - sum(targets) / 2 / list_price), "agreement": 1.0}


def _seat(
    dialogue: Dialogue, role: str, list_price: float, texts: Sequence[str], reward: str
) -> tuple[tuple[Turn, ...], dict[str, Any]]:
    """Turns and meta of a seat. Raises Reject where it says nothing."""
    sides, outcome = dialogue.scenario.kbs, dialogue.outcome
    seat = next(k for k, side in enumerate(sides) if side.personal.Role == role)
    mine = [event.agent == seat for event in dialogue.events]
    if not any(mine):
        raise _fault("events", f"the {role} says nothing")
    deal = outcome.reward == 1 and outcome.offer is not None
    price = outcome.offer.price if deal and outcome.offer else None
    targets = [side.personal.Target or 0.0 for side in sides]
    item, described = sides[seat].item, _described(sides[seat].item)
    meta: dict[str, Any] = {"group": dialogue.uuid, "role": role, "category": dialogue.scenario.category}
    meta |= {
        "list_price": list_price,
        "target": targets[seat],
        "described": bool(described),
        "outcome": "deal" if deal else "no_deal",
    }
    meta |= {"price": price, **worth(role, price, list_price, targets)}
    goal = f"list price ${list_price:g}, target {to_percent(targets[seat], list_price)}%"
    turns = [Turn(PARTNER, "\n".join([role, item.Title.strip(), *([described] if described else []), goal]))]
    turns += [Turn(AGENT if own else PARTNER, text) for own, text in zip(mine, texts, strict=True)]
    last = max(k for k, turn in enumerate(turns) if turn.role == AGENT)
    turns[last] = Turn(AGENT, turns[last].text, float(meta[reward]))
    return tuple(turns), meta


def _described(item: Item) -> str:
    """The description on one line; "" where the listing has none."""
    parts = [item.Description] if isinstance(item.Description, str) else item.Description or []
    return " ".join(" ".join(parts).split())
