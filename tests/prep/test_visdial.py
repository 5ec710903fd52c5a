"""Questions and answers about pictures: both seats, both forms of the files, a round's reward, rejects; and a thousand
generated dialogues of either version whose every text comes back from the tokens."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from datasets_prep.__main__ import main
from datasets_prep.build import Options, build
from datasets_prep.encode import Encoder
from datasets_prep.rejects import Placed, Reject
from datasets_prep.visdial import ROLES, episodes, load_distances
from ilql import schema
from ilql.rows import Rows
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

BUS: dict[str, Any] = {
    "image_id": 7,
    "caption": "a bus in a street",
    "dialog": [
        {"question": "is it day", "answer": "yes", "answer_options": ["no", "yes"], "gt_index": 1},
        {"question": "any people?", "answer": "no, none"},
    ],
}
CAT: dict[str, Any] = {"image_id": 8, "caption": "a cat", "dialog": [{"question": "what colour", "answer": "no idea"}]}


def by_place(dialogues: list[Any]) -> dict[str, Any]:
    """As one object whose dialogues name their texts by place."""
    tables: dict[str, dict[str, int]] = {"questions": {}, "answers": {}}

    def place(table: str, text: str) -> int:
        return tables[table].setdefault(text, len(tables[table]))

    def moved(said: dict[str, Any]) -> dict[str, Any]:
        found = {**said, "question": place("questions", said["question"])}
        if "answer" in said:
            found["answer"] = place("answers", said["answer"])
        if "answer_options" in said:
            found["answer_options"] = [place("answers", text) for text in said["answer_options"]]
        return found

    dialogs = [{**dialogue, "dialog": [moved(said) for said in dialogue["dialog"]]} for dialogue in dialogues]
    data = {name: list(table) for name, table in tables.items()} | {"dialogs": dialogs}
    return {"version": "1.0", "split": "train", "data": data}


def read(tmp_path: Path, content: Any, **options: Any) -> list[Episode | Reject]:
    path = tmp_path / "visdial.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return list(episodes([path], seed=0, **options))


def placed(found: list[Episode | Reject]) -> list[Placed]:
    assert all(isinstance(one, Placed) for one in found), found
    return [one for one in found if isinstance(one, Placed)]


@pytest.mark.parametrize("form", ["texts", "places"])
def test_the_two_seats_of_a_dialogue(tmp_path: Path, form: str) -> None:
    content = [CAT, BUS] if form == "texts" else by_place([CAT, BUS])
    *_, asks, answers = placed(read(tmp_path, content))
    text = (tmp_path / "visdial.json").read_text()
    line = 1 + text.count("\n", 0, text.rindex("{", 0, text.index('"image_id": 7')))
    assert asks == Placed(
        "7:questioner",
        (
            Turn(PARTNER, "a bus in a street"),
            Turn(AGENT, "is it day"),
            Turn(PARTNER, "yes"),
            Turn(AGENT, "any people?"),
            Turn(PARTNER, "no, none"),
        ),
        True,
        {"group": "7", "role": "questioner", "rounds": 2},
        file="visdial.json",
        line=line,
    )
    assert (answers.id, answers.meta["role"], answers.line) == ("7:answerer", "answerer", line)
    assert [turn.text for turn in answers.turns] == [turn.text for turn in asks.turns]
    assert [turn.role for turn in answers.turns] == [PARTNER, PARTNER, AGENT, PARTNER, AGENT]


@pytest.mark.parametrize("role", ROLES)
def test_one_seat_alone(tmp_path: Path, role: str) -> None:
    found = placed(read(tmp_path, [BUS, CAT], agent_role=role))
    assert [one.id for one in found] == [f"7:{role}", f"8:{role}"]


def test_a_last_question_without_an_answer_is_a_dialogue_cut_off(tmp_path: Path) -> None:
    asked = copy.deepcopy(BUS)
    del asked["dialog"][1]["answer"]
    lonely = {"image_id": 9, "caption": "a cat", "dialog": [{"question": "what colour"}]}
    asks, answers, alone, silent = read(tmp_path, by_place([asked, lonely]))
    for found, last in ((asks, AGENT), (answers, PARTNER), (alone, AGENT)):
        assert isinstance(found, Placed)
        assert not found.terminated
        assert found.turns[-1].role == last
    assert isinstance(silent, Reject)
    assert (silent.id, silent.field, silent.reason) == (
        "9:answerer",
        "data.dialogs[1].dialog",
        "the answerer says nothing",
    )
    encoder = Encoder.from_folder(_dataset(tmp_path, by_place([asked])) / "tokenizer")
    assert isinstance(answers, Episode)
    row = encoder.encode(answers, "utterance")
    assert row["end"][-1] < len(row["tokens"])  # a state follows: the last action bootstraps there


def _dataset(tmp_path: Path, content: Any, **options: Any) -> Path:
    path, output = tmp_path / "input.json", tmp_path / "data"
    path.write_text(json.dumps(content))
    build(Options("visdial", output, [path], tokenizer="byte", corpus_options=options))
    return output


# ---- rewards ---------------------------------------------------------------------------------------------------------


def distances(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "distances.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_a_round_is_worth_the_step_towards_the_picture(tmp_path: Path) -> None:
    asked = copy.deepcopy(CAT)
    asked["dialog"].append({"question": "is it old"})
    known = [{"image_id": 7, "distances": [5, 3.5, 4]}, {"image_id": "8", "distances": [2, 1]}]
    found = placed(read(tmp_path, [BUS, asked], distances=distances(tmp_path, *known)))
    rewards = [[turn.reward for turn in one.turns] for one in found]
    assert rewards == [[0, 1.5, 0, -0.5, 0], [0, 0, 1.5, 0, -0.5], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_a_picture_without_its_distances_is_a_reject(tmp_path: Path) -> None:
    path = distances(tmp_path, {"image_id": 7, "distances": [5, 3.5]})
    wrong, unknown = read(tmp_path, [BUS, CAT], distances=path)
    assert isinstance(wrong, Reject)
    assert isinstance(unknown, Reject)
    assert (wrong.field, wrong.id) == ("[0].dialog", "7")
    assert wrong.reason == "2 answered rounds, but --distances has 2 numbers, not one more"
    assert (unknown.field, unknown.reason) == ("[1].image_id", "--distances has no line for 8")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"image_id": 7}'], "line 1: .*missing required field `distances`"),
        (['{"image_id": 7, "distances": [1, NaN]}'], r"line 1: distances\[1\]: NaN is no finite number"),
        (['{"image_id": 7, "distances": ["1"]}'], r"line 1: distances\[0\]: Expected `float`"),
        (["", '{"image_id": 7, "distance": [1]}'], "line 2: distance: unknown field 'distance'; did you mean"),
        (['{"image_id": 7, "distances": [1]}'] * 2, "line 2: a second line for picture 7"),
        ([""], "is empty"),
    ],
)
def test_a_file_of_distances_that_cannot_be_used(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_distances(distances(tmp_path, *lines))


# ---- faults ----------------------------------------------------------------------------------------------------------


def changed(dialogue: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """A dialogue with one field set, as in "dialog.0.answer"; None deletes it."""
    found = copy.deepcopy(dialogue)
    *path, last = where.split(".")
    inner: Any = found
    for key in path:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return found


@pytest.mark.parametrize(
    ("where", "value", "field", "reason"),
    [
        ("image_id", None, "", "Object missing required field `image_id`"),
        ("caption", " ", "caption", "it is empty"),
        ("dialog", [], "dialog", "no round"),
        ("dialog.0.answer", None, "dialog[0].answer", "it is missing, but the dialogue goes on"),
        ("dialog.1.answer", "", "dialog[1].answer", "it is empty"),
        ("dialog.1.question", True, "dialog[1].question", "Expected `int | str`, got `bool`"),
        ("dialog.1.question", 4, "dialog[1].question", "4 is none of the 0 places in questions"),
        ("dialog.0.gt_index", 0, "dialog[0].gt_index", "option 0 is not the answer"),
        ("dialog.0.gt_index", 2, "dialog[0].gt_index", "2 is none of 2 options"),
    ],
)
def test_a_fault_costs_one_dialogue(tmp_path: Path, where: str, value: Any, field: str, reason: str) -> None:
    *found, fault = read(tmp_path, [CAT, changed(BUS, where, value)])
    assert len(found) == 2
    assert isinstance(fault, Reject)
    assert (fault.field, fault.reason) == (f"[1].{field}".rstrip("."), reason)
    assert (fault.file, fault.id) == ("visdial.json", None if where == "image_id" or value is True else "7")


def test_a_place_that_holds_no_text_costs_the_dialogues_that_name_it(tmp_path: Path) -> None:
    content = by_place([CAT, BUS])
    at = content["data"]["dialogs"][1]["dialog"][1]
    content["data"]["answers"][at["answer"]] = 3
    *found, fault = read(tmp_path, content)
    assert len(found) == 2
    assert isinstance(fault, Reject)
    assert fault.field == "data.dialogs[1].dialog[1].answer"
    assert fault.reason.startswith(f"answers[{at['answer']}] is no text")
    at["answer"] = -1
    *_, fault = read(tmp_path, content)
    assert isinstance(fault, Reject)
    assert fault.reason == "-1 is none of the 4 places in answers"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"is no file of VisDial: .*`data`"),
        ('{"data": {"questions": []}}', r"is no file of VisDial: .*`dialogs`"),
        ('{"data": {"dialogs": []}}', "is empty: it holds no dialogue"),
        ('{"data": {"dialogs": [{"image_id": 4', "is cut short; fetch it again"),
        ('{"data": {"dialogs": [}', "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"data": ' * 100_000, "nested too deeply|is no file of VisDial|is cut short"),
        ('[{"id": 1, "chat_logs": []}]', "like one of casino"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, content)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(json.dumps([BUS]))
    words = ["visdial", "--input", str(tmp_path / "x.json"), "--output", str(tmp_path / "data"), "--tokenizer", "byte"]
    assert main([*words, "--distances", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: cannot read")
    assert main([*words, "--agent-role", "painter"]) == 2
    assert not (tmp_path / "data").exists()


# ---- a thousand dialogues --------------------------------------------------------------------------------------------

SAID = "is are the a any bus cat colour what how many people yes no blue 2 it's can't see é 犬 'left' (old)"


def generated(count: int, draw: random.Random) -> list[dict[str, Any]]:
    """Dialogues of ten rounds with five options each, in the form of version 0.5."""
    words = SAID.split()

    def text(most: int, end: str = "") -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(1, most))) + end

    dialogues = []
    for number in draw.sample(range(600_000), count):
        rounds = []
        for _ in range(10):
            answer, options = text(6), [text(6) for _ in range(4)]
            place = draw.randrange(5)
            options.insert(place, answer)
            rounds.append({"question": text(9, "?"), "answer": answer, "answer_options": options, "gt_index": place})
        dialogues.append({"image_id": number, "caption": text(12), "dialog": rounds})
    return dialogues


@pytest.mark.parametrize("version", ["0.5", "1.0"])
def test_every_text_of_a_thousand_dialogues_comes_back_from_the_tokens(tmp_path: Path, version: str) -> None:
    dialogues = generated(1000, random.Random(version))
    path = tmp_path / f"visdial_{version}_train.json"
    path.write_text(json.dumps(dialogues if version == "0.5" else by_place(dialogues), ensure_ascii=False))
    build(Options("visdial", tmp_path / "data", [path], step="utterance", tokenizer="bpe:600", max_reject_rate=0))
    manifest = schema.validate(tmp_path / "data")
    assert manifest["statistics"]["rows_out"] == 2000
    encoder, rows = Encoder.from_folder(tmp_path / "data" / "tokenizer"), Rows(tmp_path / "data")
    found = {row["id"]: row for row in (rows[i] for i in range(len(rows)))}
    for dialogue in dialogues:
        expected = {
            "questioner": [said["question"] for said in dialogue["dialog"]],
            "answerer": [said["answer"] for said in dialogue["dialog"]],
        }
        for role, texts in expected.items():
            row = found[f"{dialogue['image_id']}:{role}"]
            tokens = row["tokens"].tolist()
            said = [encoder.text(tokens[a:b]) for a, b in zip(row["start"].tolist(), row["end"].tolist(), strict=True)]
            assert said == texts
            heard = encoder.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            at = 0
            for text in [dialogue["caption"], *(t for q, a in zip(*expected.values(), strict=True) for t in (q, a))]:
                at = heard.index(text, at) + len(text)  # every text of the dialogue, in order
