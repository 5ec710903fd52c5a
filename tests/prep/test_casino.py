"""The campers' negotiations: both seats, what they are paid, rejects, and the published points."""

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasets_prep.casino import LIKENESS, SATISFACTION, WORTH, episodes
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

ONE, TWO = "mturk_agent_1", "mturk_agent_2"


def person(order: str, points: int, satisfaction: str, likeness: str) -> dict[str, Any]:
    kinds = dict(zip(WORTH, order.split(), strict=True))
    reasons = {value: f"we like {kind}" for value, kind in kinds.items()}
    outcomes = {"points_scored": points, "satisfaction": satisfaction, "opponent_likeness": likeness}
    return {"value2issue": kinds, "value2reason": reasons, "outcomes": outcomes, "demographics": {"age": 43}}


def says(who: str, text: str, **data: Any) -> dict[str, Any]:
    return {"text": text, "task_data": data, "id": who}


def offer(who: str, mine: str, theirs: str) -> dict[str, Any]:
    """Food, water, firewood, as in `offer(ONE, "012", "321")`; numbers are texts in the corpus."""
    sides = [dict(zip(("Food", "Water", "Firewood"), side, strict=True)) for side in (mine, theirs)]
    return says(who, "Submit-Deal", issue2youget=sides[0], issue2theyget=sides[1])


DEAL: dict[str, Any] = {
    "dialogue_id": 7,
    "chat_logs": [
        says(ONE, "hi "),
        says(TWO, "hello"),
        offer(ONE, "310", "023"),
        says(TWO, "Reject-Deal", data="reject_deal"),
        says(TWO, "no water no deal"),
        offer(ONE, "301", "032"),
        says(TWO, "Accept-Deal", data="accept_deal"),
    ],
    "participant_info": {
        ONE: person("Food Firewood Water", 19, "Slightly satisfied", "Extremely dislike"),
        TWO: person("Water Food Firewood", 21, "Extremely satisfied", "Slightly like"),
    },
    "annotations": [],
}
WALK: dict[str, Any] = {
    "dialogue_id": 8,
    "chat_logs": [says(ONE, "all mine"), says(TWO, "Walk-Away", data="walk_away")],
    "participant_info": {
        ONE: person("Food Firewood Water", 5, "Extremely dissatisfied", "Undecided"),
        TWO: person("Water Food Firewood", 5, "Slightly satisfied", "Extremely dislike"),
    },
    "annotations": [],
}


def read(tmp_path: Path, *dialogues: Any, **options: Any) -> list[Episode | Reject]:
    path = tmp_path / "casino.json"
    path.write_text(json.dumps(list(dialogues), indent=1))
    return list(episodes([path], seed=0, **options))


def test_the_two_seats_of_a_dialogue(tmp_path: Path) -> None:
    one, two = read(tmp_path, DEAL)
    meta = {"group": "7", "outcome": "deal", "points": 19, "satisfaction": 4, "likeness": 1, "liked": 4}
    assert one == Placed(
        "7:a",
        (
            Turn(PARTNER, "High: Food. we like Food\nMedium: Firewood. we like Firewood\nLow: Water. we like Water"),
            Turn(AGENT, "hi "),
            Turn(PARTNER, "hello"),
            Turn(AGENT, "Submit-Deal food=3 water=1 firewood=0"),
            Turn(PARTNER, "Reject-Deal"),
            Turn(PARTNER, "no water no deal"),
            Turn(AGENT, "Submit-Deal food=3 water=0 firewood=1", 19.0),
            Turn(PARTNER, "Accept-Deal"),
        ),
        True,
        meta,
        file="casino.json",
        line=2,
    )
    assert isinstance(two, Placed)
    assert two.id == "7:b"
    assert two.meta == meta | {"points": 21, "satisfaction": 5, "likeness": 4, "liked": 1}
    assert two.turns[0].text.startswith("High: Water. we like Water\nMedium: Food.")
    assert [t.text for t in two.turns[1:]] == [t.text for t in one.turns[1:]]
    assert [t.role == AGENT for t in two.turns[1:]] == [t.role != AGENT for t in one.turns[1:]]
    assert [t.reward for t in two.turns] == [0.0] * 7 + [21.0]


@pytest.mark.parametrize(
    ("reward", "paid"), [("points", [5, 5]), ("satisfaction", [1, 4]), ("likeness", [3, 1]), ("liked", [1, 3])]
)
def test_who_walks_away_and_who_is_left_are_paid_their_own(tmp_path: Path, reward: str, paid: list[int]) -> None:
    found = [e for e in read(tmp_path, WALK, reward=reward) if isinstance(e, Episode)]
    assert [episode.meta["outcome"] for episode in found] == ["walk_away"] * 2
    assert [episode.turns[1].reward for episode in found] == [paid[0], 0]
    assert [episode.turns[2].reward for episode in found] == [0, paid[1]]
    assert [episode.turns[2].text for episode in found] == ["Walk-Away"] * 2


@pytest.mark.parametrize(
    ("reward", "paid"), [("points", [19, 21]), ("satisfaction", [4, 5]), ("likeness", [1, 4]), ("liked", [4, 1])]
)
def test_what_a_deal_pays(tmp_path: Path, reward: str, paid: list[int]) -> None:
    assert [e.total_reward for e in read(tmp_path, DEAL, reward=reward) if isinstance(e, Episode)] == paid


def changed(where: str, value: Any) -> dict[str, Any]:
    """The deal with one field set, as in "chat_logs.2.text"; None deletes it."""
    dialogue = copy.deepcopy(DEAL)
    *path, last = where.split(".")
    inner: Any = dialogue
    for key in path:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    key = int(last) if isinstance(inner, list) else last
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    return dialogue


OTHER = f"participant_info.{TWO}"
SATISFIED, LIKES = f"{OTHER}.outcomes.satisfaction", f"{OTHER}.outcomes.opponent_likeness"
POINTS = f"participant_info.{ONE}.outcomes.points_scored"
LAST = "chat_logs.5.task_data.issue2youget"


@pytest.mark.parametrize(
    ("where", "value", "field", "reason"),
    [
        (POINTS, 20, POINTS, "it is 20, but the accepted deal is worth 19"),
        (POINTS, "19", "participant_info[...].outcomes.points_scored", "Expected `int`, got `str`"),
        (POINTS, None, "participant_info[...].outcomes", "missing required field `points_scored`"),
        (POINTS, 19.5, "participant_info[...].outcomes.points_scored", "`int`"),
        (SATISFIED, "happy", SATISFIED, "'happy' is none of Extremely dissatisfied, Slightly dis"),
        (LIKES, "Likes", LIKES, "'Likes' is none of Extremely dislike, Slightly dislike, Undecided"),
        (f"{OTHER}.value2issue.High", "Food", f"{OTHER}.value2issue", "it does not name Food, Water, Firewood, each"),
        (f"{OTHER}.value2reason.High", None, f"{OTHER}.value2reason", "it does not name High, Medium, Low"),
        (OTHER, None, "participant_info", "1 people, not 2"),
        ("dialogue_id", None, "", "missing required field `dialogue_id`"),
        ("dialogue_id", True, "dialogue_id", "`bool`"),
        ("chat_logs.0.id", "mturk_agent_3", "chat_logs[0].id", "'mturk_agent_3' is none of"),
        ("chat_logs.0.text", " ", "chat_logs[0].text", "it is empty"),
        ("chat_logs.6", None, "chat_logs", "ends with neither Accept-Deal nor Walk-Away"),
        ("chat_logs", [], "chat_logs", "ends with neither"),
        ("chat_logs.3.text", "no", "chat_logs[5].text", "before the last one is answered"),
        ("chat_logs.6.id", ONE, "chat_logs[6].text", "the partner has submitted no deal"),
        ("chat_logs.2.text", "Accept-Deal", "chat_logs[2].text", "ends a dialogue, but this one goes on"),
        (f"{LAST}.Food", "2", "chat_logs[5].task_data", "2 and 0 Food do not add up to 3"),
        (f"{LAST}.Food", "4", "chat_logs[5].task_data.issue2youget.Food", "'4' is no number from 0 to 3"),
        (f"{LAST}.Food", True, "chat_logs[5].task_data.issue2youget.Food", "True is no number"),
        (f"{LAST}.Food", None, "chat_logs[5].task_data.issue2youget", "does not name Food, Water, Firewood"),
        (LAST, None, "chat_logs[5].task_data.issue2youget", "None does not name"),
    ],
)
def test_a_fault_costs_one_dialogue(tmp_path: Path, where: str, value: Any, field: str, reason: str) -> None:
    found = read(tmp_path, WALK, changed(where, value), {**WALK, "dialogue_id": 9})
    assert [type(item) for item in found] == [Placed, Placed, Reject, Placed, Placed]
    fault = found[2]
    assert isinstance(fault, Reject)
    assert reason in fault.reason
    assert fault.field == f"[1].{field}".rstrip(".")
    text = (tmp_path / "casino.json").read_text().splitlines()
    assert (fault.file, text[fault.line - 1].strip()) == ("casino.json", "{")
    record = "\n".join(text[fault.line - 1 : text.index(" },", fault.line)]) + "}"
    assert json.loads(record) == changed(where, value)
    assert found[3].id == "9:a"


def test_without_an_input_and_of_another_corpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--input casino_train\.json"):
        episodes([], seed=0)
    path = tmp_path / "x.jsonl"
    path.write_text('{"messages": []}\n')
    with pytest.raises(InputError, match=r"not look like a file of casino, but like one of chat: python -m"):
        list(episodes([path], seed=0))


@pytest.fixture(scope="module")
def published(corpora: Callable[[str], Path]) -> list[Episode | Reject]:
    return list(episodes([corpora("casino/casino_train.json"), corpora("casino/casino_valid.json")], seed=0))


def test_published_points_are_those_of_the_accepted_deals(
    published: list[Episode | Reject], corpora: Callable[[str], Path]
) -> None:
    """A side whose points differ would be a reject; the published numbers are read again here, on their own."""
    raw = {
        f"{dialogue['dialogue_id']}:{side}": dialogue["participant_info"][name]["outcomes"]
        for file in ("casino_train.json", "casino_valid.json")
        for dialogue in json.loads(corpora(f"casino/{file}").read_text())
        for side, name in (("a", ONE), ("b", TWO))
    }
    assert len(raw) == 1860
    found = {item.id: item for item in published if isinstance(item, Episode)}
    assert found.keys() == raw.keys()
    assert len(found) == len(published)
    for name, episode in found.items():
        assert episode.total_reward == episode.meta["points"] == raw[name]["points_scored"]
        assert SATISFACTION[episode.meta["satisfaction"] - 1] == raw[name]["satisfaction"]
        other = raw[name[:-1] + ("b" if name.endswith("a") else "a")]
        assert LIKENESS[episode.meta["likeness"] - 1] == raw[name]["opponent_likeness"]
        assert LIKENESS[episode.meta["liked"] - 1] == other["opponent_likeness"]


def test_published_counts(published: list[Episode | Reject]) -> None:
    found = [item for item in published if isinstance(item, Episode)]
    assert Counter(episode.meta["outcome"] for episode in found) == {"deal": 1812, "walk_away": 48}
    said = Counter(t.text.split()[0] for e in found for t in e.turns if t.role == AGENT and t.text.strip())
    assert [said[a] for a in ("Submit-Deal", "Accept-Deal", "Reject-Deal", "Walk-Away")] == [1069, 906, 154, 24]
    for episode in found:
        last = max(k for k, turn in enumerate(episode.turns) if turn.role == AGENT)
        assert all(turn.reward == 0 for k, turn in enumerate(episode.turns) if k != last)
