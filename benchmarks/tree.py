"""What sharing beginnings saves: a step of training on rows that share them, against the same rows computed apart.

Rows that repeat one another, as logs of one conversation do that were written after each of its turns; eight candidates
at a state, as proposals are; and rows that share just enough to branch, where a tree has the least to give. A step is
collation, the losses of `ilql.algos.ilql` and backward; both ways agree before anything is timed.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.cache import gradient_norms
from benchmarks.pairs import agree, say, speedup, spread, times
from benchmarks.report import Section
from benchmarks.shapes import BOS, MIDDLE, TINY
from benchmarks.train import Trainers
from ilql.data import Batch
from ilql.pieces import Run
from ilql.prefix import WORTH, apart

ONCE, APART = "beginnings once", "rows apart"
Row = dict[str, Any]


def row(name: str, context: np.ndarray, reply: np.ndarray, acted: np.ndarray, reward: float) -> Row:
    """A row at token steps: BOS, a context of which some tokens are the agent's, and its reply."""
    tokens = np.concatenate([[BOS], context, reply]).astype(np.int32)
    start = np.append(np.flatnonzero(acted) + 1, np.arange(len(reply)) + len(context) + 1).astype(np.int32)
    gained = np.zeros(len(start), np.float32)
    gained[-1] = reward
    out = {"id": name, "tokens": tokens, "turn": np.array([1, len(context) + 1], np.int32), "start": start}
    return {**out, "end": start + 1, "reward": gained, "terminated": True, "meta": "{}"}


def conversation(vocabulary: int, count: int, rng: np.random.Generator) -> list[Row]:
    """Each row repeats the exchanges of the one before it, adds one, and ends in a reply of its own."""
    context, acted, rows = np.zeros(0, np.int32), np.zeros(0, bool), []
    for i in range(count):
        asked, said, other = (rng.integers(1, vocabulary, rng.integers(10, 31)) for _ in range(3))
        context, acted = np.append(context, asked), np.append(acted, np.zeros(len(asked), bool))
        rows.append(row(f"d{i}", context, other, acted, rng.normal()))
        context, acted = np.append(context, said), np.append(acted, np.ones(len(said), bool))
    return rows


def candidates(vocabulary: int, states: int, context: int, size: int, rng: np.random.Generator) -> list[Row]:
    """Eight replies of about `size` tokens at each of some states."""
    rows = []
    for i in range(states):
        said = rng.integers(1, vocabulary, context - 1)
        for k in range(8):
            reply = rng.integers(1, vocabulary, rng.integers(size - size // 4, size + size // 4 + 1))
            rows.append(row(f"d{i}.{k}", said, reply, np.zeros(context - 1, bool), rng.normal()))
    return rows


def works(vocabulary: int, quick: bool) -> dict[str, tuple[str, list[Row]]]:
    rng = np.random.default_rng(0)
    few = 4 if quick else 1
    exchanges, states, context, reply = 10 // few, 4 // few, 200 // few, 150 // few
    talks = [row for _ in range(2) for row in conversation(vocabulary, exchanges, rng)]
    return {
        "conversations": (f"2 conversations of {exchanges} exchanges, a row after each", talks),
        "candidates": (
            f"8 candidates of 20 tokens at {states} states of {context}",
            candidates(vocabulary, states, context, 20, rng),
        ),
        "least": (f"8 replies of {reply} tokens behind {WORTH}", candidates(vocabulary, 1, WORTH, reply, rng)),
    }


def rows_apart(batch: Batch) -> Batch:
    """The same batch with every row computed as a whole."""
    begins = np.append(np.flatnonzero(batch.position.numpy() == 0), len(batch.tokens))
    run = Run(batch.tokens, batch.position, apart(np.diff(begins).tolist()))
    return replace(batch, run=run, where=torch.arange(len(batch.tokens)))


def step(trainers: Trainers, kind: str) -> dict[str, float]:
    """Losses, and their gradients in place of the last step's."""
    trainers.optimizer.zero_grad(set_to_none=True)
    batch = trainers.batch() if kind == ONCE else rows_apart(trainers.batch())
    losses = {name: x.mean() for name, x in trainers.learner(batch).items()}
    torch.stack(list(losses.values())).sum().backward()
    return {name: float(x.detach()) for name, x in losses.items()}


def measure(pairs: int, quick: bool = False) -> Section:
    """The table; its figures are the ratios."""
    section = Section("tree", "Shared beginnings")
    shape = replace(TINY, most=128) if quick else MIDDLE
    for place, (name, rows) in works(shape.vocabulary, quick).items():
        say(f"tree: {name}")
        trainers = Trainers(shape, (), rows)
        found, warm = {}, {}
        for kind in (ONCE, APART):
            begin = time.perf_counter()
            losses = step(trainers, kind)
            warm[kind] = time.perf_counter() - begin
            found[kind] = losses | gradient_norms(trainers.model)
        agree(name, found[ONCE], found[APART], 1e-4)
        seconds = times({kind: partial(step, trainers, kind) for kind in warm}, pairs, warm)
        batch = trainers.batch()
        gain = speedup(seconds[ONCE], seconds[APART])
        section.figures[f"tree/{place}"] = gain
        line = {"rows": name, "tokens": f"{len(batch.tokens):,}", "computed": f"{len(batch.run.tokens):,}"}
        line |= {f"{kind}: seconds a step": f"{spread(each).value:.3g}" for kind, each in seconds.items()}
        line["times as fast"] = f"{gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
        section.rows.append(line)
    section.notes.append(
        f"A model of {shape.layers} layers, D {shape.width}, V {shape.vocabulary:,}. A step is collation, the losses "
        f"and backward, without the optimizer. The last row is the least of which a tree is made: {WORTH} tokens."
    )
    return section
