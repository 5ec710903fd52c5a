"""The weight of a dialogue's closing turn in behaviour cloning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ilql.algos import bc, dt, filtered_bc
from ilql.config import make_config
from ilql.data import collate
from ilql.learner import Learner
from ilql.types import InputError
from tests.toys import BOS, chat_row, stats, tiny


def test_the_closing_tokens_weigh_more_and_the_first_of_their_turn_does_not():
    batch = stats(closing=[0, 0, 1, 1])
    losses = bc.loss(stats(logp=[-1, -0.5, -2, -0.25]), batch, bc.Config(closing=4.0))
    assert losses["bc"].tolist() == [1, 0.5, 8, 1]
    assert bc.loss(stats(logp=[-1, -0.5]), batch, bc.Config())["bc"].tolist() == [1, 0.5]


@pytest.mark.parametrize("algo", [bc, filtered_bc, dt])
def test_the_gradient_is_that_of_the_weighted_sum(algo):
    rng = np.random.default_rng(0)
    rows = [chat_row(rng, 23, 2, name=f"d{i}") for i in range(3)]
    batch = collate(rows, gamma=1.0, bos=BOS, bootstraps=False, acted=False).to("cpu", torch.float64)
    assert 0 < batch.closing.sum() < batch.m
    model = tiny()
    trained = list(model.lm.parameters())
    got = torch.autograd.grad(Learner(model, algo, algo.Config(closing=7.0))(batch)["bc"].sum(), trained)
    plain = Learner(model, algo, algo.Config())(batch)["bc"]
    want = torch.autograd.grad((plain * torch.where(batch.closing, 7.0, 1.0)).sum(), trained)
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("closing", "says"), [(0.0, "bc.closing is 0.0, but must be above 0"), (-1.0, "above 0")])
def test_a_weight_is_above_0(closing: float, says: str):
    with pytest.raises(InputError, match=says):
        bc.Config(closing=closing)


def test_a_cache_of_decisions_does_not_know_the_closing_turn(tmp_path: Path):
    options = {"algo": "bc", "output": tmp_path / "run", "steps": 1, "model": {"freeze": "trunk"}}
    data = {"path": ["d"], "cache": ["c"]}
    make_config(**options, data=data)
    with pytest.raises(InputError, match=r"bc\.closing needs dialogues"):
        make_config(**options, data=data, bc={"closing": 2.0})
