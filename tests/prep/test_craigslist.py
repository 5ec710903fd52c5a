"""People's bargains: both seats, prices as placeholders, what a deal is worth, rejects, and the published counts."""

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasets_prep.__main__ import main
from datasets_prep.craigslist import Event, episodes, to_percent, utterances, worth
from datasets_prep.rejects import Placed, Reject
from ilql import schema
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn


def side(role: str, target: float, description: Any = ("nice", "and  new")) -> dict[str, Any]:
    item = {"Title": " Bike ", "Price": 200, "Description": description, "Images": [], "Category": "bike"}
    return {"personal": {"Role": role, "Target": target, "Bottomline": None}, "item": item}


def says(agent: int, action: str, data: Any = None) -> dict[str, Any]:
    return {"agent": agent, "action": action, "data": data, "time": "1.5", "start_time": None}


def offers(agent: int, price: float | None) -> dict[str, Any]:
    return says(agent, "offer", {"price": price, "sides": ""})


DEAL: dict[str, Any] = {
    "uuid": "C_1",
    "scenario": {"uuid": "S_1", "category": "bike", "kbs": [side("buyer", 140), side("seller", 200)]},
    "agents": {"0": "human", "1": "human"},
    "outcome": {"reward": 1, "offer": {"price": 170.0, "sides": ""}},
    "events": [
        says(0, "message", "Hi, would you take $140?"),
        says(1, "message", "No, 180 at least. It is 2 years old"),
        says(0, "message", "I can not do 180, but 170"),
        offers(1, 170.0),
        says(0, "accept"),
    ],
}
QUIT: dict[str, Any] = {
    **DEAL,
    "uuid": "C_2",
    "outcome": {"reward": 0, "offer": None},
    "events": [says(1, "message", "hi"), says(0, "quit")],
}


def read(tmp_path: Path, *dialogues: Any, **options: Any) -> list[Episode | Reject]:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(list(dialogues), indent=1))
    return list(episodes([path], seed=0, **options))


def test_the_two_seats_of_a_deal(tmp_path: Path) -> None:
    seller, buyer = read(tmp_path, DEAL)
    meta = {"group": "C_1", "category": "bike", "list_price": 200, "described": True, "outcome": "deal", "price": 170}
    meta |= {"fairness": 0.0, "agreement": 1.0}
    assert seller == Placed(
        "C_1:seller",
        (
            Turn(PARTNER, "seller\nBike\nnice and new\nlist price $200, target 100%"),
            Turn(PARTNER, "Hi, would you take $PRICE 70%?"),
            Turn(AGENT, "No, $PRICE 90% at least. It is 2 years old"),
            Turn(PARTNER, "I can not do $PARTNER_PRICE 90%, but $PRICE 85%"),
            Turn(AGENT, "<offer> $PARTNER_PRICE 85%", pytest.approx(-1.5)),
            Turn(PARTNER, "<accept> $PARTNER_PRICE 85%"),
        ),
        True,
        meta | {"role": "seller", "target": 200, "utility": pytest.approx(-1.5)},
        file="dev.json",
        line=2,
    )
    assert isinstance(buyer, Placed)
    assert buyer.id == "C_1:buyer"
    assert buyer.meta == meta | {"role": "buyer", "target": 140, "utility": pytest.approx(1.5)}
    assert buyer.turns[0].text == "buyer\nBike\nnice and new\nlist price $200, target 70%"
    assert [t.text for t in buyer.turns[1:]] == [t.text for t in seller.turns[1:]]
    assert [t.role == AGENT for t in buyer.turns[1:]] == [t.role != AGENT for t in seller.turns[1:]]
    assert [t.reward for t in buyer.turns] == [0.0] * 5 + [pytest.approx(1.5)]


@pytest.mark.parametrize(
    ("text", "list_price", "told"),
    [
        ("$140", 200, "$PRICE 70%"),
        ("$ 140.", 200, "$PRICE 70%."),
        ("60 or 59", 200, "$PRICE 30% or 59"),  # .3 times the list price
        ("600 or 601", 200, "$PRICE 300% or 601"),  # 3 times
        ("$59 or $601", 200, "$PRICE 30% or $PRICE 301%"),
        ("$20 for delivery", 200, "$PRICE 10% for delivery"),
        ("$0", 200, "$PRICE 0%"),
        ("$99999999", 200, "$PRICE 999%"),
        ("8,500 or $8,450.50", 10000, "$PRICE 85% or $PRICE 85%"),
        ("8.5k, 8k", 10000, "$PRICE 85%, $PRICE 80%"),
        ("$5k", 10000, "$PRICE 50%"),
        ("$150ish", 200, "$PRICE 75%ish"),
        ("150th 1080p a100 100% v1.100 100x", 200, "150th 1080p a100 100% v1.100 100x"),
        ("cash,100!", 200, "cash,$PRICE 50%!"),
        ("100.", 200, "$PRICE 50%."),
        ("100.5.3", 200, "100.5.3"),
        ("15", 15, "$PRICE 100%"),
        ("\u0661\u0660\u0660 and €100", 200, "\u0661\u0660\u0660 and €$PRICE 50%"),
        ("nothing", 200, "nothing"),
    ],
)
def test_what_is_a_price(text: str, list_price: float, told: str) -> None:
    assert utterances([Event(0, "message", text)], list_price) == [told]


def talk(*events: tuple[Any, ...]) -> list[str]:
    return utterances([Event(*event) for event in events], 100)


def test_whose_a_price_is() -> None:
    """Only the latest of the partner's is the partner's; one that both have named is the partner's too."""
    assert talk(
        (0, "message", "50"),
        (1, "message", "50? No, 80"),
        (0, "message", "50 or 80"),
        (1, "message", "80, not 50"),
        (0, "message", "60.2"),
        (1, "message", "$59.8 it is"),
    ) == [
        "$PRICE 50%",
        "$PARTNER_PRICE 50%? No, $PRICE 80%",
        "$PRICE 50% or $PARTNER_PRICE 80%",
        "$PARTNER_PRICE 80%, not $PRICE 50%",
        "$PRICE 60%",
        "$PARTNER_PRICE 60% it is",
    ]


def test_what_is_accepted_or_rejected_is_the_partners_latest_offer() -> None:
    assert talk((0, "offer", {"price": 60.0}), (1, "offer", {"price": 70.0}), (0, "accept"), (1, "reject")) == [
        "<offer> $PRICE 60%",
        "<offer> $PRICE 70%",
        "<accept> $PARTNER_PRICE 70%",
        "<reject> $PARTNER_PRICE 60%",
    ]
    assert talk((0, "offer", {"price": 60.0}), (0, "accept"), (1, "quit")) == [
        "<offer> $PRICE 60%",
        "<accept> $PRICE 60%",  # its own: nobody else has offered anything
        "<quit>",
    ]
    assert talk((0, "accept"), (1, "reject"), (1, "offer", {"price": None})) == ["<accept>", "<reject>", "<offer>"]


def test_percents() -> None:
    assert [to_percent(price, 200) for price in (0, 0.99, 1, 100, 101, 102.9, 200, 1998, 5000)] == [
        0,
        0,
        1,
        50,
        51,
        51,
        100,
        999,
        999,
    ]


@pytest.mark.parametrize(
    ("price", "seller", "buyer"),
    [(200, 0, 0), (100, -5, 5), (300, 5, -5), (99, -20, -20), (301, -20, -20), (0, -20, -20), (None, -20, -20)],
)
def test_utility(price: float | None, seller: float, buyer: float) -> None:
    for role, value in (("seller", seller), ("buyer", buyer)):
        found = worth(role, price, 200, [140, 200])
        assert found["utility"] == pytest.approx(value)
        assert str(found["utility"]) != "-0.0"
        assert found["agreement"] == (-1 if price is None else 1)


def test_fairness_is_the_distance_from_the_middle_of_the_targets() -> None:
    assert worth("seller", 170, 200, [140, 200])["fairness"] == 0
    assert worth("seller", 190, 200, [140, 200])["fairness"] == pytest.approx(-0.1)
    assert worth("buyer", 150, 200, [140, 200])["fairness"] == pytest.approx(-0.1)
    assert worth("buyer", None, 200, [140, 200])["fairness"] == -1


@pytest.mark.parametrize(("reward", "paid"), [("utility", [-20, -20]), ("fairness", [-1, -1]), ("agreement", [-1, -1])])
def test_no_deal(tmp_path: Path, reward: str, paid: list[float]) -> None:
    found = [e for e in read(tmp_path, QUIT, reward=reward) if isinstance(e, Episode)]
    assert [e.total_reward for e in found] == paid
    assert [e.turns[1].reward for e in found] == [paid[0], 0]  # each on its own last utterance
    assert [e.turns[2].reward for e in found] == [0, paid[1]]
    assert all(e.terminated and e.meta["outcome"] == "no_deal" and e.meta["price"] is None for e in found)


@pytest.mark.parametrize("description", [None, [], "", [" ", ""]])
def test_a_listing_without_a_description_has_no_line_of_it(tmp_path: Path, description: Any) -> None:
    dialogue = changed("scenario.kbs.1.item.Description", description)
    seller = read(tmp_path, dialogue)[0]
    assert isinstance(seller, Episode)
    assert seller.turns[0].text == "seller\nBike\nlist price $200, target 100%"
    assert seller.meta["described"] is False


MISSING = object()


def changed(where: str, value: Any) -> dict[str, Any]:
    """The deal with one field set, as in "events.2.data"; MISSING deletes it."""
    dialogue = copy.deepcopy(DEAL)
    *path, last = where.split(".")
    inner: Any = dialogue
    for key in path:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    key = int(last) if isinstance(inner, list) else last
    if value is MISSING:
        del inner[key]
    else:
        inner[key] = value
    return dialogue


PRICE, TARGET = "scenario.kbs[0].item.Price", "scenario.kbs[1].personal.Target"


@pytest.mark.parametrize(
    ("where", "value", "field", "reason"),
    [
        ("scenario.kbs.0.item.Price", 0, PRICE, "it is 0, but must be above 0"),
        ("scenario.kbs.0.item.Price", -1, PRICE, "it is -1, but must be above 0"),
        ("scenario.kbs.0.item.Price", None, PRICE, "it is None, but must be above 0"),
        ("scenario.kbs.0.item.Price", MISSING, PRICE, "it is None, but must be above 0"),
        ("scenario.kbs.0.item.Price", "200", "scenario.kbs[0].item.Price", "got `str`"),
        ("scenario.kbs.0.item.Price", 210, "scenario.kbs[1].item.Price", "it is 200, but 210 in the other side"),
        ("scenario.kbs.0.item.Title", MISSING, "scenario.kbs[0].item", "missing required field `Title`"),
        ("scenario.kbs.1.personal.Target", None, TARGET, "it is None, but must be above 0"),
        ("scenario.kbs.1.personal.Target", 0, TARGET, "it is 0, but must be above 0"),
        ("scenario.kbs.1.personal.Role", "buyer", "scenario.kbs", "it is not one buyer and one seller"),
        ("scenario.kbs.1", MISSING, "scenario.kbs", "it is not one buyer and one seller"),
        ("events.1.action", "shout", "events[1].action", "'shout' is none of message, offer"),
        ("events.1.agent", 2, "events[1].agent", "2 is neither 0 nor 1"),
        ("events.1.agent", MISSING, "events[1]", "missing required field `agent`"),
        ("events.1.data", None, "events[1].data", "a message without a text"),
        ("events.1.data", " ", "events[1].data", "a message without a text"),
        ("events.3.data", None, "events[3].data.price", "'missing' is no price"),
        ("events.3.data", {"sides": ""}, "events[3].data.price", "'missing' is no price"),
        ("events.3.data", {"price": -3}, "events[3].data.price", "-3 is no price"),
        ("events.3.data", {"price": True}, "events[3].data.price", "True is no price"),
        ("events.3.data", {"price": "170"}, "events[3].data.price", "'170' is no price"),
        ("events", MISSING, "", "missing required field `events`"),
        ("events.4", MISSING, "outcome.reward", "a deal that nobody accepted"),
        ("outcome.reward", 2, "outcome.reward", "it is 2, but must be 0 or 1"),
        ("outcome.reward", 0.5, "outcome.reward", "`int`"),
        ("outcome.offer", None, "outcome.offer", "a deal without a price"),
        ("outcome.offer.price", None, "outcome.offer", "a deal without a price"),
        ("outcome.offer.price", 171.0, "outcome.offer.price", "nobody offered 171"),
        ("uuid", MISSING, "", "missing required field `uuid`"),
    ],
)
def test_a_fault_costs_one_dialogue(tmp_path: Path, where: str, value: Any, field: str, reason: str) -> None:
    found = read(tmp_path, QUIT, changed(where, value), {**QUIT, "uuid": "C_3"})
    assert [type(item) for item in found] == [Placed, Placed, Reject, Placed, Placed]
    fault = found[2]
    assert isinstance(fault, Reject)
    assert reason in fault.reason
    assert fault.field == f"[1].{field}".rstrip(".")
    text = (tmp_path / "dev.json").read_text().splitlines()
    assert (fault.file, text[fault.line - 1].strip()) == ("dev.json", "{")
    assert fault.line > 2


def test_a_price_that_overflows_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([changed("events.3.data", {"price": 170, "x": 1})]).replace("170,", "1e999,"))
    assert all(isinstance(item, Reject) for item in episodes([path], seed=0))


def test_a_seat_that_says_nothing_costs_itself_only(tmp_path: Path) -> None:
    alone = {**QUIT, "events": [says(1, "message", "hi"), says(1, "quit")]}
    seller, fault = read(tmp_path, alone)
    assert isinstance(seller, Episode)
    assert isinstance(fault, Reject)
    assert (fault.field, fault.reason, fault.id) == ("[0].events", "the buyer says nothing", "C_2:buyer")


def test_without_an_input_and_of_another_corpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--input train\.json"):
        episodes([], seed=0)
    path = tmp_path / "x.json"
    path.write_text('[{"chat_logs": []}]\n')
    with pytest.raises(InputError, match=r"not look like a file of craigslist, but like one of casino"):
        list(episodes([path], seed=0))


# ---- the published file ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(corpora: Callable[[str], Path]) -> list[Episode | Reject]:
    return list(episodes([corpora("craigslist/dev.json")], seed=0))


def test_published_counts(published: list[Episode | Reject], corpora: Callable[[str], Path]) -> None:
    found = [item for item in published if isinstance(item, Episode)]
    assert len(found) == len(published) == 2 * 643
    raw = {dialogue["uuid"]: dialogue for dialogue in json.loads(corpora("craigslist/dev.json").read_text())}
    for role in ("seller", "buyer"):
        seat = [episode for episode in found if episode.meta["role"] == role]
        deals = [episode for episode in seat if episode.meta["outcome"] == "deal"]
        assert (len(seat), len(deals)) == (643, 461)
        assert sum(0.5 <= e.meta["price"] / e.meta["list_price"] <= 1.5 for e in deals) == 449
        assert sum(e.meta["utility"] > -20 for e in seat) == 449
        assert Counter(e.meta["agreement"] for e in seat) == {1: 461, -1: 182}
        for episode in deals:
            assert episode.meta["price"] == raw[episode.meta["group"]]["outcome"]["offer"]["price"]
    for episode in found:
        events = raw[episode.meta["group"]]["events"]
        assert len(episode.turns) == 1 + len(events)
        last = max(k for k, turn in enumerate(episode.turns) if turn.role == AGENT)
        assert [t.reward for t in episode.turns if t.reward] == [episode.meta["utility"]] * bool(
            episode.meta["utility"]
        )
        assert episode.turns[last].reward == episode.meta["utility"]


def test_published_prices_are_placeholders(published: list[Episode | Reject]) -> None:
    said = [t.text for e in published if isinstance(e, Episode) for t in e.turns[1:] if t.role == AGENT]
    assert not [text for text in said if re.search(r"\$\s?\d", text)]
    marks = Counter(mark for text in said for mark in re.findall(r"\$(\w+) \d+%", text))
    assert marks["PRICE"] > marks["PARTNER_PRICE"] > 1000
    actions = Counter(match[1] for text in said if (match := re.match(r"<(\w+)>", text)))
    assert actions == {"offer": 557, "accept": 467, "reject": 65, "quit": 57}


@pytest.mark.parametrize("step", ["token", "utterance"])
def test_a_dataset_of_the_published_file(step: str, tmp_path: Path, corpora: Callable[[str], Path]) -> None:
    out = tmp_path / "out"
    options = ["--input", str(corpora("craigslist/dev.json")), "--tokenizer", "word", "--step", step]
    assert main(["craigslist", *options, "--validation", "0.1", "--output", str(out)]) == 0
    statistics = schema.validate(out)["statistics"]
    assert (statistics["rows_out"], statistics["rejected"]) == (1286, 0)
