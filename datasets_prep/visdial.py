"""VisDial, people who ask and answer questions about a picture (Das et al. 2017), CC BY 4.0,
https://visualdialog.org/data (`visdial_0.5_train.json`, `visdial_0.9_train.json`, `visdial_1.0_train.json` and so on).

Version 1.0 and 0.9 are one object, whose dialogues name their texts by place (cut here, most of it left out):

    {"version": "1.0", "split": "train", "data": {
       "questions": ["is it day", "any people", ...], "answers": ["yes", "no, none", ...],
       "dialogs": [{"image_id": 378466, "caption": "a bus in a street", "dialog": [
          {"question": 0, "answer": 0, "answer_options": [1, 0, ...], "gt_index": 1}, ...]}]}}

Version 0.5 is a list of such dialogues, with the texts themselves in the places of numbers. Either form is read, and
either way of naming in both. In the test split of 1.0 the last question of a dialogue has no answer: it was cut off.

Decision: both seats become episodes, `378466:questioner` and `378466:answerer`. Each first sees the caption; then
questions and answers are turns, and the picture is the answerer's alone: `--features` gives its rows the features of
their picture as `prefix`. The rewards of a round are r_t = d_{t-1} - d_t, of the distances between the questioner's
guess and the picture (`--distances`, Das et al.'s equation 1), for both: the question of round t has it in the
questioner's episode, the answer in the answerer's. What a record says twice is checked: options that do not hold the
answer at `gt_index` are a reject.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from datasets_prep.elements import Element, elements
from datasets_prep.features import Features
from datasets_prep.files import opened, refuse_others, whole
from datasets_prep.lines import bounded
from datasets_prep.records import parse
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

QUESTIONER, ANSWERER = ROLES = "questioner", "answerer"
AGENTS = Literal["both", "questioner", "answerer"]
Text = int | str  # a place among the file's texts, or the text


class Round(msgspec.Struct):
    question: Text
    answer: Text | None = None
    answer_options: list[Text] | None = None
    gt_index: int | None = None


class Dialogue(msgspec.Struct):
    image_id: int | str
    caption: str
    dialog: list[Round]


class Data(msgspec.Struct):
    dialogs: list[msgspec.Raw]
    questions: list[msgspec.Raw] = []
    answers: list[msgspec.Raw] = []


class File(msgspec.Struct):
    data: Data


class Distances(msgspec.Struct, forbid_unknown_fields=True):
    image_id: int | str
    distances: list[float]


Table = Sequence[msgspec.Raw]
Talk = list[tuple[str, str | None]]  # question and answer of each round


def episodes(
    inputs: Sequence[Path],
    *,
    seed: int,
    agent_role: AGENTS = "both",
    distances: Path | None = None,
    features: Path | None = None,
) -> Iterator[Episode | Reject]:
    """One episode a seat of the published JSON files; `seed` is not used, since nothing is drawn.

    agent_role: who the agent is: "questioner", "answerer", or "both", an episode for each.
    distances: JSON lines `{"image_id": 378466, "distances": [d_0, ..., d_T]}` with d_0 before the first round and one
    number for every answered one; without it there are no rewards.
    features: of pictures, see `datasets_prep.features`, which every dialogue then begins with; of the answerer only.

    meta: group (the picture), role, rounds, and the last distance. A dialogue in which the seat says nothing is a
    reject: of the answerer, one with a single question and no answer.
    """
    if not inputs:
        raise InputError("visdial needs a file: give --input visdial_1.0_train.json")
    roles = ROLES if agent_role == "both" else (agent_role,)
    if features is not None and agent_role != ANSWERER:
        raise InputError("--features is what the answerer alone sees: give --agent-role answerer")
    known = None if features is None else Features(features, "image_id")
    return _episodes(inputs, roles, None if distances is None else load_distances(distances), known)


def _episodes(
    inputs: Sequence[Path],
    roles: Sequence[str],
    distances: Mapping[str, list[float]] | None,
    features: Features | None,
) -> Iterator[Episode | Reject]:
    decoder = msgspec.json.Decoder(Dialogue)
    for path in inputs:
        refuse_others(path, "visdial")
        for place, element, data in _dialogues(path):
            name = None
            try:
                dialogue = parse(decoder, element.data)
                name = str(dialogue.image_id)
                talk = _talk(dialogue, data)
                worth = _rewards(talk, name, distances)
            except Reject as fault:
                yield _at(path, place, element, fault, name)
                continue
            for role in roles:
                try:
                    seat = _seat(dialogue, role, talk, worth, path.name, element.line)
                    yield seat if features is None else replace(seat, prefix=features[name])
                except Reject as fault:
                    yield _at(path, place, element, fault, f"{name}:{role}")


def _at(path: Path, place: str, element: Element, fault: Reject, name: str | None) -> Reject:
    found = element.at(path.name, fault, name)
    return Reject(found.file, found.line, place + found.field, found.reason, found.id)


def _dialogues(path: Path) -> Iterator[tuple[str, Element, Data]]:
    """The records of either form: where the list of them stands, each of them, and the texts that they name."""
    with opened(path) as file:
        listed = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    if listed:
        for element in elements(path, "dialogues"):
            yield "", element, Data([])
        return
    text = whole(path)
    try:
        data = msgspec.json.decode(text, type=File).data
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is no file of VisDial: {error}; give it as it was published") from None
    except msgspec.DecodeError as error:
        cut = "truncated" in str(error)
        raise InputError(f"{path} is cut short; fetch it again" if cut else f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply; give the file as it was published") from None
    if not data.dialogs:
        raise InputError(f"{path} is empty: it holds no dialogue")
    line, counted = 1, 0
    for index, raw in enumerate(data.dialogs):
        record = bytes(raw)
        begin = text.index(record, counted)  # a record ends behind its beginning, so the next is not found in it
        line += text.count(b"\n", counted, begin)
        yield "data.dialogs", Element(line, index, record), data
        line += record.count(b"\n")
        counted = begin + len(record)


def _fault(field: str, reason: str) -> Reject:
    return Reject("", 0, field, reason)


def _text(named: Text, table: Table, what: str, field: str) -> str:
    """The text that a record names. Raises Reject."""
    if isinstance(named, int):
        if not 0 <= named < len(table):
            raise _fault(field, f"{named} is none of the {len(table)} places in {what}")
        try:
            named = msgspec.json.decode(table[named], type=str)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _fault(field, f"{what}[{named}] is no text ({error})") from None
    if not named.strip():
        raise _fault(field, "it is empty")
    return named


def _talk(dialogue: Dialogue, data: Data) -> Talk:
    """The texts of a dialogue. Raises Reject where it contradicts itself."""
    if not dialogue.caption.strip():
        raise _fault("caption", "it is empty")
    if not dialogue.dialog:
        raise _fault("dialog", "no round")
    talk: Talk = []
    for k, said in enumerate(dialogue.dialog):
        at = f"dialog[{k}]"
        question = _text(said.question, data.questions, "questions", f"{at}.question")
        if said.answer is None:
            if k + 1 < len(dialogue.dialog):
                raise _fault(f"{at}.answer", "it is missing, but the dialogue goes on")
            talk.append((question, None))
            continue
        answer = _text(said.answer, data.answers, "answers", f"{at}.answer")
        if said.gt_index is not None and said.answer_options is not None:
            if not 0 <= said.gt_index < len(said.answer_options):
                raise _fault(f"{at}.gt_index", f"{said.gt_index} is none of {len(said.answer_options)} options")
            option = said.answer_options[said.gt_index]
            if option != said.answer and _text(option, data.answers, "answers", f"{at}.answer_options") != answer:
                raise _fault(f"{at}.gt_index", f"option {said.gt_index} is not the answer")
        talk.append((question, answer))
    return talk


def _rewards(talk: Talk, name: str, distances: Mapping[str, list[float]] | None) -> list[float]:
    """What each round is worth, d_{t-1} - d_t; 0 for a question without an answer."""
    if distances is None:
        return [0.0] * len(talk)
    if name not in distances:
        raise _fault("image_id", f"--distances has no line for {name}")
    found = distances[name]
    answered = sum(answer is not None for _, answer in talk)
    if len(found) != answered + 1:
        raise _fault("dialog", f"{answered} answered rounds, but --distances has {len(found)} numbers, not one more")
    worth = [before - after for before, after in itertools.pairwise(found)]
    return worth + [0.0] * (len(talk) - answered)


def _seat(dialogue: Dialogue, role: str, talk: Talk, worth: Sequence[float], file: str, line: int) -> Episode:
    """The dialogue as one seat had it. Raises Reject where it says nothing."""
    turns = [Turn(PARTNER, dialogue.caption)]
    for (question, answer), reward in zip(talk, worth, strict=True):
        asks = role == QUESTIONER
        turns.append(Turn(AGENT, question, reward) if asks else Turn(PARTNER, question))
        if answer is not None:
            turns.append(Turn(PARTNER, answer) if asks else Turn(AGENT, answer, reward))
    if not any(turn.is_action for turn in turns):
        raise _fault("dialog", f"the {role} says nothing")
    name = str(dialogue.image_id)
    meta: dict[str, Any] = {"group": name, "role": role, "rounds": len(talk)}
    return Placed(f"{name}:{role}", tuple(turns), talk[-1][1] is not None, meta, file=file, line=line)


def load_distances(path: Path) -> dict[str, list[float]]:
    """The distances of every picture. Raises InputError naming the line at fault."""
    decoder = msgspec.json.Decoder(Distances)
    found: dict[str, list[float]] = {}
    with opened(path) as file:
        for number, (text, _) in enumerate(bounded(file), 1):
            if not text.strip():
                continue
            where = f"--distances {path}, line {number}"
            try:
                record = parse(decoder, text, ("image_id", "distances"))
            except Reject as fault:
                said = ": ".join(part for part in (fault.field, fault.reason) if part)
                raise InputError(f'{where}: {said}; a line is {{"image_id": 1, "distances": [2.0, 1.5]}}') from None
            name = str(record.image_id)
            if name in found:
                raise InputError(f"{where}: a second line for picture {name}; leave one out")
            found[name] = record.distances
    if not found:
        raise InputError(f"--distances {path} is empty: give one line a picture")
    return found
