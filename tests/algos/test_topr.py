"""Tapered off-policy REINFORCE: its loss worked by hand, its optimum on a fixed log, and that it stays bounded."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ilql.algos import topr
from ilql.decode import load
from ilql.losses import tapered_ratio
from ilql.rows import Rows
from ilql.trainer import train
from ilql.types import InputError
from tests.bandits import ARM, STATE, log, probabilities, solve
from tests.test_trainer import refused
from tests.tiny import config, dataset
from tests.toys import model_fields, stats, table_model

F64 = torch.float64


def hand(baseline: float = 0.0):
    # dialogues of 2, 2 and 1 actions that earned 3, -2 and -1; of 1, 1, 2, 1 and 1 tokens; log pi / mu = -1, 0.5, -0.75
    out = stats(logp=[-2, -2, -1, -0.5, -1, -2])
    out.model = SimpleNamespace(config=SimpleNamespace(reward_scale=0.5, baseline=baseline))
    batch = stats(ret=[3, 1, -2, 4, -1], behaviour=[-1, -2, -2, -1, -1.25])
    batch.owner, batch.n = torch.tensor([0, 1, 2, 2, 3, 4]), 5
    batch.first = torch.tensor([True, False, True, False, True])
    return out, batch


def test_losses_are_those_worked_by_hand():
    got = topr.loss(*hand(), topr.Config())["actor"]
    assert got.tolist() == pytest.approx([3 * 2, 3 * 2, -2 * 1.5, -2 * 1, -math.exp(-0.75) * 2])
    got = topr.loss(*hand(), topr.Config(positive=(0.0, 0.25), negative=(0.5, 1.5)))["actor"]
    assert got.tolist() == pytest.approx([0.25 * 6, 0.25 * 6, -1.5 * 3, -1.5 * 2, -0.5 * 2])
    got = topr.loss(*hand(baseline=-4.0), topr.Config())["actor"]  # A = 5, 0 and 1
    assert got.tolist() == pytest.approx([10, 10, 0, 0, 2])
    got = topr.loss(*hand(), topr.Config(negative=(0.0, 0.0)))["actor"]
    assert got.tolist() == [6, 6, 0, 0, 0]


def test_the_ratio_is_a_constant_and_does_not_overflow():
    out, batch = hand()
    out.logp.requires_grad_()
    topr.loss(out, batch, topr.Config())["actor"].sum().backward()
    assert out.logp.grad.tolist() == pytest.approx([-3, -3, 2, 2, 2, math.exp(-0.75)])
    wild = tapered_ratio(torch.tensor([-1.0, -900]), torch.tensor([-900.0, -1]), torch.tensor([-1.0, -1]))
    assert wild.tolist() == [1, 0]
    assert tapered_ratio(torch.tensor([-1.0]), torch.tensor([-900.0]), torch.tensor([0.0]), (0.0, 8.0)).item() == 8


MU, REWARD = np.array([0.4, 0.3, 0.2, 0.1]), np.array([1.0, -1.0, 3.0, -4.0])


def test_the_optimum_shares_out_among_the_good_and_forgets_the_bad():
    got = probabilities(solve(log(MU, REWARD), topr, topr.Config(baseline=0.0), steps=1000), len(MU))
    np.testing.assert_allclose(got, [0.4, 0, 0.6, 0], atol=3e-3)  # in proportion to mu r


def test_what_is_all_but_forgotten_is_left_alone():
    """The slope in the logit of a bad arm at pi = mu e^-12; without a taper it is that of the log for ever."""

    def slope(**options) -> float:
        cfg = topr.Config(baseline=0.0, **options)
        model = table_model(6, **model_fields(topr, cfg))
        with torch.no_grad():
            model.lm.out.weight[:, STATE] = torch.log(torch.tensor([1e-12, 1e-12, *MU]))
            model.lm.out.weight[ARM + 3, STATE] -= 12
        before = model.lm.out.weight[ARM + 3, STATE].item()
        solve(log(MU, REWARD), topr, cfg, steps=1, rate=1e-3, model=model)
        return model.lm.out.weight.grad[ARM + 3, STATE].item() if before else 0.0

    assert 0 <= slope() < 1e-4
    assert slope(negative=(1.0, 1.0)) == pytest.approx(0.1 * 4, rel=1e-3)


def test_bad_options_are_named():
    with pytest.raises(InputError, match=r"topr\.negative is \[1\.0, 0\.5\], but must be two ascending numbers"):
        topr.Config(negative=(1.0, 0.5))
    with pytest.raises(InputError, match=r"topr\.positive is \[-1\.0, 0\.5\]"):
        topr.Config(positive=(-1.0, 0.5))
    with pytest.raises(InputError, match=r"topr\.baseline is nan"):
        topr.Config(baseline=math.nan)


def test_the_mean_is_that_of_whole_dialogues_and_the_log_has_to_say_how_likely_it_was(tmp_path: Path):
    data = dataset(tmp_path / "data", step="utterance")
    run = train(config({"path": str(data), "reward_scale": 0.5}, tmp_path / "run", "topr", topr={"negative": [0, 0.5]}))
    model, _ = load(run)
    assert model.config.baseline == pytest.approx(np.mean([row["reward"].sum() for row in Rows(data)]))
    bare = dataset(tmp_path / "bare", logp=None)
    refused(config(bare, tmp_path / "other", "topr"), rf"python -m ilql\.annotate logprobs RUN {bare}$")
    options = {"data": {"path": str(data), "cache": "c"}, "model": {"freeze": "trunk"}, "batch": {"dialogues": None}}
    with pytest.raises(InputError, match="topr reads whole dialogues here"):
        config(options.pop("data"), tmp_path / "cached", "topr", **options)
