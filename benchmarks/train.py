"""Training steps: ours against the plain trainers, on the same rows and weights, in alternation.

A step is the losses, backward, AdamW and the targets' update. Losses must agree to 1e-4 before anything is timed.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.plain import Padded, Snell, trlx
from ilql.algos import ilql
from ilql.build import ModelConfig, build
from ilql.data import collate
from ilql.learner import Learner
from ilql.optim import OptimConfig, adamw

BOS = 0


@dataclass(frozen=True)
class Shape:
    """What is trained. mean, most: of the dialogues' lengths in tokens, lognormal where `spread` is above 0."""

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    dialogues: int
    mean: int = 150
    most: int = 512
    spread: float = 0.8


SHAPES = (
    Shape("4 x 128, V 50, game logs of 60-100 tokens", 4, 128, 4, 50, 64, mean=80, most=100, spread=0.0),
    Shape("4 x 256, V 10,000, 16 dialogues", 4, 256, 4, 10_000, 16),
    Shape("4 x 768, V 50,257, 8 dialogues", 4, 768, 12, 50_257, 8),
)


def dialogues(shape: Shape, seed: int = 0) -> list[dict[str, Any]]:
    """Rows at token steps: turns of some 15 tokens, every second one the agent's; a reward at the end."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(shape.dialogues):
        if shape.spread:
            drawn = rng.lognormal(np.log(shape.mean) - shape.spread**2 / 2, shape.spread)
        else:
            drawn = rng.uniform(0.75 * shape.mean, 1.25 * shape.mean)
        length = int(np.clip(drawn, 12, shape.most))
        tokens = rng.integers(1, shape.vocabulary, length).astype(np.int32)
        tokens[0] = BOS
        turn: list[int] = []
        start: list[int] = []
        place = 1
        while place < length - 2:
            turn.append(place)
            end = min(length, place + int(rng.integers(5, 26)))
            if len(turn) % 2 == 0 or end == length:
                start += range(place + 1, end)
            place = end
        reward = np.zeros(len(start), np.float32)
        reward[-1] = rng.normal()
        where = np.array(start, np.int32)
        row = {"id": f"d{i}", "tokens": tokens[: start[-1] + 1], "turn": np.array(turn, np.int32), "start": where}
        rows.append({**row, "end": where + 1, "reward": reward, "terminated": True, "meta": "{}"})
    return rows


def compare(shape: Shape, pairs: int) -> dict[str, Any]:
    """Seconds a step of each trainer, in alternation; ratios are of the pairs."""
    rows = dialogues(shape)
    cfg = ilql.Config(cql_weight=0.1)
    torch.manual_seed(0)
    size = ModelConfig(layers=shape.layers, width=shape.width, heads=shape.heads, context=shape.most)
    model = build(size, vocab_size=shape.vocabulary, bos_id=BOS, pad_id=BOS, end_ids=[1])
    padded = Padded(rows)
    snell = Snell(copy.deepcopy(model))
    theirs = copy.deepcopy(model)
    learner = Learner(model, ilql, cfg)

    def ours() -> dict[str, torch.Tensor]:
        batch = collate(rows, gamma=cfg.gamma, bos=BOS, acted=False).to("cpu", torch.float32)
        return {name: x.mean() for name, x in learner(batch).items()}

    def low() -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return ours()

    kinds: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], Any]] = {
        "ours": (ours, model),
        "ours, bf16": (low, model),
        "trlx style": (lambda: trlx(theirs, padded, cfg), theirs),
        "Snell style": (lambda: snell(padded, cfg), snell.model),
    }
    first = {name: {k: float(x.detach()) for k, x in run().items()} for name, (run, _) in kinds.items()}
    for name in ("trlx style", "Snell style"):
        for term, value in first["ours"].items():
            if abs(first[name][term] - value) > 1e-4 * max(1.0, abs(value)):
                raise SystemExit(f"error: {shape.name}: {term} is {value} here and {first[name][term]} {name}")
    extra = {"Snell style": list(snell.policy.parameters())}
    steps = {name: _step(run, target, extra.get(name, [])) for name, (run, target) in kinds.items()}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(pairs):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    tokens = int(sum(len(r["tokens"]) for r in rows))
    return {"shape": shape, "seconds": seconds, "tokens": tokens, "padded": padded.ids.numel()}


def _step(
    run: Callable[[], dict[str, torch.Tensor]], model: Any, extra: Sequence[torch.nn.Parameter]
) -> Callable[[], None]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = adamw(OptimConfig(), {**named, **{f"extra.{i}": p for i, p in enumerate(extra)}})

    def step() -> None:
        torch.stack(list(run().values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_targets(0.005)

    return step


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """min-median-max of theirs / ours over the pairs: how many times faster ours is."""
    found = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return f"{statistics.median(found):.2f} [{found[0]:.2f}, {found[-1]:.2f}]"
