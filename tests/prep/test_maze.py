"""The generated maze logs keep to the published rules."""

import itertools
from pathlib import Path
from statistics import mean

import pytest

from datasets_prep.maze import episodes, parts
from ilql.envs.maze import MOVES, Maze
from ilql.types import AGENT, PARTNER, Episode, InputError


def logs(seed: int = 0, dialogues: int = 200, **options: object) -> list[Episode]:
    found = list(episodes([], seed=seed, dialogues=dialogues, **options))  # type: ignore[arg-type]
    assert all(isinstance(episode, Episode) for episode in found)
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def published() -> list[Episode]:
    """As many dialogues as were published, from seed 0."""
    return list(episodes([], seed=0))  # type: ignore[arg-type]


def cells(episode: Episode, maze: Maze) -> list[tuple[int, int]]:
    """Where the walker was, told from the texts."""
    known = {maze.describe(cell): cell for cell in maze.starts}
    return [known[turn.text] for turn in episode.turns if turn.role == PARTNER and turn.text != "Success\n"]


def test_return_and_success_are_those_of_the_published_logs(published: list[Episode]) -> None:
    assert len(published) == 1240
    # standard errors of 1,240 dialogues: 0.95 and 1.2 %
    assert mean(episode.total_reward for episode in published) == pytest.approx(-83, abs=3)
    assert mean(episode.terminated for episode in published) == pytest.approx(0.24, abs=0.04)
    assert mean(episode.meta["policy"] == "shortest" for episode in published) == pytest.approx(0.15, abs=0.03)
    assert {episode.meta["part"] for episode in published} == {"left", "right", "middle"}
    for part in ("left", "right", "middle"):
        assert mean(e.meta["part"] == part for e in published) == pytest.approx(1 / 3, abs=0.04)


def test_no_dialogue_leads_from_a_t_to_the_goal(published: list[Episode]) -> None:
    for episode in published:
        start = tuple(episode.meta["start"])
        if start[0] < 5:
            assert not episode.terminated
        assert episode.terminated == episode.meta["success"] == (episode.turns[-1].text == "Success\n")


def test_yet_together_they_lead_from_everywhere(published: list[Episode]) -> None:
    maze = Maze()
    steps = {step for episode in published for step in itertools.pairwise(cells(episode, maze))}
    for cell in maze.starts:
        following = maze.after(cell, maze.shortest_move(cell))
        assert following == maze.goal or (cell, following) in steps


@pytest.mark.parametrize("mirror", [False, True])
def test_each_dialogue_stays_in_its_part_and_obeys_the_maze(mirror: bool) -> None:
    maze = Maze(mirror=mirror)
    regions = parts(maze)
    assert {name: len(region) for name, region in regions.items()} == {"left": 15, "right": 15, "middle": 10}
    assert frozenset.union(*regions.values()) == maze.cells
    assert maze.goal not in regions["left"] | regions["right"]
    for episode in logs(mirror=mirror):
        walk = cells(episode, maze)
        assert set(walk) <= regions[episode.meta["part"]]
        actions = [turn for turn in episode.turns if turn.role == AGENT]
        for before, action, after in zip(walk, actions, walk[1:], strict=False):
            assert action.text in MOVES
            assert action.reward == -1
            assert maze.after(before, action.text) == after


def test_a_dialogue_that_ran_into_the_limit_ends_with_an_action_and_no_state() -> None:
    cut = [episode for episode in logs() if not episode.terminated]
    assert cut
    for episode in cut:
        assert episode.turns[-1].role == AGENT
        assert len(episode.turns) == 202
        assert episode.total_reward == -101


def test_shortest_dialogues_are_shortest() -> None:
    maze = Maze()
    walks = [e for e in logs() if e.meta["policy"] == "shortest" and e.meta["part"] == "middle"]
    assert len(walks) > 3
    for episode in walks:
        assert episode.total_reward == 1 - maze.steps_to_goal(tuple(episode.meta["start"]))


def test_random_moves_are_uniform_over_those_that_stay_inside() -> None:
    maze = Maze()
    region = parts(maze)["left"]
    taken = dict.fromkeys(MOVES, 0)
    for episode in logs():
        if episode.meta["policy"] == "random" and episode.meta["part"] == "left":
            actions = [turn.text for turn in episode.turns if turn.role == AGENT]
            for cell, action in zip(cells(episode, maze), actions[:100], strict=False):
                if cell == (5, 6):
                    taken[action] += 1
    assert taken["move down\n"] == 0  # it would leave the part
    rest = [taken[action] / sum(taken.values()) for action in MOVES if action != "move down\n"]
    assert rest == pytest.approx([1 / 3] * 3, abs=0.06)
    assert (6, 6) not in region


def test_the_seed_decides_and_a_dialogue_does_not_depend_on_the_others() -> None:
    assert logs(seed=3, dialogues=20) == logs(seed=3, dialogues=40)[:20]
    assert logs(seed=3, dialogues=20) != logs(seed=4, dialogues=20)


def test_ids_and_groups_are_the_dialogues() -> None:
    found = logs(dialogues=5)
    assert [episode.id for episode in found] == [f"maze-{i:05d}" for i in range(5)]
    assert all(episode.meta["group"] == episode.id for episode in found)


def test_partial_observations_tell_the_walls_only() -> None:
    texts = {t.text for e in logs(dialogues=30, observation="partial") for t in e.turns if t.role == PARTNER}
    assert all(text.startswith("There ") or text == "Success\n" for text in texts)


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        ([Path("x.txt")], {}, "leave --input out"),
        ([], {"dialogues": 0}, "--dialogues is 0"),
        ([], {"observation": "both"}, "must be full or partial"),
    ],
)
def test_bad_options(inputs: list[Path], options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        episodes(inputs, seed=0, **options)
