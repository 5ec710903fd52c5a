"""The decision transformer from data to answers: what training reads is what decoding asks for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ilql import decode, ope
from ilql.algos import dt
from ilql.feed import read
from ilql.rows import Rows
from ilql.trainer import train
from ilql.types import InputError, Turn
from tests import tiny
from tests.toys import stats


def test_the_loss_is_that_of_cloning():
    out = stats(logp=[-1, -0.5, -2])
    assert dt.loss(out, None, dt.Config())["bc"].tolist() == [1, 0.5, 2]
    with pytest.raises(InputError, match=r"dt\.digits is 0"):
        dt.Config(digits=0)


def test_the_models_config_knows_the_range_of_the_returns():
    assert dt.fields(np.array([1.0, -3.0, 2.5]), dt.Config(digits=3)) == {
        "control": {"digits": 3, "low": -3.0, "high": 2.5}
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("dt") / "data")


@pytest.fixture(scope="module")
def run(data):
    options = {"model": {"context": 128}, "log": {"validate_every": 2}, "steps": 2}
    return train(tiny.config(data, data.parent / "run", "dt", **options))


def test_training_reads_the_return_before_every_turn(data, tmp_path):
    options = {"model": {"context": 128}, "log": {"validate_every": 2}, "batch": {"dialogues": 3}}
    feed = read(tiny.config(data, tmp_path / "run", "dt", **options))
    stored = Rows(data)
    encoder = feed.encoder
    for i in range(len(stored)):
        said = encoder.tokenizer.decode(feed.rows[i]["tokens"].tolist())
        turns = ope.agent_turns(stored[i])
        to_go = np.cumsum(stored[i]["reward"][::-1])[::-1][turns]
        assert [float(part.split("<")[0]) for part in said.split("return ")[1:]] == to_go.tolist()
    assert feed.rows.lengths.tolist() == [len(feed.rows[i]["tokens"]) for i in range(len(stored))]
    assert feed.longest >= feed.rows.lengths.max() > stored.lengths.max()
    assert any("return" in encoder.tokenizer.decode(b.tokens.tolist()) for b in feed.validation)
    batch = feed.collate([feed.rows[0]])
    want = stored[0]
    assert (
        batch.tokens[batch.target].tolist()
        == np.concatenate([want["tokens"][s:e] for s, e in zip(want["start"], want["end"], strict=True)]).tolist()
    ), "the agent's words are learned, and not what it is told"


def test_decoding_tells_what_is_left_of_the_target(run):
    model, encoder = decode.load(run)
    low, high = model.config.control["low"], model.config.control["high"]
    returns = Rows(run.parent / "data").returns
    assert (low, high) == (returns.min(), returns.max())
    turns = [Turn("user", "hi"), Turn("assistant", "a", reward=0.5), Turn("user", "ok")]

    def told(**options):
        prompt = decode.LMPolicy(model, encoder, **options).prompt(turns)
        return [float(x.split("<")[0]) for x in encoder.tokenizer.decode(prompt).split("return ")[1:]]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told() == [high, high - 0.5]
        assert told(target_return=low) == [low, low - 0.5]
    with pytest.warns(UserWarning, match=f"reach from {low:g} to {high:g}"):
        assert told(target_return=high + 5) == [high + 5, high + 4.5]
    with pytest.raises(InputError, match="finite"):
        decode.LMPolicy(model, encoder, target_return=float("nan"))
    assert isinstance(decode.LMPolicy(model, encoder, max_new_tokens=3).respond([turns])[0], str)


def test_another_algorithm_is_told_no_return(data, tmp_path):
    model, encoder = decode.load(train(tiny.config(data, tmp_path / "run", "bc", steps=1)))
    assert decode.LMPolicy(model, encoder).target is None
    with pytest.raises(InputError, match="bc is told no return"):
        decode.LMPolicy(model, encoder, target_return=1.0)


def test_scores_and_reports_read_rows_as_training_did(run, data):
    model, encoder = decode.load(run, dtype=torch.float64)
    turns = [Turn("user", "hi"), Turn("assistant", "bb", reward=0.5)]
    got = decode.score(model, turns, encoder)
    prompt = decode.LMPolicy(model, encoder, target_return=0.5).prompt(turns[:1])
    tokens = [*prompt, *encoder.encode(decode.Episode("d", turns), "token")["tokens"][-3:]]
    logp = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    want = [logp[k - 1, tokens[k]].item() for k in range(len(prompt), len(tokens))]
    assert [t.logp for t in got] == pytest.approx(want, rel=1e-6)
    assert got[0].position == len(prompt)
    text = ope.report(run, [data], "validation", [0.0], [0.0], None)
    assert "6 dialogues" in text


def test_a_cache_of_other_rows_is_refused(data, tmp_path):
    both = {"path": str(data), "cache": str(tmp_path / "cache")}
    cfg = tiny.config(
        both, tmp_path / "run", "dt", model={"freeze": "trunk"}, batch={"dialogues": None, "decisions": 8}
    )
    with pytest.raises(InputError, match=r"data\.cache holds rows as they are stored, and dt reads others"):
        read(cfg)
