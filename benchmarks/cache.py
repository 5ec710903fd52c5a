"""Steps of heads on hidden states read from disk, against trlx style that trains the whole model on as many decisions.
It is another algorithm, since the trunk does not learn; what it computes is the same, and so it is held to the same
losses and gradients of the heads first, on the same dialogues, with the states stored in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.dataset import write
from benchmarks.pairs import agree
from benchmarks.shapes import BOS, Shape, dialogues, make
from ilql import cached
from ilql.algos import ilql
from ilql.learner import Learner
from ilql.optim import OptimConfig, adamw
from ilql.replay import Decisions
from ilql.rows import Rows
from ilql.states import FORM

FP32, BF16 = "ours from stored h_t, fp32", "ours from stored h_t, bf16"
TIMES = 10  # dialogues in the cache for each of a batch


class Cached:
    """Heads that learn from a cache of `shape`'s trunk, a batch's number of decisions at a time."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape, self.cfg = shape, ilql.Config(cql_weight=0.1)
        self.model = make(shape, frozen=True)
        self.learner = Learner(self.model, ilql, self.cfg)
        self.optimizer = adamw(OptimConfig(), dict(self.model.named_parameters()))
        self.same = self._store(folder / "same", dialogues(shape), "float32")
        more = dialogues(replace(shape, dialogues=TIMES * shape.dialogues), seed=1)
        self.pool = self._store(folder / "more", more, "bfloat16")
        self.count = min(len(self.same), len(self.pool))
        self.order = np.random.default_rng(0).permutation(len(self.pool))
        self.place = 0
        self.warm: dict[str, float] = {}
        stored = sum(path.stat().st_size for path in (folder / "more" / "cache").rglob("*.arrow"))
        self.bytes_a_token = stored / sum(len(row["tokens"]) for row in more)

    def _store(self, folder: Path, rows: list[dict[str, Any]], dtype: str) -> Decisions:
        """A dataset, its cache, and the cache opened as training opens it."""
        data, to = folder / "data", folder / "cache"
        write(data, rows, self.shape.vocabulary)
        budget = 16384
        counts = cached.measure(FORM, data, BOS, None, budget)
        options: dict[str, Any] = {"name": "generated", "bos": BOS, "history": None, "dtype": dtype, "budget": budget}
        cached.write(FORM, self.model, data, to, counts, **options)
        self.learner.train()
        opened = cached.open_cache(to, data, None, "generated")
        opened.check_trunk(self.model, "generated")
        return Decisions(
            [opened],
            "train",
            Rows(data),
            None,
            gamma=self.cfg.gamma,
            reward_scale=1.0,
            bootstraps=ilql.BOOTSTRAPS,
            acted=ilql.CRITIC == "scalar",
        )

    def losses(self, pool: Decisions, index: np.ndarray, low: bool) -> dict[str, Tensor]:
        """The mean of each loss over these decisions of a cache."""
        batch = pool.__getitems__(index.tolist()).to("cpu", torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return {name: x.mean() for name, x in self.learner(batch).items()}

    def step(self, low: bool) -> None:
        """One step on the next decisions of a shuffle."""
        if self.place + self.count > len(self.order):
            self.place = 0
        index = self.order[self.place : self.place + self.count]
        self.place += self.count
        torch.stack(list(self.losses(self.pool, index, low).values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_targets(self.cfg.polyak)

    def check(self, losses: dict[str, float], norms: dict[str, float]) -> None:
        """Raise Disagreement unless the same dialogues give these losses and these norms of the heads' gradients."""
        found = self.losses(self.same, np.arange(len(self.same)), low=False)
        torch.stack(list(found.values())).sum().backward()
        agree(f"{self.shape.name}, {FP32}", {n: float(x.detach()) for n, x in found.items()}, losses, 1e-4)
        agree(f"{self.shape.name}, {FP32}", gradient_norms(self.model), norms, 1e-3)
        self.optimizer.zero_grad(set_to_none=True)

    def steps(self) -> dict[str, Callable[[], object]]:
        """Both precisions, warmed up."""
        out = {FP32: partial(self.step, False), BF16: partial(self.step, True)}
        for name, step in out.items():
            begin = time.perf_counter()
            step()
            self.warm[name] = time.perf_counter() - begin
        return out  # type: ignore[return-value]


def gradient_norms(model: torch.nn.Module) -> dict[str, float]:
    """The gradient's norm in each part of the model that has one."""
    squares: dict[str, float] = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            part = f"the norm of the gradient of {name.split('.')[0]}"
            squares[part] = squares.get(part, 0.0) + float(p.grad.double().square().sum())
    return {part: square**0.5 for part, square in squares.items()}
