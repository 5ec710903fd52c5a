"""What the benchmarks run on: sizes of models with generated dialogues. Decision: everything is drawn from a seed, so
that a figure can be made again without a download; lengths are those of logs of dialogues, a few long and many short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ilql.build import ModelConfig, build
from ilql.model import ILQLModel

BOS = 0
SHORTEST = 30  # tokens: room for a turn of each side


@dataclass(frozen=True)
class Shape:
    """A model and a batch of dialogues.

    mean, most: of the dialogues' lengths in tokens. spread: sigma of lognormal lengths; 0 for uniform ones within a
    quarter of the mean; None for dialogues of exactly `mean` tokens, without any padding to save.
    """

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    dialogues: int
    mean: int = 150
    most: int = 512
    spread: float | None = 0.8


LARGE = Shape("4 x 768, V 50,257, 8 dialogues", 4, 768, 12, 50_257, 8)
MIDDLE = Shape("4 x 256, V 10,000, 16 dialogues", 4, 256, 4, 10_000, 16)
SMALL = Shape("4 x 128, V 50, 64 game logs of 60-100 tokens", 4, 128, 4, 50, 64, mean=80, most=100, spread=0.0)
TINY = Shape("2 x 32, V 61, 4 dialogues", 2, 32, 2, 61, 4, mean=60, most=128)


def lengths(shape: Shape, rng: np.random.Generator) -> int:
    """Tokens of one dialogue."""
    if shape.spread is None:
        return shape.mean
    if shape.spread:
        drawn = rng.lognormal(np.log(shape.mean) - shape.spread**2 / 2, shape.spread)
    else:
        drawn = rng.uniform(0.75 * shape.mean, 1.25 * shape.mean)
    return int(np.clip(drawn, SHORTEST, shape.most))


def dialogues(shape: Shape, seed: int = 0) -> list[dict[str, Any]]:
    """Rows at token steps: turns of some 15 tokens, every second one the agent's; a reward at the end."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(shape.dialogues):
        length = lengths(shape, rng)
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
        tokens, turns = tokens[: start[-1] + 1], np.array([t for t in turn if t <= start[-1]], np.int32)
        row = {"id": f"d{i}", "tokens": tokens, "turn": turns, "start": where, "end": where + 1, "reward": reward}
        rows.append({**row, "terminated": True, "meta": "{}"})
    return rows


def make(shape: Shape, *, frozen: bool = False, critic: str = "vocabulary") -> ILQLModel:
    """The model, from a fixed seed, with targets apart from the critics: a mix-up of the two must not go unseen.

    frozen: with a trunk that is not trained; the weights are the same.
    """
    torch.manual_seed(0)
    size = ModelConfig(
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        context=max(shape.most, shape.mean),
        freeze="trunk" if frozen else None,
    )
    model = build(size, vocab_size=shape.vocabulary, bos_id=BOS, pad_id=BOS, end_ids=[1], critic=critic)
    with torch.no_grad():
        for p in model.q_target.parameters():
            p.add_(torch.empty_like(p).uniform_(-0.02, 0.02))
    return model
