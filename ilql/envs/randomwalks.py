"""Random walks on a small graph, trlx's example for ILQL (https://github.com/CarperAI/trlx): text in and text out.

Decision: the published graph and walks, draw for draw, from numpy's frozen `RandomState`, so that published curves can
stand beside ours. The graph has 21 nodes, the letters a to u; every node but the goal `a` has some edges (each of the
others with probability .1), and the goal leads to itself only. The first letter of a walk is the observation; the rest,
as one utterance without any delimiter, is the agent's only turn:

    user       f
    assistant  da

A walk is worth its *optimality*, the only reward, in [0, 1]: (10 - nodes) / (10 - nodes of the shortest path), where
the start counts and so does the goal. What a walk says after it has reached the goal is not read. A step along no edge,
a walk that stops before the goal, and one that is not there after ten nodes are worth 0: the limit is the task's own,
so it terminates.

The start is taken from the seed and not drawn: any 20 consecutive seeds are all the starts once. A node from which the
goal cannot be reached with fewer than ten nodes is no start, since no walk from it has an optimality (published code
divides by zero there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ilql.types import Episode, InputError, Reply

SEATS = 1
NODES = "abcdefghijklmnopqrstu"
GOAL = "a"
LIMIT = 10  # nodes of a walk, its start included
EDGE_SHARE = 0.1
PUBLISHED_SEED = 1000


def draw_graph(rng: np.random.RandomState) -> np.ndarray:
    """Edges as (21, 21) bool, [from, to]; leaves the generator where the published walks begin to be drawn."""
    while True:
        edges = rng.rand(len(NODES), len(NODES)) > 1 - EDGE_SHARE
        np.fill_diagonal(edges, False)
        if edges.any(axis=1).all():
            break
    goal = NODES.index(GOAL)
    edges[goal] = False
    edges[goal, goal] = True
    return edges


def generator(seed: int) -> np.random.RandomState:
    """The generator of a graph's seed; InputError for one that numpy does not take."""
    if not 0 <= seed < 2**32:
        raise InputError(f"randomwalks: the seed is {seed}, but must be from 0 to 4294967295")
    return np.random.RandomState(seed)


class RandomWalks:
    """One walk.

    seed: of the graph; 1000 is the published one.
    Public facts: `edges` (node -> the nodes that it leads to), `shortest` (node -> nodes of the shortest path to the
    goal, both ends counted, and 10 where there is no shorter one), `starts`.
    """

    def __init__(self, seed: int = PUBLISHED_SEED) -> None:
        matrix = draw_graph(generator(seed))
        self.edges = {a: "".join(NODES[j] for j in np.flatnonzero(row)) for a, row in zip(NODES, matrix, strict=True)}
        self.shortest = _shortest(self.edges)
        self.starts = "".join(node for node in NODES if node != GOAL and self.shortest[node] < LIMIT)
        if not self.starts:
            raise InputError(f"randomwalks: in the graph of seed {seed} no node leads to the goal; choose another seed")
        self.walk = ""
        self._over = True

    def reset(self, seed: int) -> str:
        """Start at node number `seed` modulo the number of `starts`; returns its letter."""
        return self.place(self.starts[seed % len(self.starts)])

    def place(self, start: str) -> str:
        """Start at one of `starts`; returns its letter."""
        if start not in self.starts or len(start) != 1:
            raise ValueError(f"{start!r} is no start: choose one of the graph's `starts`")
        self.walk = start
        self._over = False
        return start

    def step(self, utterance: str) -> Reply:
        """Take the rest of the walk, which ends it; white space around it is no matter. RuntimeError after the end."""
        if self._over:
            raise RuntimeError("the walk is over: call reset")
        self.walk += utterance.strip()
        self._over = True
        return Reply("", self.optimality(self.walk), terminated=True)

    def length(self, walk: str) -> int | None:
        """Nodes of a walk up to the goal, the start included; None for one that leaves the graph or is not there with
        the tenth node."""
        for i, node in enumerate(walk[:LIMIT]):
            if i and node not in self.edges.get(walk[i - 1], ""):
                return None
            if node == GOAL:
                return i + 1
        return None

    def optimality(self, walk: str) -> float:
        """How near a walk, from its start on, is to the shortest one: 1 is the same length, 0 ten nodes or no goal."""
        return (LIMIT - (self.length(walk) or LIMIT)) / (LIMIT - self.shortest[walk[0]])

    def facts(self) -> dict[str, Any]:
        """What a transcript records of the walk; `nodes` is None for one that did not reach the goal."""
        return {"start": self.walk[0], "nodes": self.length(self.walk), "shortest": self.shortest[self.walk[0]]}


def _shortest(edges: dict[str, str]) -> dict[str, int]:
    """Nodes of the shortest path from every node to the goal, breadth first, at most LIMIT."""
    nodes = {GOAL: 1}
    queue = [GOAL]
    for reached in queue:
        for node, following in edges.items():
            if reached in following and node not in nodes:
                nodes[node] = nodes[reached] + 1
                queue.append(node)
    return {node: min(nodes.get(node, LIMIT), LIMIT) for node in edges}


def make(seed: int = PUBLISHED_SEED) -> Callable[[], RandomWalks]:
    """A factory of walks on one graph, as `rollout` asks for; `seed` is the graph's."""
    RandomWalks(seed)  # a bad seed fails here, with one sentence, and not in the middle of a rollout
    return lambda: RandomWalks(seed)


def summary(episodes: Sequence[Episode]) -> dict[str, list[float | None]]:
    """Extra columns of an evaluation: optimality in [0, 1] (the return by its name), and the shares of walks (%) that
    are as short as can be, and that reach the goal at all."""
    return {
        "optimality": [episode.total_reward for episode in episodes],
        "optimal %": [100.0 * (episode.meta["nodes"] == episode.meta["shortest"]) for episode in episodes],
        "goal %": [100.0 * (episode.meta["nodes"] is not None) for episode in episodes],
    }
