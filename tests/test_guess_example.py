"""The curriculum of `examples/guess.py`: who says which rounds, what is learned from which log, and that it runs."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from examples.guess import Opening, main, parse, reinforced, supervised
from ilql import schema
from ilql.envs.guess import QUESTIONER, Person
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

TALK = (
    Turn(PARTNER, "Find colour and shape."),
    Turn(AGENT, "which colour"),
    Turn(PARTNER, "red"),
    Turn(AGENT, "red any which shape", 0.5),
    Turn(PARTNER, "star"),
    Turn(AGENT, "red star", 0.25),
)


def test_people_open_and_the_policy_goes_on() -> None:
    class Model:
        def __init__(self) -> None:
            self.asked: list[Sequence[Turn]] = []

        def respond(self, dialogues: Sequence[Sequence[Turn]]) -> list[str]:
            self.asked += dialogues
            return ["model"] * len(dialogues)

    model = Model()
    policy = Opening(Person(QUESTIONER, random.Random(0), slip=0.0), 1, model)
    assert policy.respond([TALK[:1], TALK[:3], TALK[:1]]) == ["which colour", "model", "which colour"]
    assert model.asked == [TALK[:3]]


@pytest.mark.parametrize("opening", [0, 1, 2])
def test_what_people_said_is_cloned_and_what_agents_said_is_reinforced(opening: int) -> None:
    episode = Episode("x", TALK)
    learned = reinforced(episode, opening)
    assert [turn.text for turn in learned.turns] == [turn.text for turn in TALK]
    assert [turn.reward for turn in learned.turns if turn.is_action] == [0.0, 0.5, 0.25][opening:]
    assert all(turn.is_action or turn.reward == 0 for turn in learned.turns)
    assert learned.terminated
    if opening:
        cloned = supervised(episode, opening)
        assert cloned.turns == TALK[: 2 * opening]
        assert not cloned.terminated


def test_the_curriculum_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"seed": 3, "dialogues": 40, "times": 1, "games": 8, "more": 1, "judged": 4, "steps": 2, "start": 2}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["--output", str(tmp_path / "out"), *words]) == 0
    assert "people's rounds" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    epochs = [(row["epoch"], row["people's rounds"], row["seed"]) for row in rows]
    assert epochs == [
        (0, 2, 3),
        (1, 1, 3),
        (2, 0, 3),
        (3, 0, 3),
    ]
    assert all(row["reward"]["low"] <= row["reward"]["mean"] <= row["reward"]["high"] for row in rows)
    logs = {path.stem for path in (tmp_path / "out" / "logs").iterdir()}
    assert logs == {f"{k}-{r}" for k in ("001-people-1-cloned", "001-people-1", "002-people-0", "003-people-0")
                    for r in ("questioner", "answerer")}  # fmt: skip
    for name, sums in (("001-people-1-questioner", 16), ("002-people-0-questioner", 24), ("002-people-0-answerer", 16)):
        manifest = schema.validate(tmp_path / "out" / "data" / name)
        assert manifest["statistics"]["train"]["transitions"] == sums
        assert (tmp_path / "out" / name / "model" / "config.json").is_file()
    line = json.loads((tmp_path / "out" / "logs" / "001-people-1-questioner.jsonl").read_text().splitlines()[0])
    assert [m.get("loss_mask") for m in line["messages"] if m["role"] == "assistant"] == [0, None, None]
    assert main(["--output", str(tmp_path / "out"), *words]) == 2
    assert "exists; name a new folder" in capsys.readouterr().err


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--games is 0"):
        parse(["--output", str(tmp_path / "x"), "--games", "0"])
