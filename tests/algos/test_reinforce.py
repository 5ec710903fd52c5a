"""REINFORCE on logs: its losses worked by hand, what each baseline is, and where it ends on a bandit's fixed log."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ilql.algos import reinforce
from ilql.config import make_config
from ilql.data import returns
from ilql.decode import load
from ilql.feed import read
from ilql.initial import make_model
from ilql.ope import losses
from ilql.rows import Rows
from ilql.trainer import train
from ilql.types import InputError
from tests.bandits import log, probabilities, solve
from tests.test_trainer import refused
from tests.tiny import config, dataset
from tests.toys import stats, tiny


def hand(**config_of_the_model):
    # three actions of 2, 1 and 1 tokens; G = 3, 1 and -2
    out = stats(logp=[-1, -2, -0.5, -4], v=[1, 1, 1])
    out.model = SimpleNamespace(config=SimpleNamespace(reward_scale=0.5, **config_of_the_model))
    batch = stats(ret=[3, 1, -2])
    batch.owner, batch.n = torch.tensor([0, 0, 1, 2]), 3
    return out, batch


def test_losses_are_those_worked_by_hand():
    out, batch = hand()
    got = reinforce.loss(out, batch, reinforce.Config())
    assert {k: v.tolist() for k, v in got.items()} == {"actor": [6, 0, -12], "v": [4, 0, 9]}
    out, batch = hand(baseline=4.0)  # in the log's units: 2 in those of scaled rewards
    got = reinforce.loss(out, batch, reinforce.Config(baseline="mean"))
    assert {k: v.tolist() for k, v in got.items()} == {"actor": [3, -0.5, -16]}
    out, batch = hand(baseline=0.0)
    assert reinforce.loss(out, batch, reinforce.Config(baseline=0.0))["actor"].tolist() == [9, 0.5, -8]


def test_the_advantage_is_a_constant():
    out, batch = hand()
    out.logp.requires_grad_()
    out.v.requires_grad_()
    got = reinforce.loss(out, batch, reinforce.Config())
    got["actor"].sum().backward()
    assert out.logp.grad.tolist() == [-2, -2, 0, 3]
    assert out.v.grad is None
    assert out.token_weight.tolist() == [2, 2, 0, -3]


@pytest.mark.parametrize(
    ("baseline", "want"), [("value", 2.0), ("mean", 2.0), (1.5, 1.5)], ids=["value", "mean", "number"]
)
def test_the_level_of_a_baseline(baseline, want):
    assert reinforce.level(np.array([1.0, 2.0, 3.0]), reinforce.Config(baseline=baseline)) == want


def test_bad_options_are_named():
    with pytest.raises(InputError, match=r"reinforce\.baseline is inf, but must be a finite number"):
        reinforce.Config(baseline=float("inf"))
    with pytest.raises(InputError, match=r"reinforce\.gamma is 1\.1"):
        reinforce.Config(gamma=1.1)
    with pytest.raises(InputError, match=r"option 'reinforce\.baseline'"):
        make_config(algo="reinforce", data="d", output="o", steps=1, reinforce={"baseline": "median"})


@pytest.mark.parametrize("step", ["token", "utterance"])
def test_the_mean_is_that_of_the_training_dialogues(step: str, tmp_path: Path):
    data = dataset(tmp_path / "data", step=step)
    run = train(
        config({"path": str(data), "reward_scale": 0.5}, tmp_path / "run", "reinforce", reinforce={"baseline": "mean"})
    )
    model, encoder = load(run)
    rows = Rows(data)
    to_go = [
        sum(0.99**k * r for k, r in enumerate(row["reward"][i:])) for row in rows for i in range(len(row["reward"]))
    ]
    assert model.config.baseline == pytest.approx(np.mean(to_go))
    assert model.v is None
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0]).keys() >= {"actor", "total"}
    assert losses(run, model, encoder.bos_id, step, [rows[i] for i in range(5)]).keys() == {"actor"}


def test_v_is_the_baseline_by_default_and_there_is_no_q(tmp_path: Path):
    data = dataset(tmp_path / "data")
    run = train(config(data, tmp_path / "run", "reinforce", log={"validate_every": 2}))
    model, _ = load(run)
    assert model.v is not None
    assert len(model.q) == len(model.q_target) == 0
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row.keys() >= {"actor", "v", "validation/actor", "validation/v"}
    with pytest.raises(InputError, match="use beta 0"):
        model.check_beta(1.0)
    refused(
        config(data, tmp_path / "average", "reinforce", model={"target_trunk": "average"}),
        r"model\.target_trunk is about target critics, which reinforce has not",
    )
    cfg = config({"path": str(data), "reward_scale": 0.5}, tmp_path / "other", "reinforce")
    fresh = make_model(cfg, read(cfg))
    to_go = np.concatenate([returns(row["reward"], 0.99) for row in Rows(data)])
    assert fresh.v.out.bias.item() == pytest.approx(0.5 * to_go.mean()), "V begins at the mean"
    assert tiny(critic="value").config.critics == 0


def test_without_weights_the_logs_habits_stay():
    """Rewards above 0 and no baseline: the optimum on a fixed log is pi in proportion to mu r and not the best arm."""
    mu, reward = np.array([0.7, 0.2, 0.1]), np.array([1.0, 2.0, 3.0])
    want = mu * reward / (mu * reward).sum()
    got = probabilities(solve(log(mu, reward), reinforce, reinforce.Config(gamma=1.0, baseline=0.0)), len(mu))
    np.testing.assert_allclose(got, want, atol=1e-3)
    assert got.argmax() == 0, "the best arm is the last"
