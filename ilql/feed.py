"""What a run learns from, in place: the datasets of a config, checked, mixed, selected and ordered. Decision: every
fault of the input is found here, before a model is built or a file written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets_prep.encode import Encoder
from ilql.algos import ALGOS
from ilql.config import TrainConfig
from ilql.data import Batch, collate, longest_window
from ilql.order import Order
from ilql.rows import Mix, Rows
from ilql.schema import sha256
from ilql.types import InputError


class Picked(Sequence[dict[str, Any]]):
    """Some rows of a sequence, by index."""

    def __init__(self, rows: Mix, index: np.ndarray) -> None:
        self.rows, self.chosen, self.lengths = rows, index, rows.lengths[index]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> dict[str, Any]:  # type: ignore[override]
        return self.rows[int(self.chosen[i])]


@dataclass
class Feed:
    """rows and their order; validation: the fixed batches of this process; manifest: the first dataset's; digests: of
    every dataset's manifest; longest: tokens of the longest piece that a dialogue is read in."""

    rows: Picked
    order: Order
    collate: Callable[[Iterable[Any]], Batch]
    validation: list[Batch]
    encoder: Encoder
    manifest: dict[str, Any]
    digests: list[str]
    longest: int


def read(cfg: TrainConfig, rank: int = 0, world: int = 1) -> Feed:
    """Open the datasets of `cfg.data` for one of `world` processes. Raises InputError naming folder and mend."""
    parts = [Rows(path) for path in cfg.data.path]
    mix = Mix(parts)
    algo = ALGOS[cfg.algo]
    step = mix.parts[0].manifest["step"]
    if step not in algo.STEPS:
        raise InputError(
            f"{cfg.algo} learns at {' or '.join(algo.STEPS)} steps, but {cfg.data.path[0]} has {step} steps; build it "
            f"again: {rebuild(parts[0], algo.STEPS[0])}"
        )
    encoder = Encoder.from_folder(Path(cfg.data.path[0]) / "tokenizer")
    for part in parts:
        part.check(encoder.vocab_size)
    together = partial(
        collate,
        gamma=getattr(cfg.hyper, "gamma", 1.0),  # an algorithm without values has no discount, and reads none
        bos=encoder.bos_id,
        history=cfg.data.history,
        reward_scale=cfg.data.reward_scale,
        bootstraps=algo.BOOTSTRAPS,
        acted=algo.CRITIC == "scalar",
    )
    rows = select(mix, cfg, "train")
    weight = None
    if cfg.data.weights is not None:
        weight = np.repeat(cfg.data.weights, [len(p) for p in parts])[rows.chosen]
    order = Order(rows.lengths, cfg.batch, cfg.seed, rank, world, weight)
    validation, longest = [], max((longest_window(row, cfg.data.history) for row in mix), default=0)
    if cfg.log.validate_every:
        held = Mix([Rows(path, "validation") for path in cfg.data.path])
        if not len(held):
            raise InputError(
                f"log.validate_every is set, but {cfg.data.path[0]} has no validation split; "
                "set it to 0 or build the dataset with --validation"
            )
        for part in held.parts:
            part.check(encoder.vocab_size)
        chosen = select(held, cfg, "validation")
        most = math.ceil(cfg.log.validation_batches / world)
        # A seed and epoch of its own: the same batches at every validation, whatever the run's seed.
        which = Order(chosen.lengths, cfg.batch, 0, rank, world).batches(0)[:most]
        validation = [together([chosen[i] for i in batch]) for batch in which]
        longest = max(longest, *(longest_window(row, cfg.data.history) for row in held))
    digests = [sha256(Path(path) / "manifest.json") for path in cfg.data.path]
    return Feed(rows, order, together, validation, encoder, parts[0].manifest, digests, longest)


def select(mix: Mix, cfg: TrainConfig, split: str) -> Picked:
    """The dialogues that the algorithm learns from."""
    if not len(mix):
        raise InputError(f"{', '.join(cfg.data.path)}: the {split} split has no dialogue; build the dataset again")
    chosen = np.ones(len(mix), bool)
    pick = getattr(ALGOS[cfg.algo], "select", None)
    if pick is not None:
        try:
            chosen = pick(mix.returns, cfg.hyper)
        except InputError as error:
            raise InputError(f"{split} split: {error}") from None
    return Picked(mix, np.flatnonzero(chosen))


def rebuild(rows: Rows, step: str) -> str:
    """The command that builds a dataset again at another time step."""
    manifest = rows.manifest
    corpus = manifest.get("corpus", "CORPUS")
    name = f"{rows.folder}-{step}"
    return f"python -m datasets_prep {corpus} --input PATH --output {name} --step {step}"
