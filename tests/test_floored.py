"""log-sum-exp with a floor: against the whole table in values and gradients, however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilql import floored, heads
from ilql.algos import cql
from ilql.data import collate
from ilql.floored import floored_lse
from ilql.learner import Learner, Out
from ilql.losses import cql as penalty
from tests.toys import BOS, chat_row, tiny


def inputs():
    z = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True)
    floor = torch.tensor([-torch.inf, 0.0, 1.0, -2.0, 100.0, -1.0, 0.5], dtype=torch.float64)
    return z, weight, bias, floor


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_it_is_that_of_the_whole_table_however_it_is_cut(rows, monkeypatch):
    z, weight, bias, floor = inputs()
    seen = []
    real = floored._part
    monkeypatch.setattr(floored, "_part", lambda *args: (seen.append(len(args[0])), real(*args))[1])
    monkeypatch.setattr(heads, "CHUNK", rows * 11 * 8)
    table = z @ weight.T + bias
    want = torch.maximum(table, floor[:, None]).logsumexp(1)
    got = floored_lse(z, weight, bias, floor)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    share = torch.randn(7, dtype=torch.float64)
    grads = [torch.autograd.grad((x * share).sum(), [z, weight, bias], retain_graph=True) for x in (got, want)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert max(seen) <= rows
    assert sum(seen) == 14, "every row forward, and again in backward"


def test_what_is_below_its_floor_is_not_pushed_down():
    q = torch.tensor([[3.0, 1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    eye = torch.eye(3, dtype=torch.float64)
    floored_lse(q, eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0]).double()).sum().backward()
    total = np.exp(3) + np.exp(1) + np.exp(0)
    assert q.grad[0].tolist() == pytest.approx([np.exp(3) / total, np.exp(1) / total, 0])


def test_a_learner_reads_the_floor_of_each_dialogue():
    """Two dialogues that begin alike and end with different returns, and one that was cut off."""
    rng = np.random.default_rng(0)
    first = chat_row(rng, 23, 2, name="a")
    rows = [first, first | {"id": "b", "reward": first["reward"] + 1}, chat_row(rng, 23, 2, terminated=False, name="c")]
    model = tiny()
    batch = collate(rows, gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    whole = torch.cat([torch.full((len(r["start"]),), bool(r["terminated"])) for r in rows])
    assert torch.equal(batch.floor, torch.where(whole, batch.ret, -torch.inf))
    out = Out(model, model.hidden(*batch.run), batch)
    table = torch.stack([q(out.hidden[batch.where[batch.state]]) for q in model.q])
    want = torch.maximum(table, batch.floor[:, None]).logsumexp(2)
    torch.testing.assert_close(out.q_lse_floored, want, rtol=1e-10, atol=1e-10)
    assert (want > table.logsumexp(2)).any()
    cfg = cql.Config(gamma=0.9, cql_weight=0.3, calibrated=True)
    got = Learner(model, cql, cfg)(batch)["cql"]
    taken = table.gather(2, batch.action.expand(2, -1)[..., None]).squeeze(2)
    torch.testing.assert_close(got, 0.3 * penalty(taken, want), rtol=1e-9, atol=1e-9)
