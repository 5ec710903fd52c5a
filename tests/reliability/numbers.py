"""Numbers that are not finite, wherever they come from: no weight moves, and the dialogues are named and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ilql.algos
from ilql import checkpoint
from ilql.progress import TrainingError
from ilql.stepper import Stepper
from ilql.trainer import train
from tests.tiny import config

NAN, INF = torch.nan, torch.inf
Break = Callable[[dict[str, Tensor], Any, Any], None]


def _loss(name: str, value: float, all_of_it: bool = False) -> Break:
    def breaks(vectors: dict[str, Tensor], out: Any, batch: Any) -> None:
        hurt = torch.zeros_like(vectors[name])
        hurt[slice(None) if all_of_it else -1] = value
        vectors[name] = vectors[name] + hurt

    return breaks


def _gradient(of: Callable[[Any], Tensor]) -> Break:
    def breaks(vectors: dict[str, Tensor], out: Any, batch: Any) -> None:
        of(out).register_hook(lambda g: g * NAN)

    return breaks


def _weight(vectors: dict[str, Tensor], out: Any, batch: Any) -> None:
    with torch.no_grad():
        next(out.model.q_target.parameters()).view(-1)[0] = NAN


def _reward(vectors: dict[str, Tensor], out: Any, batch: Any) -> None:
    batch.reward[0] = INF


PLACES: dict[str, Break] = {
    "loss q": _loss("q", NAN),
    "loss v": _loss("v", NAN),
    "loss cql": _loss("cql", INF),
    "loss bc": _loss("bc", -INF),
    "a whole loss": _loss("bc", NAN, all_of_it=True),
    "gradient of the hidden states": _gradient(lambda out: out.hidden),
    "gradient of a critic": _gradient(lambda out: next(out.model.q.parameters())),
    "gradient of V": _gradient(lambda out: next(out.model.v.parameters())),
    "a reward": _reward,
    "a target's weight": _weight,
}


def broken_number(data: Path, folder: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break one number in the second micro-batch of the third step: the weights stay those of the second step."""
    real, calls = ilql.algos.ilql.loss, 0
    seen: dict[str, Any] = {}

    def breaking(out: Any, batch: Any, cfg: Any) -> dict[str, Tensor]:
        nonlocal calls
        vectors = real(out, batch, cfg)
        calls += 1
        if calls == 6:
            PLACES[place](vectors, out, batch)
        return vectors

    keep = Stepper.forget

    def spy(self: Stepper) -> None:
        keep(self)
        seen["model"] = self.model

    with monkeypatch.context() as patch:
        patch.setattr(ilql.algos.ilql, "loss", breaking)
        patch.setattr(Stepper, "forget", spy)
        log = {"checkpoint_every": 1}
        cfg = config(data, folder, "ilql", batch={"dialogues": 3, "accumulate": 2}, log=log)
        with pytest.raises(TrainingError, match="the weights are as before this step") as caught:
            train(cfg)
    (dumped,) = (folder / "nonfinite").iterdir()
    kept = json.loads(dumped.read_text())
    ids = [name for batch in kept["batches"] for name in batch["dialogues"]]
    assert ids
    assert all(name in str(caught.value) for name in ids)
    assert kept["step"] == 2
    assert set(checkpoint.steps(folder / "checkpoints")) == {1, 2}
    now = checkpoint.model_tensors(seen["model"])
    then = checkpoint.load(folder / "checkpoints" / "step-2")[0]["model"]
    moved = [name for name in then if not torch.equal(then[name], now[name])]
    assert len(moved) == (place == "a target's weight"), moved
