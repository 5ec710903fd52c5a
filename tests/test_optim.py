"""The learning rate by hand, and which weights decay."""

import pytest
import torch
from torch import nn

from ilql.optim import OptimConfig, adamw, learning_rate
from ilql.types import InputError


def test_warm_up_and_cosine_by_hand() -> None:
    cfg = OptimConfig(lr=1.0, warmup=2, final_lr_ratio=0.1)
    rates = [learning_rate(cfg, step, 7) for step in range(7)]
    # From step 2 to step 6 half a cosine from 1 to .1; .55 in the middle.
    edge = 0.45 * 2**-0.5
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.55 + edge, 0.55, 0.55 - edge, 0.1])


def test_a_constant_rate_and_runs_shorter_than_the_warm_up() -> None:
    assert learning_rate(OptimConfig(lr=0.3, schedule="constant"), 5, 6) == 0.3
    assert [learning_rate(OptimConfig(lr=1.0, warmup=4), s, 2) for s in range(2)] == [0.25, 0.5]
    assert learning_rate(OptimConfig(lr=1.0), 0, 1) == 1.0


def test_only_matrices_decay_and_only_what_trains() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    model[2].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(OptimConfig(lr=0.1, weight_decay=0.5), dict(model.named_parameters()))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 0.95 if name == "0.weight" else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)
    with pytest.raises(InputError, match="no weight is left to train"):
        adamw(OptimConfig(), dict(model[2].named_parameters()))
