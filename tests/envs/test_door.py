"""The doors are the textbooks' problems: played policies are worth what models of their own say."""

import math
from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np
import pytest
import torch

from ilql.envs.door import (
    BETWEEN,
    CLOSED,
    DRAUGHT,
    GO,
    HEARD,
    LATE,
    LISTEN,
    OPEN,
    OUT,
    PRIZE,
    Door,
    after,
    make,
    summary,
)
from ilql.rollout import rollout
from ilql.types import AGENT, Episode, InputError, Turn
from tests import pomdps
from tests.scripted import Scripted


def played(answer: Callable[[Sequence[Turn]], str], variant: str, episodes: int = 3000) -> list[float]:
    return [e.total_reward for e in rollout(Scripted(answer), make(variant), range(episodes), progress=False)]


def lead(turns: Sequence[Turn]) -> int:
    """How much more often the left was heard."""
    texts = [turn.text for turn in turns]
    return texts.count(HEARD["left"]) - texts.count(HEARD["right"])


def careful(turns: Sequence[Turn], ahead: int) -> str:
    return LISTEN if abs(lead(turns)) < ahead else OPEN["left" if lead(turns) > 0 else "right"]


def test_texts_and_rewards_of_listening() -> None:
    door = Door("listen")
    assert door.reset(3) == CLOSED
    assert door.prize == "right"
    heard = [door.step(" listen ") for _ in range(99)]
    assert {reply.text for reply in heard} == set(HEARD.values())
    assert all(reply.reward == -0.1 and not reply.over for reply in heard)
    opened = door.step("open right\n")
    assert (opened.text, opened.reward, opened.terminated) == (PRIZE, 1.0, True)
    assert door.facts() == {"success": True, "steps": 100}
    door.reset(4)
    assert door.step("open the left one").text == "You hear nothing.\n"
    wrong = door.step("open right")
    assert (wrong.text, wrong.reward, wrong.terminated) == (DRAUGHT, -4.0, True)


def test_what_is_heard_is_right_as_often_as_documented() -> None:
    door, right = Door(), 0
    for seed in range(4000):
        door.reset(seed)
        right += door.step(LISTEN).text == HEARD[door.prize]
    assert right / 4000 == pytest.approx(0.85, abs=4 * math.sqrt(0.85 * 0.15 / 4000))


def test_texts_and_rewards_of_the_corridor() -> None:
    door = Door("corridor")
    assert door.reset(0) == BETWEEN
    replies = [door.step(f"go {side}\n") for side in ("left", "right", "left", "right")]
    assert [(r.text, r.reward, r.over) for r in replies] == [(BETWEEN, -1.0, False)] * 3 + [(OUT, -1.0, True)]
    assert replies[-1].terminated
    assert door.facts() == {"success": True, "steps": 4}
    assert [after(place, GO["right"]) for place in range(3)] == [1, 0, 3]
    assert [after(place, GO["left"]) for place in range(3)] == [0, 2, 1]
    assert [after(place, "go back\n") for place in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(("variant", "cost"), [("listen", 0.1), ("corridor", 1.0)])
def test_the_limit_truncates(variant: str, cost: float) -> None:
    door = Door(variant)
    door.reset(0)
    replies = [door.step("nonsense") for _ in range(100)]
    assert not any(reply.over for reply in replies[:-1])
    assert (replies[-1].text, replies[-1].truncated, replies[-1].terminated) == (LATE, True, False)
    assert sum(reply.reward for reply in replies) == pytest.approx(-100 * cost)
    assert not door.facts()["success"]


def test_listening_is_worth_it_and_remembering_more_so() -> None:
    world = pomdps.listen()
    assert pomdps.best_deterministic(world) == pytest.approx(0.15)  # listen once, and open where it was heard
    best, policy = pomdps.best_stochastic(world)
    assert 0.14 < best < 0.15
    assert policy.argmax(1).tolist() == [0, 1, 2]
    assert pomdps.with_memory(world) == pytest.approx(0.58054, abs=1e-4)
    for answer, want in (
        (lambda turns: careful(turns, 2), 0.58054),
        (lambda turns: careful(turns[-1:], 1), 0.15),
        (lambda turns: OPEN["left"], -1.5),
    ):
        returns = played(answer, "listen")
        assert mean(returns) == pytest.approx(want, abs=4 * float(np.std(returns)) / math.sqrt(len(returns)))


def test_the_corridor_needs_a_coin_where_nothing_is_remembered() -> None:
    world = pomdps.corridor()
    assert pomdps.best_deterministic(world) == -100  # never arrives
    best, policy = pomdps.best_stochastic(world)
    assert best == pytest.approx(-6 - 4 * math.sqrt(2), abs=1e-3)
    assert policy[0, 1] == pytest.approx(2 - math.sqrt(2), abs=1e-3)
    assert pomdps.with_memory(world) == -3
    # of Sutton and Barto: greedy to the left or to the right, with one move in ten drawn
    for right, want in ((0.05, -82), (0.95, -44), (0.5, -12)):
        coin = torch.tensor([[1 - right, right]], dtype=torch.float64)
        assert pomdps.memoryless(world, coin).item() == pytest.approx(want, abs=0.5)


def test_a_played_coin_is_worth_what_the_model_says_and_three_moves_are_enough() -> None:
    rng = np.random.default_rng(0)
    returns = played(lambda turns: GO["right" if rng.random() < 0.586 else "left"], "corridor")
    want = pomdps.cut_off(pomdps.corridor(), np.array([[0.414, 0.586]]))
    assert mean(returns) == pytest.approx(want, abs=4 * float(np.std(returns)) / math.sqrt(len(returns)))
    path = ("right", "left", "right")
    assert played(lambda turns: GO[path[len(turns) // 2]], "corridor", 2) == [-3.0, -3.0]


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="'tiger', but must be listen or corridor"):
        make(variant="tiger")


def test_summary() -> None:
    facts = ({"success": True, "steps": 3}, {"success": False, "steps": 1})
    assert summary([Episode("a", [Turn(AGENT, LISTEN)], meta=fact) for fact in facts]) == {
        "success %": [100.0, 0.0],
        "steps": [3.0, 1.0],
    }
