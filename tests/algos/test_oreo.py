"""OREO: its losses worked by hand, and the soft optimum of a bandit and of a tree, from logs of another policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ilql.algos import oreo
from ilql.config import make_config
from ilql.feed import read
from ilql.losses import oreo_policy, soft_return
from ilql.types import InputError
from tests.bandits import ARM, STATE, log, probabilities, solve
from tests.test_trainer import refused
from tests.tiny import config, dataset
from tests.toys import BOS, model_fields, row, stats, table_model

F64 = torch.float64


def hand():
    # dialogues of 3 actions, terminated, and of 1 and 2, cut off; 1, 2, 1, 1, 1 and 1 tokens, one without a decision
    out = stats(
        logp=[-1, -1, -2, -1, -4, -2, -1, -9],
        prior_logp=[-2, -2, -3, 1, -2, -2, -3, -9],
        v=[1, 2, 0, 1, 3, 0.5],
        v_next=[7, 7, 7, 2, 7, -4],
        kl=[1, 2, 3, 4, 5, 6, 7, 8],
    )
    batch = stats(reward=[0, 1, 2, -1, 0, 3], discount=[0.5, 0.5, 0, 0.5, 0.5, 0.5], behaviour=[-2, -5, 1, -2, -2, -3])
    batch.owner, batch.n = torch.tensor([0, 1, 1, 2, 3, 4, 5]), 6
    batch.first = torch.tensor([True, False, False, True, True, False])
    return out, batch


def test_losses_are_those_worked_by_hand():
    # D = .5 * (1, 2, -2, -2, 0, 2); r - D = -.5, 0, 3, 0, 0, 2
    soft = [-0.5 + 0.5 * 1.5, 0 + 0.5 * 3, 3, 0 + 0.5 * 2, 0.5 * 0, 2 - 0.5 * 4]
    want = [(v - s) ** 2 for v, s in zip([1, 2, 0, 1, 3, 0.5], soft, strict=True)]
    for reference in ("prior", "log"):
        got = oreo.loss(*hand(), oreo.Config(gamma=0.5, beta=0.5, reference=reference, kl_weight=0.1))
        assert {k: v.tolist() for k, v in got.items()} == {
            "v": pytest.approx(want),
            "actor": pytest.approx(want),
            "kl": pytest.approx([0.1, 0.5, 0.4, 0.5, 0.6, 0.7]),
        }
    assert oreo.loss(*hand(), oreo.Config(gamma=0.5)).keys() == {"v", "actor"}


def test_each_loss_moves_its_own_part_of_the_residual():
    out, batch = hand()
    for name in ("logp", "v", "v_next", "prior_logp"):
        getattr(out, name).requires_grad_()
    got = oreo.loss(out, batch, oreo.Config(gamma=0.5, beta=0.5))
    got["actor"].sum().backward(retain_graph=True)
    residual = [1 - 0.25, 2 - 1.5, -3, 0, 3, 0.5]
    each = [2 * 0.5 * r for r in residual]
    assert out.logp.grad.tolist() == pytest.approx([each[0], each[1], *each[1:], 0])
    assert out.v.grad is None
    got["v"].sum().backward()
    assert out.v.grad.tolist() == pytest.approx([2 * r for r in residual])
    assert out.logp.grad.tolist() == pytest.approx([each[0], each[1], *each[1:], 0]), "V's loss leaves the actor alone"
    assert out.v_next.grad is None


def test_the_soft_return_is_that_of_each_dialogue():
    rng = np.random.default_rng(0)
    lengths = [3, 1, 7, 2, 1]
    reward, v_next = (torch.from_numpy(rng.normal(size=sum(lengths))) for _ in range(2))
    discount, first, want = torch.full((sum(lengths),), 0.9, dtype=F64), torch.zeros(sum(lengths)).bool(), []
    begin = 0
    for k, n in enumerate(lengths):
        first[begin] = True
        if k % 2:
            discount[begin + n - 1] = 0
            v_next[begin + n - 1] = torch.nan
        total, part = 0.0, []
        for i in range(begin + n - 1, begin - 1, -1):
            after = total if i < begin + n - 1 else 0.0 if k % 2 else v_next[i].item()
            total = reward[i].item() + 0.9 * after
            part.append(total)
        want += part[::-1]
        begin += n
    assert oreo.level(np.array([1.0, 2, 6]), oreo.Config()) == 3
    assert soft_return(reward, discount, v_next, first).tolist() == pytest.approx(want)
    assert oreo_policy(torch.ones(1), torch.zeros(1), torch.full((1,), 5.0)).item() == 1


MU, REWARD, REFERENCE = np.array([0.7, 0.2, 0.1]), np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.3, 0.2])


def begun(cfg: oreo.Config, states: dict[int, np.ndarray]):
    """A table whose actor and prior are the reference at each state, over the arms alone."""
    model = table_model(max(states) + 1 if max(states) > ARM + 2 else ARM + 3, **model_fields(oreo, cfg))
    with torch.no_grad():
        for lm in [model.lm] if model.prior is None else [model.lm, model.prior]:
            for state, reference in states.items():
                lm.out.weight[:, state] = -1e2
                lm.out.weight[ARM : ARM + len(reference), state] = torch.from_numpy(np.log(reference))
    return model


@pytest.mark.parametrize("reference", ["prior", "log"])
def test_the_soft_optimum_of_a_bandit_whatever_policy_wrote_the_log(reference):
    """pi in proportion to ref exp(r / beta), and V = beta log sum ref exp(r / beta)."""
    cfg = oreo.Config(beta=0.8, reference=reference)
    rows = log(MU, REWARD, logp=np.log(REFERENCE))
    model = solve(rows, oreo, cfg, steps=800, model=begun(cfg, {STATE: REFERENCE}))
    weight = REFERENCE * np.exp(REWARD / 0.8)
    np.testing.assert_allclose(probabilities(model, 3), weight / weight.sum(), atol=2e-3)
    assert model.v(torch.eye(5, dtype=F64)[[STATE]]).item() == pytest.approx(0.8 * np.log(weight.sum()), abs=0.02)


def test_the_soft_optimum_of_a_tree():
    """Two actions at the root, whose first pays nothing and leads to a second choice; rewards at the leaves."""
    beta, half = 0.5, np.array([0.5, 0.5])
    cfg = oreo.Config(beta=beta)
    second, leaves = 5, {(0, 0): 2.0, (0, 1): -1.0, (1,): 1.0}
    rows = []
    for path, reward in leaves.items():
        tokens, start = [BOS, STATE, ARM + path[0]], [2]
        if len(path) == 2:
            tokens, start = [*tokens, second, ARM + path[1]], [2, 4]
        paid = [0.0] * (len(path) - 1) + [reward]
        rows += [row(tokens, start, [s + 1 for s in start], paid)] * (3 if path == (0, 1) else 1)
    model = solve(rows, oreo, cfg, steps=800, model=begun(cfg, {STATE: half, second: half}))
    below = beta * np.log((half * np.exp(np.array([2.0, -1.0]) / beta)).sum())
    for state, q in ((second, np.array([2.0, -1.0])), (STATE, np.array([below, 1.0]))):
        want = half * np.exp(q / beta)
        np.testing.assert_allclose(probabilities(model, 2, state), want / want.sum(), atol=5e-3)


def test_it_asks_for_what_its_reference_is(tmp_path: Path):
    bare = dataset(tmp_path / "bare", logp=None)
    with pytest.raises(InputError, match="set init_from to a run"):
        make_config(algo="oreo", data=bare, output=tmp_path / "run", steps=1)
    refused(
        config(bare, tmp_path / "run", "oreo", oreo={"reference": "log"}),
        rf"python -m ilql\.annotate logprobs RUN {bare}$",
    )
    read(config(dataset(tmp_path / "data"), tmp_path / "run", "oreo", oreo={"reference": "log"}))
    with pytest.raises(InputError, match="set init_from to a run"):
        config(bare, tmp_path / "run", "oreo", oreo={"reference": "log", "kl_weight": 0.1})
    with pytest.raises(InputError, match=r"oreo\.beta is 0\.0, but must be above 0"):
        oreo.Config(beta=0.0)
