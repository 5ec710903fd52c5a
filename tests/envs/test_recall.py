"""What is said while waiting changes nothing, and the last answer alone is worth something."""

import re
from collections.abc import Sequence

import numpy as np
import pytest

from ilql.envs.recall import QUESTION, RIGHT, WAIT, WRONG, Recall, make, summary
from ilql.rollout import rollout
from ilql.types import AGENT, Episode, InputError, Turn
from tests import pomdps
from tests.scripted import Scripted


def mean_return(policy: Scripted, **options: int) -> float:
    played = rollout(policy, make(**options), range(40), progress=False)
    return float(np.mean([episode.total_reward for episode in played]))


def test_texts_and_rewards() -> None:
    game = Recall(delay=3, cues=2)
    assert game.reset(1) == "The word is green.\n"
    assert [game.step(said).text for said in ("red\n", "nonsense", "green\n")] == [WAIT, WAIT, QUESTION]
    right = game.step(" green ")
    assert (right.text, right.reward, right.terminated) == (RIGHT, 1.0, True)
    assert game.facts() == {"word": "green", "right": True}
    game.reset(2)
    assert game.word == "red\n"
    wrong = [game.step("green\n") for _ in range(4)][-1]
    assert (wrong.text, wrong.reward, wrong.terminated) == (WRONG, 0.0, True)


def test_as_many_seeds_as_words_name_each_once() -> None:
    game = make(cues=8)()
    assert len({game.reset(seed) for seed in range(100, 108)}) == 8


def test_who_remembers_is_right_and_who_sees_the_question_alone_is_not() -> None:
    def named(turn: Turn) -> str:
        return re.sub(r"The word is (.*)\.", r"\1", turn.text)

    def rehearse(turns: Sequence[Turn]) -> str:
        """Of the last two turns alone: the word that is named, or what it said itself."""
        return turns[-2].text if len(turns) > 1 else named(turns[-1])

    assert mean_return(Scripted(lambda turns: named(turns[0]))) == 1
    assert mean_return(Scripted(rehearse)) == 1
    assert mean_return(Scripted(lambda turns: "blue\n")) == 0.25


def test_without_memory_no_policy_gets_more_than_one_in_as_many_as_there_are_words() -> None:
    world = pomdps.recall(delay=3, cues=2)
    assert pomdps.best_deterministic(world) == pytest.approx(0.5)
    assert pomdps.best_stochastic(world)[0] == pytest.approx(0.5)
    assert pomdps.with_memory(world) == pytest.approx(1)
    assert pomdps.with_memory(pomdps.recall(delay=8, cues=4)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delay": 0}, "delay is 0"),
        ({"delay": 1001}, "from 1 to 1000"),
        ({"cues": 1}, "cues is 1"),
        ({"cues": 9}, "to 8"),
    ],
)
def test_bad_arguments(options: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make(**options)


def test_a_word_that_is_not_among_them_cannot_be_named() -> None:
    with pytest.raises(ValueError, match="none of the words"):
        Recall(cues=2).name("blue\n")


def test_summary() -> None:
    episodes = [Episode("a", [Turn(AGENT, "red\n")], meta={"right": right}) for right in (True, False)]
    assert summary(episodes) == {"right %": [100.0, 0.0]}
