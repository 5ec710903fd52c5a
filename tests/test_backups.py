"""Values of next states off the target critics: against whole tables, chunk by chunk, and only where they are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilql import backups, heads
from ilql.algos import cql, ilql
from ilql.data import collate
from ilql.learner import Learner, Out
from tests.toys import BOS, chat_row, tiny


def whole(model, h, name):
    """By the definition, over the whole table."""
    table = torch.stack([q(h) for q in model.q_target])  # (K, N, V)
    return {"max": table.min(0).values.max(-1).values}[name]


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("name", backups.BACKUPS)
@pytest.mark.parametrize("critics", [1, 2])
def test_a_backup_is_that_of_the_whole_table_however_it_is_cut(name, rows, critics, monkeypatch):
    model = tiny(model={"critics": critics})
    h = torch.randn(10, 16, dtype=torch.float64)
    want = whole(model, h, name)
    seen = []
    model.q_target[0].register_forward_hook(lambda m, args, out: seen.append(len(out)))
    monkeypatch.setattr(heads, "CHUNK", rows * 23 * critics * 8)
    got = backups.value(model, h, name)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert max(seen) <= rows
    assert sum(seen) == 10
    assert not got.requires_grad


@pytest.mark.parametrize("name", backups.BACKUPS)
def test_no_next_state_is_no_value(name):
    assert backups.value(tiny(), torch.zeros(0, 16, dtype=torch.float64), name).shape == (0,)


def dialogues():
    rng = np.random.default_rng(0)
    return [chat_row(rng, 23, 2, terminated=i % 2 == 0, name=f"d{i}") for i in range(4)]


@pytest.mark.parametrize("name", backups.BACKUPS)
def test_the_next_state_is_read_once_and_never_behind_a_terminal_one(name):
    model = tiny()
    rows = dialogues()
    rows = rows + [r | {"id": "again"} for r in rows]
    batch = collate(rows, gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    hidden = model.hidden(*batch.run)
    follows = batch.discount != 0
    want = torch.zeros(batch.n, dtype=torch.float64)
    want[follows] = whole(model, hidden[batch.where[batch.next[follows]]], name).detach()
    seen = []
    model.q_target[0].register_forward_hook(lambda m, args, out: seen.append(len(out)))
    got = Out(model, hidden, batch, name).q_next
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert not follows.all()
    assert sum(seen) == len(batch.where[batch.next[follows]].unique()) < batch.n / 2


def test_a_loss_that_reads_it_must_name_a_backup():
    batch = collate(dialogues(), gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    with pytest.raises(RuntimeError, match="names no BACKUP"):
        Out(tiny(), torch.zeros(1, 16), batch).q_next  # noqa: B018
    assert not hasattr(ilql, "BACKUP")
    Learner(tiny(), cql, cql.Config())(batch)
