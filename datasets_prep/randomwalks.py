"""Random walks on a graph of 21 letters, trlx's example for ILQL, generated from a seed. There is no file to read.

The published data (MIT licence, https://github.com/CarperAI/trlx, `examples/randomwalks`) are 1,000 walks for `--seed
1000`; here they are the same letter for letter. A walk starts at any node but the goal and takes up to nine steps along
edges drawn uniformly, until it is at the goal `a`. Few walks are short, and every start needs pieces of some: a policy
must *stitch*. `--tokenizer byte` makes one token a node.

One dialogue, as turns (`user` shows the start, `assistant` is the walker), its reward in brackets:

    user       j
    assistant  nbjna [0.571429]

The seed draws the graph and the walks, as published: another seed is another graph. In some graphs the goal cannot be
reached from some starts: walks from there have no optimality and are rejects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets_prep.rejects import Reject
from ilql.envs.randomwalks import GOAL, LIMIT, NODES, RandomWalks, draw_graph, generator
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn


def episodes(inputs: Sequence[Path], *, seed: int, walks: int = 1000) -> Iterator[Episode | Reject]:
    """The generated walks, in the published order: the first ones do not depend on how many follow."""
    if inputs:
        raise InputError(
            "the randomwalks corpus is generated and reads no file: leave --input out, and give --validation a fraction"
        )
    if walks < 1:
        raise InputError(f"--walks is {walks}, but must be at least 1")
    graph = RandomWalks(seed)
    return (_episode(graph, f"walk-{i:05d}", walk) for i, walk in enumerate(draw_walks(seed, walks)))


def draw_walks(seed: int, count: int) -> Iterator[str]:
    """Letters of `count` walks, the start included."""
    rng = generator(seed)
    edges = draw_graph(rng)
    goal = NODES.index(GOAL)
    for _ in range(count):
        node = goal
        while node == goal:
            node = rng.randint(len(NODES))
        walk = [node]
        while node != goal and len(walk) < LIMIT:
            node = rng.choice(np.flatnonzero(edges[node]))
            walk.append(node)
        yield "".join(NODES[node] for node in walk)


def _episode(graph: RandomWalks, name: str, walk: str) -> Episode | Reject:
    """One walk, scored by the environment itself."""
    start, rest = walk[0], walk[1:]
    if start not in graph.starts:
        return Reject("", 0, "start", f"from {start!r} the goal cannot be reached, so no walk has an optimality", name)
    turns = [Turn(PARTNER, graph.place(start))]
    reply = graph.step(rest)
    turns.append(Turn(AGENT, rest, reply.reward))
    return Episode(name, tuple(turns), reply.terminated, {"group": name, **graph.facts()})
