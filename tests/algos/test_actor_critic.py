"""The actor-critic near a prior: losses worked by hand, the optimum that is known, and what it needs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilql.algos import actor_critic
from ilql.data import collate
from ilql.learner import Learner
from ilql.trainer import train
from ilql.types import InputError
from tests.test_trainer import refused
from tests.tiny import config, dataset
from tests.toys import BOS, row, spoken, stats, table_model

LOG2 = math.log(2)


def hand() -> tuple[Any, Any]:
    """Three utterances, of 2, 1 and 1 tokens, and a token without a decision; the ratios to the prior are 2, 1/2 and
    100, and to the log's own 4, 1 and 1."""
    out = stats(
        q=[[3, 1, 2], [2, 0, 2]],
        q_target=[2, 1, 4],
        v=[1, 3, 1],
        v_next=[4, 9, 9],
        logp=[-1, -2, -1 - LOG2, -1, -9],
        prior_logp=[-1 - LOG2, -2, -1, -1 - math.log(100), -9],
        kl=[0.5, 0.25, 1, 2, 9],
    )
    batch = stats(reward=[1, 2, 2], discount=[0.5, 0, 0], behaviour=[-3 - 2 * LOG2, -1 - LOG2, -1])
    batch.owner, batch.m, batch.n = torch.tensor([0, 0, 1, 2]), 5, 3
    return out, batch


def losses(**options: Any) -> dict[str, Any]:
    found = actor_critic.loss(*hand(), actor_critic.Config(gamma=0.5, c=0.5, **options))
    return {name: pytest.approx(vector.tolist()) for name, vector in found.items()}


def test_losses_are_those_worked_by_hand():
    # y = 1 + .5 * 4 = 3 and, terminal, 2; u = 1, -2 and 3; log pi = -3, -1 - log 2 and -1
    assert losses() == {
        "q": [0 + 1, 1 + 4, 0],
        "v": [0.5, 2.0, 4.5],
        "actor": [2 * 1 * 3, 0.5 * -2 * (1 + LOG2), 10 * 3 * 1],  # the ratio of 100 counts as 10
        "kl": [0.5 * 0.75, 0.5 * 1, 0.5 * 2],
    }
    sampled = losses(kl="sampled")
    assert "kl" not in sampled
    weights = [2 * (1 - 0.5 * LOG2), 0.5 * (-2 + 0.5 * LOG2), 10 * (3 - 0.5 * math.log(100))]
    assert sampled["actor"] == [weights[0] * 3, weights[1] * (1 + LOG2), weights[2]]
    assert losses(ratio="logged")["actor"] == [4 * 3, -2 * (1 + LOG2), 3]
    assert losses(ratio="none")["actor"] == [3, -2 * (1 + LOG2), 3]


@pytest.mark.parametrize("kl", ["exact", "sampled"])
def test_weights_are_constants(kl):
    out, batch = hand()
    for name in ("logp", "v", "q_target", "kl"):
        getattr(out, name).requires_grad_()
    found = actor_critic.loss(out, batch, actor_critic.Config(gamma=0.5, c=0.5, kl=kl))
    found["actor"].sum().backward()
    weights = {
        "exact": [2, -1, 30],
        "sampled": [2 * (1 - 0.5 * LOG2), 0.5 * (-2 + 0.5 * LOG2), 10 * (3 - 0.5 * math.log(100))],
    }[kl]
    assert out.logp.grad.tolist() == pytest.approx([-weights[0]] * 2 + [-weights[1], -weights[2], 0])
    assert out.v.grad is None
    assert out.q_target.grad is None


def near(kl: str, ratio: str, steps: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """pi over three utterances of a word each, learned from logs that hold them as often as the prior would say them;
    and p exp(r / c) / Z."""
    reward, prior, c = np.array([1.0, 0.0, 0.5]), np.array([0.5, 0.25, 0.25]), 0.5
    torch.manual_seed(0)
    model = table_model(6, critic="scalar", prior=True)
    with torch.no_grad():
        model.lm.out.weight.fill_(-40.0)
        model.lm.out.weight[2:5, 1] = torch.tensor(prior).log()
    model.begin_actors()
    rows = [
        spoken(row([BOS, 1, 2 + a], [2], [3], [reward[a]], name=f"{a}{k}")) | {"logp": np.log(prior[a : a + 1])}
        for a, count in enumerate((2, 1, 1))
        for k in range(count)
    ]
    batch = collate(rows, gamma=1.0, bos=BOS).to("cpu", torch.float64)
    cfg = actor_critic.Config(c=c, kl=kl, ratio=ratio, polyak=0.2)  # type: ignore[arg-type]
    learner = Learner(model, actor_critic, cfg)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        sum(loss.mean() for loss in learner(batch).values()).backward()
        optimizer.step()
        model.update_targets(cfg.polyak)
    pi = model.lm.out.weight.detach()[2:5, 1].softmax(0).numpy()
    best = prior * np.exp(reward / c)
    return pi, best / best.sum()


@pytest.mark.slow
@pytest.mark.parametrize(("kl", "ratio"), [("exact", "prior"), ("sampled", "logged")])
def test_it_finds_the_best_policy_near_the_prior(kl, ratio):
    pi, best = near(kl, ratio)
    np.testing.assert_allclose(pi, best, atol=5e-3)


@pytest.mark.slow
def test_without_the_ratio_what_is_worse_than_the_mean_is_never_said():
    pi, best = near("exact", "none")
    assert pi[1] < best[1] / 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("actor_critic")
    data = dataset(folder / "data", step="utterance", logp=None)
    return data, train(config(data, folder / "bc", "bc", steps=2))


def test_what_it_needs_is_named(place, tmp_path):
    data, run = place
    with pytest.raises(InputError, match=r"actor_critic stays near a prior.*set init_from to a run"):
        config(data, tmp_path / "run", "actor_critic")
    cfg = config(data, tmp_path / "run", "actor_critic", init_from=str(run), actor_critic={"ratio": "logged"})
    refused(cfg, r"let a run score them: python -m ilql\.annotate logprobs")
    with pytest.raises(InputError, match=r"actor_critic\.limit is 1\.0, but must be above 1"):
        actor_critic.Config(limit=1.0)
    assert (train(config(data, tmp_path / "run", "actor_critic", init_from=str(run))) / "model").is_dir()
