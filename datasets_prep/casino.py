"""CaSiNo, negotiations of campers over packages (Chawla et al. 2021), CC BY 4.0,
https://github.com/kushalchawla/CaSiNo (`casino_train.json`, `casino_valid.json`, `casino_test.json`).

One record of the list in such a file (cut here into lines, most of its messages left out):

    {"dialogue_id": 938,
     "chat_logs": [
       {"text": "Hello!, how are you doing?", "task_data": {}, "id": "mturk_agent_1"},
       {"text": "Submit-Deal", "task_data": {"issue2youget": {"Water": "3", "Firewood": "1", "Food": "0"},
        "issue2theyget": {"Water": "0", "Firewood": "2", "Food": "3"}}, "id": "mturk_agent_2"},
       {"text": "Accept-Deal", "task_data": {"data": "accept_deal"}, "id": "mturk_agent_1"}],
     "participant_info": {"mturk_agent_1": {
       "value2issue": {"Medium": "Food", "Low": "Water", "High": "Firewood"},
       "value2reason": {"High": "It gets cold", "Medium": "I go with a big family", "Low": "It is hot"},
       "outcomes": {"points_scored": 22, "satisfaction": "Extremely satisfied", "opponent_likeness": "Extremely like"}},
      "mturk_agent_2": ...}}

Two people share three packages each of food, water and firewood; a package is worth 5, 4 or 3 points by one's own
priorities, and walking away is worth 5.

Decision: both seats become episodes, `938:a` and `938:b`. A seat first sees its own priorities and reasons, then the
talk; `Submit-Deal`, `Accept-Deal`, `Reject-Deal` and `Walk-Away` are utterances, and an offer says what the one who
submits it gets: `Submit-Deal food=0 water=3 firewood=1`. The outcome is the reward of a seat's last utterance. What a
record says twice is checked: points that the accepted deal is not worth, or packages that do not add up, are a reject.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from datasets_prep.elements import elements
from datasets_prep.files import refuse_others
from datasets_prep.records import parse
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

SUBMIT, ACCEPT, REJECT, WALK = ACTIONS = "Submit-Deal", "Accept-Deal", "Reject-Deal", "Walk-Away"
PACKAGES, COUNT = ("Food", "Water", "Firewood"), 3
WORTH = {"High": 5, "Medium": 4, "Low": 3}  # points a package
WALKED = 5  # points of each side where no deal is made
LEVELS = "Extremely dis{0}, Slightly dis{0}, Undecided, Slightly {0}, Extremely {0}"  # 1 to 5
SATISFACTION, LIKENESS = (LEVELS.format(word).split(", ") for word in ("satisfied", "like"))
REWARDS = Literal["points", "satisfaction", "likeness", "liked"]


class Message(msgspec.Struct):
    text: str
    id: str
    task_data: dict[str, Any]


class Outcomes(msgspec.Struct):
    points_scored: int
    satisfaction: str
    opponent_likeness: str


class Participant(msgspec.Struct):
    value2issue: dict[str, str]
    value2reason: dict[str, str]
    outcomes: Outcomes


class Dialogue(msgspec.Struct):
    dialogue_id: int | str
    chat_logs: list[Message]
    participant_info: dict[str, Participant]


Package = dict[str, int]  # kind -> number


def episodes(inputs: Sequence[Path], *, seed: int, reward: REWARDS = "points") -> Iterator[Episode | Reject]:
    """Two episodes a dialogue of the published JSON lists; `seed` is not used, since nothing is drawn.

    reward: "points" (0 to 36), the seat's own "satisfaction" (1 to 5), its "likeness" (1 to 5: how much it likes its
    partner, as the corpus publishes it for the seat), or "liked" (how much its partner likes it).
    meta: group (the dialogue), outcome (deal | walk_away), and all four of these.
    """
    if not inputs:
        raise InputError("casino needs a file: give --input casino_train.json")
    return _episodes(inputs, reward)


def _episodes(inputs: Sequence[Path], reward: str) -> Iterator[Episode | Reject]:
    decoder = msgspec.json.Decoder(Dialogue)
    for path in inputs:
        refuse_others(path, "casino")
        for element in elements(path, "dialogues"):
            name = None
            try:
                dialogue = parse(decoder, element.data)
                name = str(dialogue.dialogue_id)
                seats = _seats(dialogue, reward)
            except Reject as fault:
                yield element.at(path.name, fault, name)
                continue
            for side, (turns, meta) in zip("ab", seats, strict=True):
                yield Placed(f"{name}:{side}", turns, True, meta, file=path.name, line=element.line)


def _fault(field: str, reason: str) -> Reject:
    return Reject("", 0, field, reason)


def _seats(dialogue: Dialogue, reward: str) -> list[tuple[tuple[Turn, ...], dict[str, Any]]]:
    """Turns and meta of both seats. Raises Reject."""
    people = sorted(dialogue.participant_info)
    if len(people) != 2:
        raise _fault("participant_info", f"{len(people)} people, not 2")
    deal = _deal(dialogue.chat_logs, people)
    facts = [_facts(dialogue, seat, other, deal) for seat, other in (people, people[::-1])]
    seats = []
    for seat, mine, theirs in zip(people, facts, facts[::-1], strict=True):
        meta = {"group": str(dialogue.dialogue_id), "outcome": "deal" if deal else "walk_away", **mine}
        meta["liked"] = theirs["likeness"]
        turns = [Turn(PARTNER, _priorities(dialogue.participant_info[seat], seat))]
        turns += [Turn(AGENT if m.id == seat else PARTNER, _utterance(m, k)) for k, m in enumerate(dialogue.chat_logs)]
        last = max((k for k, turn in enumerate(turns) if turn.role == AGENT), default=None)
        if last is None:
            raise _fault("chat_logs", f"{seat} says nothing")
        turns[last] = Turn(AGENT, turns[last].text, float(meta[reward]))
        seats.append((tuple(turns), meta))
    return seats


def _deal(log: Sequence[Message], people: Sequence[str]) -> dict[str, Package] | None:
    """What each person gets by the accepted deal; None where somebody walked away. Raises Reject for broken rules."""
    offer: tuple[str, dict[str, Package]] | None = None
    for k, message in enumerate(log):
        at = f"chat_logs[{k}]"
        if message.id not in people:
            raise _fault(f"{at}.id", f"{message.id!r} is none of {' and '.join(people)}")
        if not message.text.strip():
            raise _fault(f"{at}.text", "it is empty")
        other = people[1 - people.index(message.id)]
        if message.text in (ACCEPT, WALK) and k + 1 < len(log):
            raise _fault(f"{at}.text", f"{message.text} ends a dialogue, but this one goes on")
        if message.text == SUBMIT:
            if offer:
                raise _fault(f"{at}.text", "a deal is submitted before the last one is answered")
            offer = message.id, _split(message, other, at)
        elif message.text in (ACCEPT, REJECT):
            if not offer or offer[0] == message.id:
                raise _fault(f"{at}.text", f"{message.text}, but the partner has submitted no deal")
            if message.text == ACCEPT:
                return offer[1]
            offer = None
    if not log or log[-1].text != WALK:
        raise _fault("chat_logs", f"it ends with neither {ACCEPT} nor {WALK}")
    return None


def _split(message: Message, other: str, at: str) -> dict[str, Package]:
    """The packages that the submitted deal gives to its sender and to the other."""
    mine, theirs = (_packages(message, key, at) for key in ("issue2youget", "issue2theyget"))
    for kind in PACKAGES:
        if mine[kind] + theirs[kind] != COUNT:
            raise _fault(f"{at}.task_data", f"{mine[kind]} and {theirs[kind]} {kind} do not add up to {COUNT}")
    return {message.id: mine, other: theirs}


def _packages(message: Message, key: str, at: str) -> Package:
    found = message.task_data.get(key)
    if not isinstance(found, dict) or set(found) != set(PACKAGES):
        raise _fault(f"{at}.task_data.{key}", f"{found!r} does not name {', '.join(PACKAGES)}")
    for kind, number in found.items():
        if str(number) not in ("0", "1", "2", "3"):
            raise _fault(f"{at}.task_data.{key}.{kind}", f"{number!r} is no number from 0 to {COUNT}")
    return {kind: int(found[kind]) for kind in PACKAGES}


def _facts(dialogue: Dialogue, seat: str, other: str, deal: dict[str, Package] | None) -> dict[str, int]:
    """A seat's outcomes as numbers."""
    at = f"participant_info.{seat}"
    person = dialogue.participant_info[seat]
    for field in ("value2issue", "value2reason"):
        if set(getattr(person, field)) != set(WORTH):
            raise _fault(f"{at}.{field}", f"it does not name {', '.join(WORTH)}")
    if set(person.value2issue.values()) != set(PACKAGES):
        raise _fault(f"{at}.value2issue", f"it does not name {', '.join(PACKAGES)}, each once")
    points = sum(WORTH[value] * deal[seat][kind] for value, kind in person.value2issue.items()) if deal else WALKED
    published = person.outcomes.points_scored
    if published != points:
        what = "the accepted deal" if deal else "walking away"
        raise _fault(f"{at}.outcomes.points_scored", f"it is {published}, but {what} is worth {points}")
    return {
        "points": points,
        "satisfaction": _level(person.outcomes.satisfaction, SATISFACTION, f"{at}.outcomes.satisfaction"),
        "likeness": _level(person.outcomes.opponent_likeness, LIKENESS, f"{at}.outcomes.opponent_likeness"),
    }


def _level(answer: str, scale: Sequence[str], field: str) -> int:
    if answer not in scale:
        raise _fault(field, f"{answer!r} is none of {', '.join(scale)}")
    return 1 + scale.index(answer)


def _priorities(person: Participant, seat: str) -> str:
    """The first observation: what the seat wants most, and why."""
    return "\n".join(f"{value}: {person.value2issue[value]}. {person.value2reason[value]}" for value in WORTH)


def _utterance(message: Message, k: int) -> str:
    """A message in words; an offer says what its sender gets."""
    if message.text != SUBMIT:
        return message.text
    mine = _packages(message, "issue2youget", f"chat_logs[{k}]")
    return f"{SUBMIT} " + " ".join(f"{kind.lower()}={mine[kind]}" for kind in PACKAGES)
