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

HOW = {"low": -2.0, "high": 3.0, "rest": "dummy", "support": 0.5}


def model_of(name, critics=2):
    """A model with the critics that a backup is for."""
    if name != "likelihood":
        return tiny(model={"critics": critics})
    model = tiny(model={"critics": critics}, critic="likelihood", likelihood=HOW)
    with torch.no_grad():  # an actor that finds some tokens unlikely, and ratios below 1
        model.get_output_embeddings().weight.mul_(20)
        for q in model.q_target:
            q.logits.out.bias.sub_(5)
    return model


def whole(model, h, name):
    """By the definition, over the whole table."""
    table = torch.stack([q(h) for q in model.q_target])  # (K, N, V)
    if name == "max":
        return table.min(0).values.max(-1).values
    pi = model.get_output_embeddings()(h).softmax(-1)
    ratio = (table.min(0).values + 2) / 5 / pi
    ratio[pi < 0.5 * pi.max(-1, keepdim=True).values] = 0
    return -2 + 5 * ratio.max(-1).values.clamp(max=1)


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("name", backups.BACKUPS)
@pytest.mark.parametrize("critics", [1, 2])
def test_a_backup_is_that_of_the_whole_table_however_it_is_cut(name, rows, critics, monkeypatch):
    model = model_of(name, critics)
    h = torch.randn(10, 16, dtype=torch.float64)
    want = whole(model, h, name)
    assert len(want.unique()) > 3
    seen = []
    model.q_target[0].register_forward_hook(lambda m, args, out: seen.append(len(out)))
    monkeypatch.setattr(heads, "CHUNK", rows * 23 * (critics + (name == "likelihood")) * 8)
    got = backups.value(model, h, name)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert max(seen) <= rows
    assert sum(seen) == 10
    assert not got.requires_grad


@pytest.mark.parametrize("name", backups.BACKUPS)
def test_no_next_state_is_no_value(name):
    assert backups.value(model_of(name), torch.zeros(0, 16, dtype=torch.float64), name).shape == (0,)


def test_a_value_rests_on_likely_tokens_only():
    """Without a support an unlikely token's ratio is the largest, and says nothing."""
    model = model_of("likelihood")
    h = torch.randn(10, 16, dtype=torch.float64)
    few = backups.value(model, h, "likelihood")
    model.config.likelihood = {**HOW, "support": 0.0}
    every = backups.value(model, h, "likelihood")
    assert (every >= few).all()
    assert (every > few).any()


def dialogues():
    rng = np.random.default_rng(0)
    return [chat_row(rng, 23, 2, terminated=i % 2 == 0, name=f"d{i}") for i in range(4)]


@pytest.mark.parametrize("name", backups.BACKUPS)
def test_the_next_state_is_read_once_and_never_behind_a_terminal_one(name):
    model = model_of(name)
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
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert not follows.all()
    assert sum(seen) == len(batch.where[batch.next[follows]].unique()) < batch.n / 2


def test_a_loss_that_reads_it_must_name_a_backup():
    batch = collate(dialogues(), gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    with pytest.raises(RuntimeError, match="names no BACKUP"):
        Out(tiny(), torch.zeros(1, 16), batch).q_next  # noqa: B018
    assert not hasattr(ilql, "BACKUP")
    Learner(tiny(), cql, cql.Config())(batch)
