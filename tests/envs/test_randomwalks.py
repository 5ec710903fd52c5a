"""The published graph, what a walk is worth, and the ends of walks."""

import itertools

import pytest

from ilql.envs import randomwalks as module
from ilql.envs.randomwalks import GOAL, NODES, RandomWalks, make, summary
from ilql.rollout import rollout
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn


@pytest.fixture(scope="module")
def graph() -> RandomWalks:
    return RandomWalks()


def test_the_published_graph(graph: RandomWalks) -> None:
    assert "".join(graph.edges) == NODES == "abcdefghijklmnopqrstu"
    assert sum(map(len, graph.edges.values())) == 52
    assert graph.edges["a"] == "a"  # the goal absorbs
    assert all(node not in graph.edges[node] for node in NODES[1:])
    assert graph.shortest["a"] == 1
    assert graph.starts == NODES[1:]


def test_shortest_paths_by_another_way(graph: RandomWalks) -> None:
    """Nodes of the shortest path, by walking all paths of a length at once."""
    for start in graph.starts:
        reached, nodes = {start}, 1
        while GOAL not in reached:
            reached = {following for node in reached for following in graph.edges[node]}
            nodes += 1
        assert graph.shortest[start] == nodes


def test_optimality_counts_the_start_and_the_goal(graph: RandomWalks) -> None:
    assert graph.optimality("fda") == 1
    assert graph.shortest["j"] == 3
    assert graph.optimality("jnbjna") == pytest.approx(4 / 7, abs=1e-15)  # six nodes where three would do
    assert graph.optimality("ebjnbdtkna") == 0  # there with the tenth node: no better than not at all
    assert graph.length("ebjnbdtkna") == 10
    assert graph.optimality("lbusdtkbui") == 0
    assert graph.length("lbusdtkbui") is None


def test_shortest_walks_are_optimal_from_every_start(graph: RandomWalks) -> None:
    for start in graph.starts:
        walk = start
        while walk[-1] != GOAL:
            walk += min(graph.edges[walk[-1]], key=graph.shortest.__getitem__)
        assert len(walk) == graph.shortest[start]
        assert graph.optimality(walk) == 1


@pytest.mark.parametrize(
    ("rest", "worth"),
    [
        ("da", 1.0),
        (" da\n", 1.0),
        ("da, at last", 1.0),  # what follows the goal is not read
        ("daa", 1.0),
        ("", 0.0),
        ("d", 0.0),  # stops before the goal
        ("a", 0.0),  # no such edge
        ("DA", 0.0),
        ("zzz", 0.0),
        ("d a", 0.0),  # there is no delimiter
    ],
)
def test_rewards_and_ends(graph: RandomWalks, rest: str, worth: float) -> None:
    assert graph.place("f") == "f"
    assert "a" not in graph.edges["f"]
    assert "d" in graph.edges["f"]
    assert "a" in graph.edges["d"]
    reply = graph.step(rest)
    assert (reply.text, reply.reward, reply.terminated, reply.truncated) == ("", worth, True, False)
    with pytest.raises(RuntimeError, match="call reset"):
        graph.step(rest)


def test_a_walk_of_more_than_ten_nodes_is_worth_nothing(graph: RandomWalks) -> None:
    there, back = "j", next(n for n in graph.edges["j"] if any("j" in graph.edges[m] for m in graph.edges[n]))
    third = next(m for m in graph.edges[back] if "j" in graph.edges[m])
    loop = there + back + third
    walk = loop * 4 + "jna"
    assert all(b in graph.edges[a] for a, b in itertools.pairwise(walk))
    assert graph.length(walk) is None
    assert graph.optimality(walk) == 0


@pytest.mark.parametrize("first", [0, 7, 1000])
def test_20_consecutive_seeds_are_every_start_once(graph: RandomWalks, first: int) -> None:
    assert sorted(graph.reset(seed) for seed in range(first, first + 20)) == list(graph.starts)


def test_a_graph_with_nodes_that_cannot_reach_the_goal() -> None:
    graph = RandomWalks(16)
    lost = [node for node in NODES if node not in graph.starts + GOAL]
    assert len(lost) == 6
    assert all(graph.shortest[node] == 10 for node in lost)
    for node in lost:
        with pytest.raises(ValueError, match="no start"):
            graph.place(node)
    assert sorted(graph.reset(seed) for seed in range(14)) == list(graph.starts)


def test_a_graph_without_a_way_to_the_goal() -> None:
    with pytest.raises(InputError, match="graph of seed 6 no node leads to the goal; choose another seed"):
        make(seed=6)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_does_not_take(seed: int) -> None:
    with pytest.raises(InputError, match=f"the seed is {seed}, but must be from 0 to 4294967295"):
        make(seed=seed)


@pytest.mark.parametrize("start", ["a", "", "fd", "z"])
def test_what_is_no_start(graph: RandomWalks, start: str) -> None:
    with pytest.raises(ValueError, match="no start"):
        graph.place(start)


def test_summary() -> None:
    class Walker:
        def respond(self, dialogues: list[list[Turn]]) -> list[str]:
            return [{"f": "da", "j": "nbjna", "e": "bjnbdtkna"}.get(turns[0].text, "") for turns in dialogues]

    played = rollout(Walker(), make(), [4, 8, 3, 0], progress=False)
    assert [e.turns[0].text for e in played] == ["f", "j", "e", "b"]
    assert summary(played) == {
        "optimality": [1.0, pytest.approx(4 / 7), 0.0, 0.0],
        "optimal %": [100.0, 0.0, 0.0, 0.0],
        "goal %": [100.0, 100.0, 100.0, 0.0],
    }
    turns = (Turn(PARTNER, "j"), Turn(AGENT, "nbjna", pytest.approx(4 / 7)))
    meta = {"group": "seed-8", "seed": 8, "start": "j", "nodes": 6, "shortest": 3}
    assert played[1] == Episode("seed-8", turns, True, meta)
    assert module.SEATS == 1
