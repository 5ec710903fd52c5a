"""Bandits whose logs hold each arm in an exact share, and a table for an actor: what an algorithm makes of a fixed
log, to compare with what can be worked out."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch

from ilql.data import collate
from ilql.learner import Learner
from ilql.model import ILQLModel
from tests.toys import BOS, model_fields, row, table_model

STATE = 1  # the one state is a token, and arm i the token ARM + i
ARM = 2


def log(mu: np.ndarray, reward: np.ndarray, size: int = 100, logp: np.ndarray | None = None) -> list[dict[str, Any]]:
    """`size` dialogues of one action, arm i in mu[i] of them with reward[i]; logp (arms): as the log has it, by default
    log mu."""
    counts = np.rint(mu * size).astype(int)
    assert counts.sum() == size
    known = (np.log(mu) if logp is None else logp).astype(np.float32)
    return [
        row([BOS, STATE, ARM + i], [2], [3], [float(reward[i])]) | {"logp": known[[i]]}
        for i, count in enumerate(counts)
        for _ in range(count)
    ]


def solve(
    rows: list[dict[str, Any]],
    algo: ModuleType,
    cfg: Any,
    steps: int = 600,
    rate: float = 0.1,
    model: ILQLModel | None = None,
) -> ILQLModel:
    """The whole log at every step, at a decaying rate."""
    arms = max(int(r["tokens"].max()) for r in rows) + 1
    model = table_model(arms, **model_fields(algo, cfg)) if model is None else model
    learner = Learner(model, algo, cfg)
    batch = collate(rows, gamma=getattr(cfg, "gamma", 1.0), bos=BOS, bootstraps=algo.BOOTSTRAPS).to(
        "cpu", torch.float64
    )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.5 * (1 + np.cos(np.pi * i / steps)) + 1e-6)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([loss.mean() for loss in learner(batch).values()]).sum().backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def probabilities(model: ILQLModel, arms: int, state: int = STATE) -> np.ndarray:
    """pi of each arm, (arms)."""
    logits = model.lm(torch.tensor([[state]])).logits[0, 0]
    return logits.softmax(-1)[ARM : ARM + arms].numpy()
