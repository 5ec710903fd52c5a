"""`train.py --seeds 0-4`: one config trained with several seeds, one after another. Decision: each is an ordinary run
in OUTPUT/seed-N, bit by bit the one that `--seed N` gives, so what is finished is left alone and what was interrupted
goes on; every config is checked before the first one trains.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ilql import checkpoint, runfolder
from ilql.config import TrainConfig
from ilql.types import InputError

MOST = 1000


class Train(Protocol):
    """`ilql.trainer.train`."""

    def __call__(self, cfg: TrainConfig, *, resume: bool, allow_inexact: bool) -> object: ...


def numbers(text: str) -> list[int]:
    """The seeds that a text such as `0-4` or `0,3,7-9` names, in its order."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise InputError(f"--seeds {text}: write it as 0-4 or 0,3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= MOST:
            raise InputError(f"--seeds {text} names more than {MOST} seeds; name fewer")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise InputError(f"--seeds {text} names a seed twice; name each once")
    return found


def configs(cfg: TrainConfig, seeds: Sequence[int]) -> list[TrainConfig]:
    """The config of each seed's run."""
    if (Path(cfg.output) / "config.yaml").exists():
        raise InputError(
            f"{cfg.output} is a run folder and cannot hold those of several seeds; choose another --output"
        )
    return [replace(cfg, seed=seed, output=str(Path(cfg.output) / f"seed-{seed}")) for seed in seeds]


def finished(cfg: TrainConfig, allow_inexact: bool) -> bool:
    """Whether a config's run has been trained to its end. Raises InputError for a folder of another config."""
    folder = Path(cfg.output)
    known = runfolder.check(cfg, True, allow_inexact)
    steps = max(checkpoint.steps(folder / "checkpoints"), default=0)
    return known and (folder / "model").is_dir() and steps >= cfg.steps


def train_each(runs: Sequence[TrainConfig], train: Train, allow_inexact: bool, say: Callable[[str], None]) -> None:
    """Train what is not finished. say: hears of every run which it is."""
    done = [finished(cfg, allow_inexact) for cfg in runs]
    for number, (cfg, over) in enumerate(zip(runs, done, strict=True), 1):
        say(f"seed {cfg.seed} ({number} of {len(runs)}): {cfg.output}{' is finished' if over else ''}")
        if not over:
            train(cfg, resume=True, allow_inexact=allow_inexact)
