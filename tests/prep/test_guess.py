"""The generated games are the environment's, from either seat the same."""

from pathlib import Path
from statistics import mean

import pytest

from datasets_prep.guess import episodes
from ilql.envs.guess import GuessGame
from ilql.types import AGENT, PARTNER, Episode, InputError


def logs(dialogues: int = 200, seed: int = 0, **options: object) -> list[Episode]:
    return list(episodes([], seed=seed, dialogues=dialogues, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_either_seat_is_the_same_game(rounds: int) -> None:
    for asks, answers in zip(logs(60, rounds=rounds), logs(60, rounds=rounds, seat="answerer"), strict=True):
        game = GuessGame(rounds)
        game.reset(0)
        named = asks.meta["object"].split(), asks.meta["task"].split()
        game.object, game.task = tuple(named[0]), tuple(named[1])  # type: ignore[assignment]
        said = {0: [t for t in asks.turns if t.role == AGENT], 1: [t for t in answers.turns if t.role == AGENT]}
        heard = {0: [t.text for t in asks.turns if t.role == PARTNER][1:], 1: []}
        heard[1] = [t.text for t in answers.turns if t.role == PARTNER]
        while True:
            mover = game.mover
            turn = said[mover].pop(0)
            replies = game.move(turn.text)
            if mover == 0:
                assert turn.reward == replies[0].reward
            for seat, reply in enumerate(replies):
                if reply.text:
                    assert heard[seat].pop(0) == reply.text
            if replies[0].over:
                break
        assert not said[0] + said[1]
        assert not heard[0] + heard[1]
        assert asks.total_reward == answers.total_reward == 1 - game.distance
        assert answers.meta == {**asks.meta, "role": "answerer"}


def test_people_err_and_show_what_is_best() -> None:
    found = [e.total_reward for e in logs(2000)]
    assert 0.4 < mean(found) < 0.6
    assert mean(x == 1 for x in found) > 0.3
    assert mean(e.total_reward for e in logs(300, slip=0.0, lie=0.0)) == 1


def test_the_seed_decides_and_a_game_does_not_depend_on_the_others() -> None:
    assert logs(20, 3) == logs(40, 3)[:20]
    assert logs(20, 3) != logs(20, 4)
    with pytest.raises(InputError, match="leave --input out"):
        episodes([Path("x")], seed=0)
    with pytest.raises(InputError, match="--dialogues is 0"):
        episodes([], seed=0, dialogues=0)
