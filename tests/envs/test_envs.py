"""The registry of environments and their arguments, and what every environment of one seat must do."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from datasets_prep import CORPORA
from datasets_prep.__main__ import main
from datasets_prep.encode import Encoder
from ilql import envs
from ilql.rollout import rollout, to_log
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

ALONE = [name for name, module in envs.ENVS.items() if module.SEATS == 1]
BUILD = {  # options under which the corpus of an environment's name is built
    "door": ["--tokenizer", "word", "--dialogues", "60", "--turn-tokens"],
    "guess": ["--tokenizer", "word", "--dialogues", "60"],
    "haggle": ["--tokenizer", "word", "--dialogues", "60"],
    "maze": ["--tokenizer", "word", "--dialogues", "30", "--turn-tokens"],
    "randomwalks": ["--tokenizer", "byte", "--walks", "60", "--seed", "1000"],
    "recall": ["--tokenizer", "word", "--dialogues", "60", "--turn-tokens"],
    "wordle": ["--tokenizer", "word", "--games", "60", "--turn-tokens"],
}


def test_every_environment_keeps_the_modules_contract() -> None:
    for name, module in envs.ENVS.items():
        assert module.__name__ == f"ilql.envs.{name}"
        assert module.SEATS in (1, 2)
        assert callable(module.make)
        assert callable(module.summary)


def test_an_unknown_name_suggests_the_near_one() -> None:
    with pytest.raises(InputError, match="did you mean 'maze'"):
        envs.find("mase")
    with pytest.raises(InputError, match="choose one of deal_or_no_deal, door, guess, haggle, maze"):
        envs.find("zzz")


def test_given_arguments_win_over_recorded_ones_and_strange_recorded_ones_are_left_aside() -> None:
    recorded = {"observation": "partial", "mirror": True, "dialogues": 1240}
    assert envs.arguments("maze", recorded, {}) == {"observation": "partial", "mirror": True}
    assert envs.arguments("maze", recorded, {"mirror": "False"}) == {"observation": "partial", "mirror": False}
    assert envs.arguments("deal_or_no_deal", {}, {"max_turns": "7"}) == {"max_turns": 7}


@pytest.mark.parametrize(
    ("env", "given", "says"),
    [
        ("maze", {"observaton": "full"}, "did you mean 'observation'"),
        ("maze", {"mirror": "yes"}, "mirror=yes: it must be true or false"),
        ("deal_or_no_deal", {"max_turns": "many"}, "max_turns=many: it must be of type int"),
    ],
)
def test_bad_arguments(env: str, given: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        envs.arguments(env, {}, given)


def logged(name: str) -> list[Episode]:
    """Some dialogues of the corpus of an environment's name."""
    found = itertools.islice(CORPORA[name].episodes([], seed=1000), 40)
    return [episode for episode in found if isinstance(episode, Episode)]


class Parrot:
    """Says at random what the logs' agents say, and nonsense now and then."""

    def __init__(self, name: str) -> None:
        self.known = [turn.text for episode in logged(name) for turn in episode.turns if turn.is_action]
        self.rng = random.Random(0)

    def respond(self, dialogues: Sequence[Sequence[Turn]]) -> list[str]:
        return [self.rng.choice([*self.known, "nonsense"]) for _ in dialogues]


@pytest.mark.parametrize("name", ALONE)
def test_the_same_seed_and_utterances_give_the_same_episode(name: str) -> None:
    one, two = (rollout(Parrot(name), envs.find(name).make(), range(30), progress=False) for _ in range(2))
    assert one == two
    for episode in one:
        assert episode.turns[0].role == PARTNER
        assert episode.turns[0].text
        assert json.loads(json.dumps(episode.meta)) == episode.meta
        rewards = [turn.reward for turn in episode.turns if turn.role == AGENT]
        assert all(isinstance(reward, float) and abs(reward) <= 4 for reward in rewards)


@pytest.mark.parametrize("name", ALONE)
def test_an_episode_begins_with_reset_and_ends_for_good(name: str) -> None:
    env = envs.find(name).make()()
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("nonsense")
    for seed in (0, 10**6):
        first = env.reset(seed)
        for _ in range(1000):
            if env.step("nonsense").over:
                break
        with pytest.raises(RuntimeError, match="call reset"):
            env.step("nonsense")
        assert env.reset(seed) == first


@pytest.mark.parametrize("name", ALONE)
def test_logs_look_like_episodes(name: str) -> None:
    """Logs begin as episodes do, take turns as they do, and record the same facts."""
    played = rollout(Parrot(name), envs.find(name).make(), range(60), progress=False)
    first = {episode.turns[0].text for episode in played}
    for episode in logged(name):
        assert episode.turns[0].text in first
        assert [turn.role for turn in episode.turns] == ([PARTNER, AGENT] * len(episode.turns))[: len(episode.turns)]
        assert set(episode.meta) <= {*played[0].meta, "part", "policy"}


@pytest.mark.parametrize("name", ALONE)
def test_every_column_of_the_summary_has_one_value_an_episode(name: str) -> None:
    played = rollout(Parrot(name), envs.find(name).make(), range(5), progress=False)
    columns = envs.find(name).summary(played)
    assert columns
    assert all(len(values) == 5 for values in columns.values())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((folder / "train").glob("*.arrow")) for row in datasets.Dataset.from_file(str(file))]


@pytest.mark.parametrize("name", ALONE)
def test_a_transcript_is_training_data(name: str, tmp_path: Path) -> None:
    data, again, log = tmp_path / "data", tmp_path / "again", tmp_path / "played.jsonl"
    assert main([name, "--output", str(data), *BUILD[name]]) == 0
    encoder = Encoder.from_folder(data / "tokenizer")
    played = rollout(Parrot(name), envs.find(name).make(), range(20), progress=False)
    log.write_text("".join(json.dumps(to_log(episode)) + "\n" for episode in played), encoding="utf-8")
    assert main(["chat", "--input", str(log), "--output", str(again), "--tokenizer", str(data / "tokenizer")]) == 0
    for row, episode in zip(rows(again), played, strict=True):
        wanted = encoder.encode(episode, "token")
        assert row.pop("reward") == pytest.approx(wanted.pop("reward"), rel=1e-6)  # float32 in the file
        assert row == wanted
        assert row["terminated"] == episode.terminated
    arguments = json.loads((data / "manifest.json").read_text())["arguments"]
    envs.find(name).make(**envs.arguments(name, arguments, {}))  # an evaluation takes them over
