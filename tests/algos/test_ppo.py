"""PPO on logs: its loss worked by hand, what its weights make unbiased and what not, and the optima of fixed logs."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from datasets_prep import door
from ilql.algos import ppo, reinforce
from ilql.config import make_config
from ilql.data import collate
from ilql.learner import Learner
from ilql.losses import importance_ratio, of_dialogue, ppo_clip
from ilql.model import ILQLModel
from ilql.types import InputError
from tests import pomdps
from tests.bandits import ARM, STATE, log, probabilities, solve
from tests.test_trainer import refused
from tests.tiny import config, dataset
from tests.toys import BOS, model_fields, row, stats, table_model

F64 = torch.float64


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_the_clipped_loss_is_that_worked_by_hand():
    ratio = torch.tensor([0.5, 0.5, 1.0, 1.5, 1.5], dtype=F64, requires_grad=True)
    advantage = torch.tensor([2.0, -2, 3, 2, -2], dtype=F64, requires_grad=True)
    got = ppo_clip(ratio, advantage, 0.25)
    assert got.tolist() == [-1, 1.5, -3, -2.5, 3]  # clip(.5) = .75, clip(1.5) = 1.25
    got.sum().backward()
    assert ratio.grad.tolist() == [-2, 0, -3, 0, 2], "nothing is learned beyond the clip, but from what got worse"
    assert advantage.grad is None
    assert ppo_clip(ratio, advantage, None).tolist() == [-1, 1, -3, -3, 3]


def test_a_ratio_that_overflows_is_its_limit_and_still_teaches():
    change = torch.tensor([0.0, math.log(3), 5e3, -5e3], dtype=F64, requires_grad=True)
    ratio = importance_ratio(change - 0.5, torch.full((4,), -0.5, dtype=F64), 8.0)
    assert ratio.tolist() == pytest.approx([1, 3, 8, 0])
    ratio.sum().backward()
    assert change.grad.tolist() == pytest.approx([1, 3, 8, 0])
    narrow = importance_ratio(torch.tensor([-1.0]), torch.tensor([-201.0]), 1e4)
    assert narrow.tolist() == pytest.approx([1e4], rel=1e-5), "e^200 is no float32"


def test_the_ratio_of_a_dialogue_has_the_gradient_of_a_step():
    change = torch.tensor([0.5, -1, 2, 0.25, 1], dtype=F64, requires_grad=True)
    whole = of_dialogue(change, torch.tensor([True, False, False, True, False]))
    assert whole.tolist() == [1.5, 1.5, 1.5, 1.25, 1.25]
    (torch.arange(5) * whole).sum().backward()
    assert change.grad.tolist() == [0, 1, 2, 3, 4]


def hand():
    # three actions of 2, 1 and 1 tokens in two dialogues; rho = e^0.5, e^-1 and 1; A = 2, 0.5 and -3
    out = stats(logp=[-1, -2, -1.5, -4], v=[1, 0.5, 1])
    out.model = SimpleNamespace(config=SimpleNamespace(reward_scale=0.5, baseline=2.0))
    batch = stats(ret=[3, 1, -2], behaviour=[-3.5, -0.5, -4])
    batch.owner, batch.n, batch.first = torch.tensor([0, 0, 1, 2]), 3, torch.tensor([True, False, True])
    return out, batch


def test_losses_are_those_worked_by_hand():
    got = ppo.loss(*hand(), ppo.Config(clip=0.2))
    assert {k: v.tolist() for k, v in got.items()} == {
        "actor": pytest.approx([-1.2 * 2, -math.exp(-1) * 0.5, 3]),
        "v": [4, 0.25, 9],
    }
    got = ppo.loss(*hand(), ppo.Config(ratio="dialogue", clip=None, baseline="mean"))  # rho = e^-0.5, e^-0.5 and 1
    assert {k: v.tolist() for k, v in got.items()} == {
        "actor": pytest.approx([-math.exp(-0.5) * 2, 0, 3]),
    }
    out, batch = hand()
    out.kl = torch.tensor([0.5, 1, 2, 4], dtype=F64)
    assert ppo.loss(out, batch, ppo.Config(kl_weight=0.1))["kl"].tolist() == pytest.approx([0.15, 0.2, 0.4])
    got = ppo.loss(*hand(), ppo.Config(clip=None, limit=1.5))
    assert got["actor"].tolist() == pytest.approx([-1.5 * 2, -math.exp(-1) * 0.5, 3])


def test_bad_options_are_named():
    for options, what in (
        ({"clip": 1.0}, r"ppo\.clip is 1\.0, but must be above 0 and below 1, or null"),
        ({"limit": 1.0}, r"ppo\.limit is 1\.0, but must be above 1"),
        ({"limit": math.inf}, r"ppo\.limit is inf"),
        ({"baseline": math.nan}, r"ppo\.baseline is nan"),
        ({"gamma": -1.0}, r"ppo\.gamma is -1\.0"),
        ({"kl_weight": -1.0}, r"ppo\.kl_weight is -1\.0"),
    ):
        with pytest.raises(InputError, match=what):
            ppo.Config(**options)
    cached = {"data": {"path": "d", "cache": "c"}, "model": {"freeze": "trunk"}}
    make_config(algo="ppo", output="o", steps=1, **cached)
    with pytest.raises(InputError, match="reads whole dialogues here"):
        make_config(algo="ppo", output="o", steps=1, ppo={"ratio": "dialogue"}, **cached)


@pytest.mark.parametrize("step", ["token", "utterance"])
def test_a_log_without_probabilities_is_refused(step: str, tmp_path: Path):
    data = dataset(tmp_path / "data", step=step, logp=None)
    refused(
        config(data, tmp_path / "run", "ppo"),
        rf"ppo reads the log-probability of every action .* lacks \d+ of \d+ in its train split; let a run score them: "
        rf"python -m ilql\.annotate logprobs RUN {data}$",
    )


# ---- what is unbiased ------------------------------------------------------------------------------------------------

MU, PI, MEAN = np.array([0.8, 0.15, 0.05]), np.array([0.1, 0.3, 0.6]), np.array([0.2, 0.5, 1.0])


def draws(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Arms of a biased logging policy and what they paid, with noise."""
    rng = np.random.default_rng(7)
    arm = rng.choice(3, size, p=MU)
    return arm, MEAN[arm] + rng.normal(size=size)


def test_the_weighted_estimate_is_unbiased_within_its_interval():
    arm, reward = draws(20_000)
    logp, logged = (torch.from_numpy(np.log(each))[arm] for each in (PI, MU))
    each = (importance_ratio(logp, logged, 1e6) * torch.from_numpy(reward)).numpy()
    assert off(each, PI @ MEAN) < 3.3
    assert off(reward, PI @ MEAN) > 30, "the mean of the log is the worth of another policy"


def gradients(rows: list[dict], algo: Any, cfg: Any, model: ILQLModel, parts: int = 25) -> np.ndarray:
    """Of -E[loss] a dialogue, in the actor's logits of the arms at the one state, from each of equal parts of the log;
    (parts, arms)."""
    found = []
    for i in range(parts):
        part = rows[i::parts]
        batch = collate(part, gamma=1.0, bos=BOS, history=1, bootstraps=False).to("cpu", F64)
        losses = Learner(model, algo, cfg)(batch)
        grad = torch.autograd.grad(losses["actor"].sum() / len(part), model.lm.out.weight)[0]
        found.append(-grad[ARM:, STATE].numpy())
    return np.stack(found)


def off(each: np.ndarray, truth: np.ndarray | float) -> np.ndarray:
    """How many standard errors the mean of independent estimates is away from the truth."""
    return np.abs(each.mean(0) - truth) / (each.std(0, ddof=1) / math.sqrt(len(each)))


def test_the_weighted_gradient_is_that_of_the_policy_itself():
    """Against the gradient of sum pi r in logits, pi (r - sum pi r), by three arms and the noise of 2,000 draws."""
    arm, reward = draws(2000)
    cfg = ppo.Config(gamma=1.0, baseline=0.5, clip=None, limit=1e3)
    model = table_model(5, **model_fields(ppo, cfg))
    with torch.no_grad():
        model.lm.out.weight[ARM:, STATE] = torch.from_numpy(np.log(PI))
        model.lm.out.weight[:ARM, STATE] = -1e3
    rows = [
        row([BOS, STATE, ARM + a], [2], [3], [r]) | {"logp": np.array([math.log(MU[a])])}
        for a, r in zip(arm.tolist(), reward.tolist(), strict=True)
    ]
    want = PI * (MEAN - PI @ MEAN)
    assert (off(gradients(rows, ppo, cfg, model), want) < 3.5).all()
    plain = reinforce.Config(gamma=1.0, baseline=0.5)
    assert off(gradients(rows, reinforce, plain, model), want).max() > 10


def corridor_rows(count: int) -> list[dict]:
    """Visits to the aliased corridor by a fair coin, an utterance and its state being a token each."""
    rows = []
    for e in door.episodes([], seed=0, variant="corridor", dialogues=count, logp=True):
        said = [ARM + (turn.text == "go right\n") for turn in e.turns if turn.is_action]
        tokens = [BOS, *(t for a in said for t in (STATE, a))]
        start = list(range(2, len(tokens), 2))
        logp = np.array([turn.logp for turn in e.turns if turn.is_action])
        rows.append(row(tokens, start, [s + 1 for s in start], [-1.0] * len(said)) | {"logp": logp})
    return rows


def test_ratios_of_dialogues_are_exact_and_those_of_steps_are_not():
    """The slope of the corridor's worth in the logit of going right, at .65, from visits of a coin of .5."""
    world, p = pomdps.corridor(), 0.65
    logit = torch.tensor(math.log(p / (1 - p)), dtype=F64, requires_grad=True)
    worth = pomdps.memoryless(world, torch.stack([-logit / 2, logit / 2])[None].softmax(1))
    truth = torch.autograd.grad(worth, logit)[0].item()
    assert truth < -1, "beyond the best coin, .586"
    rows = corridor_rows(3000)

    def slopes(ratio: str) -> np.ndarray:
        cfg = ppo.Config(gamma=1.0, baseline=-12.0, ratio=ratio, clip=None, limit=1e6)
        model = table_model(4, **model_fields(ppo, cfg))
        with torch.no_grad():
            model.lm.out.weight[:, STATE] = torch.tensor([-1e3, -1e3, 0, logit.item()])
        return gradients(rows, ppo, cfg, model)[:, 1]

    assert off(slopes("dialogue"), truth) < 3.5
    steps = slopes("step")
    assert steps.mean() > 0 > truth, "by single steps right looks better still"
    assert off(steps, truth) > 5


# ---- what is learned -------------------------------------------------------------------------------------------------


def test_a_divergence_from_the_prior_keeps_some_of_every_arm():
    """The optimum of E[r] - w KL(pi || p) is pi in proportion to p exp(r / w)."""
    mu, reward, weight = np.array([0.7, 0.2, 0.1]), np.array([1.0, 2.0, 3.0]), 0.7
    cfg = ppo.Config(gamma=1.0, baseline=1.5, clip=None, kl_weight=weight)
    model = table_model(5, **model_fields(ppo, cfg))
    with torch.no_grad():
        for lm in (model.lm, model.prior):
            lm.out.weight[:, STATE] = torch.log(torch.tensor([1e-9, 1e-9, 0.3, 0.3, 0.4]))
    want = np.array([0.3, 0.3, 0.4]) * np.exp(reward / weight)
    got = probabilities(solve(log(mu, reward), ppo, cfg, model=model), 3)
    np.testing.assert_allclose(got, want / want.sum(), atol=2e-3)


def test_a_rare_arm_that_is_best_is_found():
    mu, reward = np.array([0.7, 0.25, 0.05]), np.array([1.0, 2.0, 3.0])
    begun = {"weight": torch.log(torch.tensor([1e-9, 1e-9, *mu]))}

    def clone(algo, cfg):
        model = table_model(5, **model_fields(algo, cfg))
        with torch.no_grad():
            model.lm.out.weight[:, STATE] = begun["weight"]
        return model

    cfg = ppo.Config(gamma=1.0, baseline=1.5, clip=None)
    found = probabilities(solve(log(mu, reward), ppo, cfg, model=clone(ppo, cfg)), 3)
    assert found[2] > 0.99
    cfg = ppo.Config(gamma=1.0, baseline=1.5, clip=0.2)
    ratio = probabilities(solve(log(mu, reward), ppo, cfg, model=clone(ppo, cfg)), 3) / mu
    assert ratio[0] <= 0.8 + 1e-6, "the clipped objective is at its largest beyond these three bounds, and flat"
    assert (ratio[1:] >= 1.2 - 1e-6).all()
    assert (ratio * mu).max() < 0.7, "so no arm becomes certain"
