"""Golden loss curves: 20 float64 steps of each algorithm on stored dialogues. Decision: nothing here draws a random
number. The weights are a formula of their place, so a curve changes with the mathematics and not with a version of
torch; `make golden` writes the curves anew, and `python -m tests.golden.make NAME ...` those of some algorithms.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ilql.algos import ALGOS, critic
from ilql.build import ModelConfig, build
from ilql.data import Row, collate
from ilql.learner import Learner
from ilql.model import ILQLModel
from tests.toys import at_step, model_fields

HERE = Path(__file__).resolve().parent
STEPS, BATCH, VOCAB = 20, 4, 19
RATE = 0.05  # of plain gradient descent
SETTINGS: dict[str, dict[str, Any]] = {
    "actor_critic": {"limit": 1.1},
    "filtered_bc": {"top": 0.5},
    "q_sft": {"low": -3.0, "high": 3.0},
}
# Curves beside those of the algorithms: which algorithm, and its settings.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ilql_gumbel": ("ilql", {"v_loss": "gumbel", "v_temperature": 0.5}),
    "ilql_calibrated": ("ilql", {"calibrated": True}),
    "cql_calibrated": ("cql", {"calibrated": True}),
    "q_sft_dummy": ("q_sft", {"low": -3.0, "high": 3.0, "rest": "dummy"}),
    "mc_utterance": ("mc", {"cql_weight": 0.0}),
    "sarsa_utterance": ("sarsa", {"cql_weight": 0.0}),
    "ilql_sparse": ("ilql", {"v_loss": "sparse", "v_temperature": 0.5}),
}
UTTERANCE = {"mc_utterance", "sarsa_utterance"}  # of the variants, those at utterance steps
COMMON: dict[str, Any] = {"gamma": 0.9, "tau": 0.8, "cql_weight": 0.1, "polyak": 0.1}


def rows() -> list[Row]:
    """The stored dialogues, as `ilql.rows.Rows` gives them."""
    kinds = {"tokens": np.int32, "turn": np.int32, "start": np.int32, "end": np.int32, "reward": np.float64}
    stored = json.loads((HERE / "rows.json").read_text(encoding="utf-8"))
    made = [r | {name: np.array(r[name], kind) for name, kind in kinds.items()} for r in stored]
    return [r | {"logp": np.float32(-2.5) - np.arange(len(r["start"]), dtype=np.float32) % 4} for r in made]


def note(text: str) -> list[int]:
    """A control text as tokens: one for each letter of its number."""
    return [3 + ord(letter) % 16 for letter in text.removeprefix("return ")]


def model_of(algo: ModuleType, cfg: Any, step: str) -> ILQLModel:
    """Two GPT-2 layers in float64, every weight a sine of its place; the targets differ from the critics."""
    shape = ModelConfig(layers=2, width=16, heads=2, context=64, dtype="float64")
    made = build(shape, vocab_size=VOCAB, bos_id=0, pad_id=1, end_ids=[2], **model_fields(algo, cfg, step))
    with torch.no_grad():
        for k, (name, p) in enumerate(sorted(made.named_parameters())):
            place = torch.arange(p.numel(), dtype=torch.float64)
            wave = torch.sin(0.7 * (k + 1) + 1.3 * place + 0.001 * place * place).reshape(p.shape)
            p.copy_(1 + 0.1 * wave if ".ln_" in name and name.endswith("weight") else 0.3 * wave)
    return made


def config(name: str) -> tuple[ModuleType, Any]:
    """The algorithm of a curve, and its settings."""
    name, settings = VARIANTS.get(name, (name, SETTINGS.get(name, {})))
    cls = ALGOS[name].Config
    known = cls.__dataclass_fields__
    return ALGOS[name], cls(**{k: v for k, v in COMMON.items() if k in known} | settings)


def curve(name: str) -> list[dict[str, float]]:
    """The mean of each loss at every step; plain gradient descent, targets moved after it."""
    algo, cfg = config(name)
    at = "utterance" if name in UTTERANCE else algo.STEPS[0]
    data = at_step(rows(), at)
    if hasattr(algo, "select"):
        mask = algo.select(np.array([r["reward"].sum() for r in data]), cfg)
        data = [r for r, kept in zip(data, mask, strict=True) if kept]
    if hasattr(algo, "prepare"):
        data = [algo.prepare(r, note, cfg) for r in data]
    torch.set_num_threads(1)
    model = model_of(algo, cfg, at)
    learner = Learner(model, algo, cfg)
    weights = [p for p in model.parameters() if p.requires_grad]
    out = []
    for step in range(STEPS):
        part = [data[(step * BATCH + i) % len(data)] for i in range(BATCH)]
        history = 2 if step % 4 == 3 else None  # now and then in windows
        batch = collate(
            part,
            gamma=getattr(cfg, "gamma", 1.0),
            bos=0,
            history=history,
            reward_scale=0.5,
            bootstraps=algo.BOOTSTRAPS,
            acted=critic(algo, at) == "scalar",
            offered=getattr(algo, "OFFERED", False),
        )
        losses = {k: v.mean() for k, v in learner(batch.to("cpu", torch.float64)).items()}
        total = torch.stack(list(losses.values())).sum()
        for p, g in zip(weights, torch.autograd.grad(total, weights, allow_unused=True), strict=True):
            if g is not None:
                p.data.sub_(RATE * g)
        if model.q_target or model.target_actor is not None:
            model.update_targets(cfg.polyak)
        out.append({k: v.item() for k, v in losses.items()})
    assert all(math.isfinite(x) for row in out for x in row.values())
    return out


def path(name: str) -> Path:
    return HERE / f"{name}.json"


def main(names: Sequence[str] = ()) -> None:
    for name in names or [*ALGOS, *VARIANTS]:
        lines = ",\n".join(json.dumps(row) for row in curve(name))  # json writes a float as repr does, exactly
        path(name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        print(f"wrote {path(name).relative_to(HERE.parents[1])}")


if __name__ == "__main__":
    main(sys.argv[1:])
