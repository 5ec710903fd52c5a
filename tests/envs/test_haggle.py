"""The rules of haggling: what a text means, what a buyer answers, what is paid, and the best that a seller can do."""

import random
from itertools import product

import pytest

from examples.haggle_optimum import Search, follow, kinds
from ilql.envs import haggle as module
from ilql.envs.haggle import (
    ACCEPT,
    ASK,
    BID,
    BUDGET,
    CHAT,
    DEAL,
    GONE,
    HOLD,
    ITEMS,
    LEAVE,
    OFFER,
    SILENCE,
    TALK,
    Buyer,
    Haggle,
    Move,
    State,
    draw_buyer,
    make,
    parse,
    react,
    summary,
    worth,
)
from ilql.rollout import rollout
from ilql.types import PARTNER, Turn


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("How about 85%?", Move(OFFER, 85)),
        ("how about 85 percent", Move(OFFER, 85)),
        ("85 % AND IT IS YOURS", Move(OFFER, 85)),
        ("not 70%, but 85.4% and a smile", Move(OFFER, 85)),
        ("What is your budget? Mine was 90%.", Move(OFFER, 90)),
        ("You accept 60%? No deal, goodbye", Move(OFFER, 60)),
        ("$102 and it is yours", Move(OFFER, 85)),
        ("$ 102.00!", Move(OFFER, 85)),
        ("$1,200.", Move(OFFER, 1000)),
        ("$85%", Move(OFFER, 85)),
        ("0%", Move(OFFER, 0)),
        ("$0", Move(OFFER, 0)),
        ("I bought it 2 years ago for 300", Move(TALK)),
        ("1234567%", Move(TALK)),
        ("8٥%", Move(TALK)),
        ("What is your Budget?", Move(ASK)),
        ("How much can you spend?", Move(ASK)),
        ("what can you afford", Move(ASK)),
        ("May I ask something?", Move(TALK)),
        ("I am firm on that.", Move(HOLD)),
        ("I can not go lower.", Move(HOLD)),
        ("The final answer: I accept", Move(HOLD)),
        ("Okay, deal.", Move(ACCEPT)),
        ("Sold!", Move(ACCEPT)),
        ("No deal, bye.", Move(LEAVE)),
        ("Goodbye, spend it elsewhere", Move(LEAVE)),
        ("byes and dealers and finals and soldiers", Move(TALK)),
        ("", Move(TALK)),
        ("%$ 💰", Move(TALK)),
    ],
)
def test_what_a_text_means(text: str, move: Move) -> None:
    assert parse(text, 120) == move


def answers(buyer: Buyer, *moves: Move) -> list[Move]:
    """The buyer's answers up to its end; every state on the way has to follow from the one before it."""
    state, found = State(buyer.patience), []
    for move in moves:
        assert not found or found[-1].act not in (DEAL, GONE)
        state, answer = react(buyer, state, move)
        found.append(answer)
    return found


def bids(style: str, gap: int = 30) -> list[int | None]:
    return [a.price for a in answers(Buyer(80, gap, style, "frank", 12), *[Move(OFFER, 85)] * 5) if a.act == BID]


def test_how_each_style_bids() -> None:
    assert bids("stubborn") == [50, 50, 50, 50, 50]
    assert bids("concedes") == [50, 60, 70, 80, 80]
    assert bids("erratic") == [50, 40, 60, 50, 40]
    assert bids("erratic", gap=10) == [70, 60, 80, 70, 60]
    assert bids("concedes", gap=10) == [70, 80, 80, 80, 80]


BUYER = Buyer(80, 20, "stubborn", "frank", 4)


def test_an_offer_up_to_the_limit_is_a_deal_at_its_price() -> None:
    for price in (0, 40, 80):
        assert answers(BUYER, Move(OFFER, price)) == [Move(DEAL, price)]
    assert answers(BUYER, Move(OFFER, 81)) == [Move(BID, 60)]
    assert answers(BUYER, Move(OFFER, 85), Move(ACCEPT)) == [Move(BID, 60), Move(DEAL, 60)]


def test_what_patience_is_spent_on() -> None:
    high, outrage = Move(OFFER, 100), Move(OFFER, 101)
    assert answers(BUYER, high, high) == [Move(BID, 60), Move(GONE)]
    assert answers(BUYER, high, Move(HOLD)) == [Move(BID, 60), Move(GONE)]
    assert answers(BUYER, outrage) == [Move(GONE)]
    assert answers(BUYER._replace(patience=6), outrage, high) == [Move(BID, 60), Move(GONE)]
    for idle in (Move(TALK), Move(HOLD), Move(ACCEPT)):  # there is no price yet
        assert answers(BUYER, *[idle] * 4) == [Move(CHAT)] * 3 + [Move(GONE)]
    assert answers(BUYER, Move(TALK), high, Move(TALK)) == [Move(CHAT), Move(BID, 60), Move(GONE)]
    assert answers(BUYER, Move(LEAVE)) == [Move(GONE)]


@pytest.mark.parametrize(
    ("candour", "told"), [("frank", Move(BUDGET, 80)), ("shrewd", Move(BUDGET, 60)), ("silent", Move(SILENCE))]
)
def test_asking_costs_no_patience_the_first_time(candour: str, told: Move) -> None:
    buyer, ask = BUYER._replace(candour=candour), Move(ASK)
    assert answers(buyer, ask, ask, ask) == [told, told, Move(GONE)]
    assert answers(buyer, ask, Move(OFFER, 100), ask) == [told, Move(BID, 60), Move(GONE)]
    assert answers(buyer, Move(OFFER, 100), ask, Move(OFFER, 80)) == [Move(BID, 60), told, Move(DEAL, 80)]


def test_what_a_talk_is_worth() -> None:
    assert worth(Move(DEAL, 85)) == pytest.approx(0.68)
    assert worth(Move(DEAL, 100)) == pytest.approx(0.98)
    assert worth(Move(DEAL, 0)) == pytest.approx(-1.02)
    assert worth(Move(GONE)) == pytest.approx(-0.22)
    assert worth(Move(BID, 60)) == worth(Move(CHAT)) == worth(Move(BUDGET, 60)) == -0.02


def test_a_talk_in_words() -> None:
    env = Haggle()
    first = env.meet(Buyer(85, 20, "concedes", "frank", 4), 0, random.Random(0))
    assert first == "For sale: oak desk, $120. Is the oak desk still available?"
    told = env.step("What is your budget?")
    assert "85%" in told.text
    assert (told.reward, told.over) == (-0.02, False)
    refused = env.step("Then give me $120.")
    assert "65%" in refused.text
    deal = env.step("Let us say 85%.")
    assert "85%" in deal.text
    assert (deal.reward, deal.terminated, deal.truncated) == (pytest.approx(0.68), True, False)
    facts = {"limit": 85, "gap": 20, "style": "concedes", "candour": "frank", "patience": 4}
    assert env.facts() == {"item": "oak desk", **facts, "asked": 1, "deal": True, "price": 85}


def test_walking_away_and_being_left_are_ends_of_the_task() -> None:
    for seed in range(20):
        env = Haggle()
        env.reset(seed)
        left = env.step("No deal.")
        assert (left.reward, left.terminated) == (pytest.approx(-0.22), True)
        env.reset(seed)
        total, utterances = 0.0, 0
        while True:
            reply = env.step("nice weather")
            total, utterances = total + reply.reward, utterances + 1
            if reply.over:
                break
        assert reply.terminated
        assert utterances == env.buyer.patience
        assert total == pytest.approx(-0.2 - 0.02 * utterances)
        assert (env.facts()["deal"], env.facts()["price"]) == (False, None)


def test_sixty_things_are_played_once_each() -> None:
    env = Haggle()
    first = [env.reset(seed) for seed in range(60)]
    assert len(set(first)) == len(dict(ITEMS)) == 60
    assert first == [env.reset(seed) for seed in range(60, 120)]
    assert all(len(texts) >= 4 for texts in module._TEXTS.values())
    assert all(
        text.startswith(f"For sale: {name}, ${price}. ") for text, (name, price) in zip(first, ITEMS, strict=True)
    )


def test_the_words_say_no_more_than_act_and_price() -> None:
    """What each text is chosen from depends on the act alone; its price is the answer's."""
    for act, texts in module._TEXTS.items():
        assert all(("{price}%" in text) == (act in (DEAL, BID, BUDGET)) for text in texts)


def test_buyers_are_drawn_as_documented() -> None:
    rng = random.Random(0)
    drawn = [draw_buyer(rng) for _ in range(20000)]
    chances = kinds()
    assert sum(chances.values()) == pytest.approx(1)
    assert set(drawn) <= chances.keys()
    for field, values in {"limit": [60, 100], "gap": [30], "patience": [2, 8]}.items():
        for value in values:
            share = sum(chance for buyer, chance in chances.items() if getattr(buyer, field) == value)
            assert sum(getattr(b, field) == value for b in drawn) / 20000 == pytest.approx(share, abs=0.015)
    shares = {"concedes": 0.5, "stubborn": 0.3, "erratic": 0.2, "frank": 0.7, "shrewd": 0.15, "silent": 0.15}
    for name, share in shares.items():
        assert sum(name in b for b in drawn) / 20000 == pytest.approx(share, abs=0.015)
    fields = list(zip(*[(b.limit > 75, b.candour == "frank") for b in drawn], strict=True))
    both = sum(a and b for a, b in zip(*fields, strict=True)) / 20000
    assert both == pytest.approx(0.5 * 0.7, abs=0.015)  # each by itself


# ---- the optimum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ask", "value", "begins"), [(True, 0.444125, Move(ASK)), (False, 0.330833, Move(OFFER, 80))])
def test_the_documented_optimum_is_what_its_seller_earns(ask: bool, value: float, begins: Move) -> None:
    search = Search(kinds(), ask)
    found, move = search.best(search.start())
    assert found == pytest.approx(value, abs=1e-6)
    assert move == begins
    earned = 0.0
    for buyer, chance in search.chances.items():
        talk = follow(search, buyer)
        assert answers(buyer, *[move for move, _ in talk]) == [answer for _, answer in talk]
        earned += chance * sum(worth(answer) for _, answer in talk)
    assert earned == pytest.approx(found, abs=1e-9)  # no seller can earn less than what it is worth, or more
    assert found < search.bound(search.start()) == pytest.approx(0.53)


def test_the_optimum_of_few_buyers_against_all_plans() -> None:
    """Where nobody tells anything, a plan of offers that does not listen can be tried in all forms."""
    few = {Buyer(limit, 10, "stubborn", "silent", 4): 0.5 for limit in (60, 80)}
    best = float("-inf")
    for plan in product((Move(ASK), Move(ACCEPT), *(Move(OFFER, p) for p in range(55, 101, 5))), repeat=3):
        total = 0.0
        for buyer, chance in few.items():
            state = State(buyer.patience)
            for move in (*plan, Move(LEAVE)):
                state, answer = react(buyer, state, move)
                total += chance * worth(answer)
                if answer.act in (DEAL, GONE):
                    break
        best = max(best, total)
    search = Search(few)
    assert search.best(search.start())[0] == pytest.approx(best, abs=1e-9)
    assert best == pytest.approx((0.6 + 0.2 - 0.02) / 2 - 0.02)  # 80 % first, then 60 %


# ---- the report ------------------------------------------------------------------------------------------------------


def test_summary() -> None:
    class Seller:
        def respond(self, dialogues: list[list[Turn]]) -> list[str]:
            return ["What is your budget?" if len(d) == 1 and "oak desk" in d[0].text else "50%" for d in dialogues]

    played = rollout(Seller(), make(), [0, 1], progress=False)
    assert summary(played) == {
        "deal %": [100.0, 100.0],
        "price (deals)": [50, 50],
        "asked %": [100.0, 0.0],
        "utterances": [2.0, 1.0],
    }
    assert played[0].turns[-1].role == PARTNER
    lost = rollout(type("Silent", (), {"respond": lambda _, d: ["hm"] * len(d)})(), make(), [0], progress=False)
    assert summary(lost)["price (deals)"] == [None]
    assert summary(lost)["deal %"] == [0.0]
