"""A-LoL's losses worked by hand, and the data that it asks for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ilql import annotate, ope, warmstart
from ilql.algos import a_lol
from ilql.decode import load
from ilql.feed import read
from ilql.initial import make_model
from ilql.learner import Learner
from ilql.rows import Rows
from ilql.trainer import train
from ilql.types import InputError
from tests.test_trainer import refused
from tests.tiny import config, dataset
from tests.toys import stats


def hand():
    # y = 3, 0, 2 and, terminal, 2; u = 1, -2, 2 and 3; four utterances of 2, 1, 1 and 2 tokens, and one token without a
    # decision; pi / pi_ref = e^0.5 within bounds of e^-log 2 and 1.5, 1, e^9 and e^-9
    out = stats(
        q=[[3, 1, 1, 2], [2, 0, 2, 2]],
        q_target=[2, 1, 5, 4],
        v=[1, 3, 3, 1],
        v_next=[4, 2, 0, 9],
        logp=[-1, -2, -0.5, -1, -4, -6, -7],
    )
    batch = stats(reward=[1, -1, 2, 2], discount=[0.5, 0.5, 0.5, 0], behaviour=[-3.25, -0.5, -10, -1])
    batch.owner, batch.m = torch.tensor([0, 0, 1, 2, 3, 3]), 7
    return out, batch


def test_losses_are_those_worked_by_hand():
    out, batch = hand()
    got = a_lol.loss(out, batch, a_lol.Config(gamma=0.5, clip=0.5))
    assert {k: v.tolist() for k, v in got.items()} == {
        "q": [1, 1, 1, 0],
        "v": [0.5, 2, 2, 4.5],
        "actor": pytest.approx([1 * math.exp(0.25) * 3, 0, 2 * 1.5 * 1, 3 * 0.5 * 10]),
    }
    free = a_lol.loss(out, batch, a_lol.Config(gamma=0.5, ratio="none"))
    assert free["actor"].tolist() == [3, 0, 2, 30]


def test_weights_are_constants():
    out, batch = hand()
    for name in ("logp", "v", "q_target"):
        getattr(out, name).requires_grad_()
    a_lol.loss(out, batch, a_lol.Config(gamma=0.5, clip=0.5))["actor"].sum().backward()
    assert out.logp.grad.tolist() == pytest.approx([-math.exp(0.25)] * 2 + [0, -3] + [-1.5] * 2 + [0])
    assert out.v.grad is None
    assert out.q_target.grad is None


def test_options_out_of_range_are_named():
    with pytest.raises(InputError, match=r"a_lol\.clip is 1\.0, but must be in \[0, 1\)"):
        a_lol.Config(clip=1.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dataset without log-probabilities, and a run that can score it."""
    folder = tmp_path_factory.mktemp("a_lol")
    data = dataset(folder / "data", step="utterance", logp=None)
    return data, train(config(data, folder / "bc", "bc", steps=2))


def test_a_log_without_probabilities_is_refused_and_scored(place, tmp_path: Path):
    data, run = place
    refused(
        config(data, tmp_path / "run", "a_lol"),
        rf"lacks \d+ of \d+ in its train split; let a run score them: python -m ilql\.annotate logprobs RUN {data}$",
    )
    read(config(data, tmp_path / "run", "a_lol", a_lol={"ratio": "none"}))
    scored = annotate.logprobs(run, data, tmp_path / "scored")
    found = train(config(scored, tmp_path / "run", "a_lol", steps=2, init_from=str(run)))
    model, encoder = load(found)
    rows = Rows(scored)
    few = [rows[i] for i in range(5)]
    assert ope.losses(found, model, encoder.bos_id, "utterance", few).keys() >= {"q", "v", "actor"}
    bare = Rows(data)
    assert ope.losses(found, model, encoder.bos_id, "utterance", [bare[i] for i in range(5)]) == {}


def test_a_clone_that_trains_on_has_a_ratio_of_one(place, tmp_path: Path):
    """The first batch of a run that begins from its reference."""
    data, run = place
    scored = annotate.logprobs(run, data, tmp_path / "scored")
    cfg = config(scored, tmp_path / "run", "a_lol", init_from=str(run))
    feed = read(cfg)
    model = make_model(cfg, feed)
    warmstart.load(model, run)
    batch = feed.collate([feed.rows[i] for i in range(8)]).to("cpu", torch.float64)
    learner = Learner(model.eval(), a_lol, cfg.hyper)
    with torch.no_grad():
        learner(batch)
        logp = learner.take().logp[: len(batch.owner)]
    assert torch.zeros(batch.n).double().index_add(0, batch.owner, logp) == pytest.approx(batch.behaviour, abs=1e-5)
