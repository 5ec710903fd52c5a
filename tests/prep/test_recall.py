"""The generated dialogues are the environment's, and their log-probabilities those of the policy that they state."""

import math
from collections import Counter
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from datasets_prep.__main__ import main
from datasets_prep.recall import episodes, turn_texts
from ilql import schema
from ilql.envs.recall import Recall
from ilql.rows import Rows
from ilql.types import AGENT, PARTNER, Episode, Turn


def logs(dialogues: int = 400, seed: int = 0, **options: object) -> list[Episode]:
    return list(episodes([], seed=seed, dialogues=dialogues, **options))  # type: ignore[arg-type]


def test_dialogues_obey_the_environment() -> None:
    game = Recall(delay=3, cues=4)
    for episode in logs(40, delay=3):
        assert episode.turns[0] == Turn(PARTNER, game.name(f"{episode.meta['word']}\n"))
        for said, heard in zip(episode.turns[1::2], episode.turns[2::2], strict=True):
            reply = game.step(said.text)
            assert (said.reward, heard.text) == (reply.reward, reply.text)
        assert reply.terminated
        assert episode.terminated
        assert {"group": episode.id, **game.facts()} == episode.meta


@pytest.mark.parametrize("skill", [0.0, 0.5])
def test_the_policy_is_as_skilled_as_it_says(skill: float) -> None:
    found = logs(3000, delay=1, skill=skill, logp=True)
    assert mean(e.total_reward for e in found) == pytest.approx(skill + (1 - skill) / 4, abs=0.04)
    assert Counter(e.meta["word"] for e in found).keys() == {"red", "green", "blue", "yellow"}
    for episode in found:
        for turn in episode.turns:
            right = turn.text.strip() == episode.meta["word"]
            chance = skill * right + (1 - skill) / 4
            assert turn.logp == (pytest.approx(math.log(chance)) if turn.role == AGENT else None)


def test_the_seed_decides_and_a_dialogue_does_not_depend_on_the_others() -> None:
    assert logs(20, 3) == logs(40, 3)[:20]
    assert logs(20, 3) != logs(20, 4)
    assert all(turn.logp is None for turn in logs(1)[0].turns)


@pytest.mark.parametrize("step", ["token", "utterance"])
def test_one_token_a_turn_with_its_log_probability(step: str, tmp_path: Path) -> None:
    out, words = tmp_path / "out", ["--tokenizer", "word", "--turn-tokens", "--dialogues", "20", "--delay", "2"]
    assert main(["recall", "--output", str(out), *words, "--step", step, "--logp"]) == 0
    assert schema.validate(out)["arguments"]["delay"] == 2
    row = Rows(out)[0]
    assert len(row["start"]) == 3
    assert (row["end"] - row["start"]).tolist() == [1, 1, 1]
    np.testing.assert_allclose(row["logp"], math.log(0.25), rtol=1e-6)


def test_texts_are_the_environments() -> None:
    said, heard = turn_texts(cues=2, delay=9, dialogues=1)
    assert said == ["red\n", "green\n"]
    known = {turn.text for episode in logs(40, cues=2) for turn in episode.turns}
    assert known == {*said, *heard}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", __file__], "leave --input out"),
        (["--dialogues", "0"], "--dialogues is 0"),
        (["--skill", "1.5"], "--skill is 1.5"),
        (["--delay", "0"], "recall's delay is 0"),
        (["--turn-tokens", "--cues", "9"], "recall's number of cues is 9"),
        (["--logp"], "one number, but at token steps it is one a token (use --step utterance, or make each"),
    ],
)
def test_bad_options(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recall", "--output", str(tmp_path / "out"), "--tokenizer", "byte", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
