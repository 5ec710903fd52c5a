"""The generated visits are the environment's, and their log-probabilities those of the policy that they state."""

import math
from collections import Counter
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from datasets_prep.__main__ import main
from datasets_prep.door import episodes, policy, turn_texts
from ilql import schema
from ilql.envs.door import VARIANTS, Door
from ilql.rows import Rows
from ilql.types import AGENT, PARTNER, Episode
from tests import pomdps


def logs(dialogues: int = 400, seed: int = 0, **options: object) -> list[Episode]:
    return list(episodes([], seed=seed, dialogues=dialogues, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_visits_are_worth_what_the_policy_is(variant: str, share: float) -> None:
    found = logs(2000, variant=variant, share=share, logp=True)
    world = pomdps.listen() if variant == "listen" else pomdps.corridor()
    chances = policy(variant, share)
    assert sum(chances.values()) == pytest.approx(1)
    same = [list(chances.values())] * world.first.shape[1] if variant == "listen" else [[1 - share, share]]
    returns = [episode.total_reward for episode in found]
    error = float(np.std(returns)) / math.sqrt(len(returns))
    assert mean(returns) == pytest.approx(pomdps.cut_off(world, np.array(same)), abs=4 * error)
    said = Counter(turn.text for episode in found for turn in episode.turns if turn.role == AGENT)
    for text, chance in chances.items():
        assert said[text] / said.total() == pytest.approx(chance, abs=0.04)
    for episode in found:
        for turn in episode.turns:
            assert turn.logp == (math.log(chances[turn.text]) if turn.role == AGENT else None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_are_the_environments(variant: str) -> None:
    said, heard = turn_texts(variant=variant, share=0.1)
    assert said == list(Door(variant).moves)
    found = {(turn.role, turn.text) for episode in logs(variant=variant) for turn in episode.turns}
    assert found <= {(AGENT, text) for text in said} | {(PARTNER, text) for text in heard}
    assert {text for role, text in found if role == AGENT} == set(said)


def test_a_visit_that_the_limit_cut_off_ends_with_an_action_and_is_not_terminated() -> None:
    found = logs(200, variant="corridor", share=0.95)
    cut = [episode for episode in found if not episode.terminated]
    assert cut
    for episode in cut:
        assert episode.turns[-1].role == AGENT
        assert sum(turn.is_action for turn in episode.turns) == 100
    for episode in found:
        assert episode.terminated == episode.meta["success"] == (episode.turns[-1].text == "You are out.\n")


def test_the_seed_decides_and_a_visit_does_not_depend_on_the_others() -> None:
    assert logs(20, 3) == logs(40, 3)[:20]
    assert logs(20, 3) != logs(20, 4)
    assert all(turn.logp is None for turn in logs(1)[0].turns)


def test_one_token_a_turn_with_its_log_probability(tmp_path: Path) -> None:
    out, words = tmp_path / "out", ["--tokenizer", "word", "--turn-tokens", "--dialogues", "20", "--logp"]
    assert main(["door", "--output", str(out), *words, "--variant", "corridor", "--share", "0.75"]) == 0
    assert schema.validate(out)["arguments"]["variant"] == "corridor"
    row = Rows(out)[0]
    assert set((row["end"] - row["start"]).tolist()) == {1}
    assert set(np.exp(row["logp"]).round(6).tolist()) == {0.25, 0.75}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", __file__], "leave --input out"),
        (["--dialogues", "0"], "--dialogues is 0"),
        (["--share", "1"], "--share is 1.0, but must be above 0 and below 1"),
        (["--variant", "tiger"], "invalid choice: 'tiger'"),
        (["--logp"], "one number, but at token steps it is one a token"),
    ],
)
def test_bad_options(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["door", "--output", str(tmp_path / "out"), "--tokenizer", "byte", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
