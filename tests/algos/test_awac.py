"""The advantage-weighted actor critic's losses worked by hand, and how its weights reach the actor's gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ilql import learner
from ilql.algos import awac
from ilql.data import collate
from ilql.learner import Learner, Out
from ilql.losses import awr_weight
from tests.toys import BOS, chat_row, stats, tiny


def test_losses_are_those_worked_by_hand():
    # y = 3, 0 and, terminal, 2; u = 1, -2 and 0; 2^u = 2 (clipped to 1.5), 1/4 and 1; the fourth token has no decision
    out = stats(
        q=[[3, 1, 1], [2, 0, 2]],
        q_target=[2, 1, 3],
        v=[1, 3, 3],
        v_next=[4, 2, 9],
        logp=[-1, -0.5, -2, -7],
    )
    batch = stats(reward=[1, -1, 2], discount=[0.5, 0.5, 0])
    batch.owner, batch.m = torch.tensor([0, 1, 2]), 4
    got = awac.loss(out, batch, awac.Config(gamma=0.5, tau=0.75, beta=math.log(2), clip=1.5))
    assert {k: v.tolist() for k, v in got.items()} == {
        "q": [1, 1, 1],
        "v": [0.75, 1.0, 0.0],  # .75 * 1 ; .25 * 4
        "actor": pytest.approx([1.5, 0.125, 2, 0]),
    }


def batch_of(rows):
    return collate(rows, gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)


def dialogues():
    rng = np.random.default_rng(0)
    rows = [chat_row(rng, 23, 2, terminated=i % 2 == 0, name=f"d{i}") for i in range(4)]
    cut = rows[1]  # cut off right after the agent's turn: its last token has no decision
    rows[1] = cut | {"tokens": cut["tokens"][: cut["end"][-1]]}
    return rows


def test_the_actor_learns_what_was_better_than_expected_and_nothing_of_the_critics():
    model, batch = tiny(), batch_of(dialogues())
    assert len(batch.owner) == batch.m - 1
    losses = Learner(model, awac, awac.Config(beta=2.0, clip=1.5))(batch)
    words = model.lm.get_output_embeddings().weight
    got = torch.autograd.grad(losses["actor"].sum(), [words, *model.v.parameters()], allow_unused=True)
    hidden = model.hidden(*batch.run)
    out = Out(model, hidden, batch)
    weight = awr_weight(out.q_target - out.v, 2.0, 1.5)
    assert ((weight == 1.5).any(), (weight < 1).any()) == (True, True)
    rows = batch.where[batch.target[: batch.n] - 1]
    logp = model.lm.get_output_embeddings()(hidden[rows]).log_softmax(-1)
    taken = logp.gather(1, batch.action[:, None]).squeeze(1)
    want = torch.autograd.grad(-(weight.detach() * taken).sum(), words)
    torch.testing.assert_close(got[0], want[0], rtol=1e-9, atol=1e-9)
    assert all(g is None for g in got[1:])


def test_the_weights_are_known_before_the_vocabularys_gradient_is_made(monkeypatch):
    """Twice the same dialogues: the places that both read have the sum of both weights as their share."""
    model, rows = tiny(), dialogues()
    batch = batch_of([*rows, *(r | {"id": "again"} for r in rows)])
    seen = []
    real = learner.taken_and_lse
    monkeypatch.setattr(learner, "taken_and_lse", lambda *args: (seen.append(args[4]), real(*args))[1])
    losses = Learner(model, awac, awac.Config(beta=2.0, clip=1.5))(batch)
    logp = Out(model, model.hidden(*batch.run), batch).logp
    weight = -losses["actor"] / logp
    place, spread = torch.unique(batch.where[batch.target - 1], return_inverse=True)
    assert len(place) == batch.m / 2
    torch.testing.assert_close(seen[0], torch.zeros(len(place)).double().index_add(0, spread, weight))
