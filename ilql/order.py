"""Which rows make which batch. Decision: the order is a pure function of seed and epoch, so that a run resumes from two
integers and every process finds its own part without talking to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ilql.types import InputError


@dataclass(frozen=True)
class BatchConfig:
    """How much an optimizer step sees.

    dialogues: a fixed number in a micro-batch; None fills each with up to `tokens` tokens (at least one dialogue).
    decisions: of a micro-batch from a cache, which is shuffled over decisions and knows no dialogues.
    accumulate: micro-batches an optimizer step and process. passes: optimizer steps in a row on the same of them.
    workers: processes that collate ahead.
    """

    dialogues: int | None = None
    tokens: int = 8192
    decisions: int = 1024
    accumulate: int = 1
    passes: int = 1
    workers: int = 0


def times(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each row is taken, (rows): weight (rows) times on average, and never a whole time off."""
    return np.floor(weight + rng.random(len(weight))).astype(int)


class Order:
    """Which rows make which batch: a pure function of (seed, epoch), so that a run resumes from two integers.

    lengths (rows): tokens a row. weight (rows): passes over the row an epoch. Batches by token budget are made of rows
    of like length, from a shuffle within large groups, so that attention has little to pad; their order is shuffled.
    Every process gets the same number of batches; the few left over at an epoch's end wait for another epoch. With
    several passes the batches of an optimizer step come again and again, and an epoch is of whole steps.

    pair (rows): rows of the same number are drawn as one, and so always lie together in a batch of one process, one
    behind the other; None: each row for itself.
    """

    GROUP = 64  # batches whose rows are sorted by length together

    def __init__(
        self,
        lengths: np.ndarray,
        cfg: BatchConfig,
        seed: int,
        rank: int = 0,
        world: int = 1,
        weight: np.ndarray | None = None,
        pair: np.ndarray | None = None,
    ) -> None:
        if len(lengths) == 0:
            raise InputError("the train split has no dialogue; build the dataset again")
        self.pair = pair
        self._members: list[np.ndarray] | None = None
        if pair is not None:
            _, unit = np.unique(pair, return_inverse=True)
            self._members = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
            lengths = np.bincount(unit, lengths).astype(int)
            weight = None if weight is None else weight[[rows[0] for rows in self._members]]
        self.lengths, self.cfg, self.seed, self.rank, self.world, self.weight = lengths, cfg, seed, rank, world, weight

    def batches(self, epoch: int) -> list[Sequence[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        rows = rng.permutation(len(self.lengths))
        if self.weight is not None:
            rows = rng.permutation(np.repeat(rows, times(self.weight[rows], rng)))
        if self.cfg.dialogues is not None:
            size = self.cfg.dialogues
            if self._members is not None:
                size = max(1, size // max(map(len, self._members)))
            out: list[Any] = [rows[i : i + size] for i in range(0, len(rows), size)]
        else:
            out = self._by_budget(rows)
            out = [out[i] for i in rng.permutation(len(out))]
        if not out:  # small weights can leave an epoch without rows
            out = [[int(rng.integers(len(self.lengths)))]]
        if self._members is not None:
            out = [np.concatenate([self._members[unit] for unit in batch]) for batch in out]
        while len(out) < self.world:  # fewer batches than processes: each still gets one
            out = out + out
        return self._again(out[: len(out) // self.world * self.world][self.rank :: self.world])

    def _again(self, mine: list[Sequence[int]]) -> list[Sequence[int]]:
        """Each optimizer step's batches as often as there are passes; a step must not reach into the next epoch."""
        size, passes = self.cfg.accumulate, self.cfg.passes
        if passes == 1:
            return mine
        while len(mine) < size:  # an epoch shorter than a step
            mine = mine + mine
        steps = [mine[i : i + size] for i in range(0, len(mine) - size + 1, size)]
        return [batch for step in steps for _ in range(passes) for batch in step]

    def _by_budget(self, rows: np.ndarray) -> list[list[int]]:
        budget = self.cfg.tokens
        group = max(1, int(self.GROUP * budget / max(1.0, float(self.lengths.mean()))))
        out: list[list[int]] = []
        for i in range(0, len(rows), group):
            part = rows[i : i + group]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batch: list[int] = []
            size = 0
            for row in part.tolist():
                length = int(self.lengths[row])
                if batch and size + length > budget:
                    out.append(batch)
                    batch, size = [], 0
                batch.append(row)
                size += length
            if batch:
                out.append(batch)
        return out
