"""The maze's texts, rewards and ends, against the published definition."""

import re

import pytest

from ilql.envs import maze as module
from ilql.envs.maze import MOVES, Maze, make, optimal_return, summary
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

CORRIDOR = "There are walls above you, below you.\n"


def test_published_texts_byte_for_byte() -> None:
    maze = Maze()
    assert maze.place((1, 1)) == (
        "The goal is at position 8, 6. Your current position is at position 1, 1. "
        "There are walls to your left, above you, below you.\n"
    )
    assert maze.describe((1, 10)) == (
        "The goal is at position 8, 6. Your current position is at position 1, 10. " + CORRIDOR
    )
    assert Maze("partial").describe((5, 6)) == "There is a wall above you.\n"
    assert Maze("partial").describe((7, 6)) == "There are walls to your right, to your left.\n"
    assert Maze("partial").describe((8, 6)) == "There are walls to your right, to your left, below you.\n"


def test_no_walls_has_a_text_of_its_own() -> None:
    maze = Maze("partial")
    maze.cells |= {(4, 6)}
    assert maze.describe((5, 6)) == "There are no walls near you.\n"


def test_26_free_cells_and_their_places() -> None:
    cells = {(1, c) for c in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)}
    cells |= {(r, c) for r in (2, 3, 4) for c in (3, 9)} | {(5, c) for c in range(3, 10)} | {(6, 6), (7, 6), (8, 6)}
    assert Maze().cells == cells
    assert len(cells) == 26
    assert Maze().goal == (8, 6)


@pytest.mark.parametrize("first", [0, 7, 1000])
def test_25_consecutive_seeds_are_every_start_once(first: int) -> None:
    maze = Maze()
    assert sorted(maze.reset(seed) for seed in range(first, first + 25)) == sorted(map(maze.describe, maze.starts))
    assert maze.goal not in maze.starts


def test_rewards_of_moves_walls_and_nonsense() -> None:
    maze = Maze()
    maze.place((6, 6))
    into_wall = maze.step("move left\n")
    assert (into_wall.text, into_wall.reward, into_wall.over) == (maze.describe((6, 6)), -1.0, False)
    nonsense = maze.step("move sideways\n")
    assert (nonsense.text, nonsense.reward, nonsense.over) == (maze.describe((6, 6)), -4.0, False)
    assert maze.step(" move down ").text == maze.describe((7, 6))
    goal = maze.step("move down\n")
    assert (goal.text, goal.reward, goal.terminated, goal.truncated) == ("Success\n", 0.0, True, False)
    assert maze.facts() == {"start": [6, 6], "success": True, "steps": 4}
    with pytest.raises(RuntimeError, match="call reset"):
        maze.step("move up\n")


def test_the_step_limit_truncates_after_100_steps_and_one_more() -> None:
    maze = Maze()
    maze.place((7, 6))
    replies = [maze.step("move left\n") for _ in range(100)]
    assert not any(reply.over for reply in replies)
    last = maze.step("move down\n")  # would reach the goal, but it comes too late
    assert (last.text, last.reward, last.terminated, last.truncated) == ("Failure\n", -1.0, False, True)
    assert sum(reply.reward for reply in [*replies, last]) == -101
    assert not maze.facts()["success"]


def test_the_optimum_is_the_published_one() -> None:
    assert optimal_return() == pytest.approx(-6.84, abs=1e-12)
    assert Maze().steps_to_goal((7, 6)) == 1
    assert Maze().steps_to_goal((1, 1)) == 12
    assert Maze().shortest_move((5, 9)) == "move left\n"


def test_the_mirrored_maze_is_another_task() -> None:
    maze, mirrored = Maze(), Maze(mirror=True)
    assert mirrored.goal == (1, 6)
    assert optimal_return(mirrored) == pytest.approx(-6.84, abs=1e-12)
    assert {(9 - r, c) for r, c in maze.cells} == mirrored.cells
    texts = [{m.describe(cell): m.shortest_move(cell) for cell in m.starts} for m in (maze, mirrored)]
    assert not texts[0].keys() & texts[1].keys()
    swap = {"move up\n": "move down\n", "move down\n": "move up\n"}
    for row, column in maze.starts:
        move = maze.shortest_move((row, column))
        assert mirrored.shortest_move((9 - row, column)) == swap.get(move, move)


def test_every_best_move_leads_nearer() -> None:
    maze = Maze()
    for cell in maze.starts:
        distances = [maze.steps_to_goal(maze.after(cell, move)) for move in MOVES]
        assert distances.count(maze.steps_to_goal(cell) - 1) == 1


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match=re.escape("'ful', but must be full or partial")):
        make(observation="ful")
    with pytest.raises(ValueError, match="no start"):
        Maze().place((8, 6))


def test_summary_counts_moves_and_successes() -> None:
    turns = [Turn(PARTNER, "o"), Turn(AGENT, "move up\n", -1.0), Turn(PARTNER, "o"), Turn(AGENT, "move up\n")]
    episodes = [Episode("a", turns, meta={"success": True}), Episode("b", turns[:2], meta={"success": False})]
    assert summary(episodes) == {"success %": [100.0, 0.0], "steps": [2.0, 1.0]}
    assert module.SEATS == 1
