"""What is said of values is what they are: against plain sums over whole tables, in the log's units, however cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ilql import diagnostics, heads, packed
from ilql.algos import ALGOS, awac, bc, ilql, ilql_utterance
from ilql.data import Batch, collate
from ilql.learner import Learner, Out
from ilql.model import ILQLModel
from ilql.trainer import Run, train
from tests import tiny as runs
from tests.toys import AT_STEPS, BOS, at_step, chat_row, defaults, model_fields, tiny

SCALE = 0.5
ONLINE = {"mean_v", "std_v", "mean_q", "std_q", "mean_advantage", "twin_gap", "q_above_returns"}
ONLINE |= {"std_advantage"}


def batch_of(cut: bool = True, history: int | None = None, step: str = "token") -> Batch:
    rng = np.random.default_rng(0)
    rows = [chat_row(rng, 23, 3, name=f"d{i}", terminated=i != 2 or not cut) for i in range(5)]
    rows = at_step(rows, step)
    whole = {"acted": step == "utterance", "offered": step == "utterance"}
    made = collate(rows, gamma=0.9, bos=BOS, history=history, reward_scale=SCALE, **whole)
    return made.to("cpu", torch.float64)


def out_of(batch: Batch, algo=ilql, step: str = "token", **options) -> Out:
    cfg = defaults(algo, step)
    model = tiny(reward_scale=SCALE, **model_fields(algo, cfg, step), **options)
    learner = Learner(model, algo, cfg)
    learner(batch)
    return learner.take()


def test_the_numbers_of_a_row_are_those_of_its_decisions():
    batches = [batch_of(), batch_of(cut=False, history=1)]
    most = 0.02
    found, v, q, gap = [], [], [], []
    for batch in batches:
        out = out_of(batch)
        found.append([float(batch.n), *diagnostics.sums(out, most).tolist()])
        h = out.hidden[batch.where[batch.state]]
        each = torch.stack([head(h) for head in out.model.q]).gather(2, batch.action.expand(2, -1)[..., None])[..., 0]
        v.append(out.model.v(h).detach().numpy() / SCALE)
        q.append(each.detach().numpy().min(0) / SCALE)
        gap.append(np.abs(np.diff(each.detach().numpy(), axis=0))[0] / SCALE)
    row = diagnostics.metrics(np.sum(found, 0).tolist(), 2)
    v, q, gap = np.concatenate(v), np.concatenate(q), np.concatenate(gap)
    want = {"mean_v": v.mean(), "std_v": v.std(), "mean_q": q.mean(), "std_q": q.std(), "twin_gap": gap.mean()}
    want |= {"mean_advantage": (q - v).mean(), "q_above_returns": (q > most).mean()}
    want |= {"std_advantage": (q - v).std()}
    assert row == pytest.approx(want, rel=1e-9)
    assert row.keys() == ONLINE
    assert 0 < row["q_above_returns"] < 1


def test_a_policy_without_values_has_none():
    batch = batch_of()
    out = out_of(batch, bc)
    assert diagnostics.sums(out, np.inf).tolist() == []
    assert diagnostics.metrics([], 0) == {}
    assert diagnostics.columns(out) == {}
    assert diagnostics.judged({}) == {}


@pytest.mark.parametrize(
    ("name", "step"), [(name, step) for name, step in AT_STEPS if ALGOS[name].CRITIC not in (None, "value")]
)
def test_every_algorithm_with_critics_tells_of_its_values(name, step):
    batch = batch_of(step=step)
    out = out_of(batch, ALGOS[name], step)
    row = diagnostics.metrics([batch.n, *diagnostics.sums(out, 0.0).tolist()], 2)
    assert row.keys() == ONLINE
    told = diagnostics.judged(diagnostics.columns(out))
    assert told.keys() >= {"reliability_slope", "first_v", "advantage_p50"}
    assert ("seen_gap" in told) == (step == "token"), "what asks for the vocabulary is of tokens"


def test_columns_of_utterances_are_read_at_their_last_token():
    batch = batch_of(step="utterance")
    out = out_of(batch, ilql_utterance, "utterance")
    got = diagnostics.columns(out)
    known = torch.isfinite(batch.floor)
    with torch.no_grad():
        h = out.hidden[batch.where[batch.last]][known]
        q = torch.stack([head(h) for head in out.model.q_target]).amin(0)
        v = out.model.v(out.hidden[batch.where[batch.state]][known])
    want = {"q": q / SCALE, "v": v / SCALE, "ret": batch.ret[known] / SCALE, "first": batch.first[known]}
    assert got.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value.numpy(), rtol=1e-9, atol=1e-9, err_msg=key)


def test_padding_is_counted_where_a_trunk_pads(monkeypatch):
    batch = batch_of()
    laid, computed = len(batch.tokens), len(batch.run.tokens)
    assert diagnostics.shares(*diagnostics.work(tiny(), batch)) == {
        "padding": 0.0,
        "shared": pytest.approx(1 - computed / laid),
    }
    monkeypatch.setattr(packed, "supports", lambda trunk: False)
    lengths = [len(path) for path in diagnostics.paths(batch.run.segments)]
    padding = diagnostics.shares(*diagnostics.work(tiny(), batch))["padding"]
    assert padding == pytest.approx(1 - computed / (len(lengths) * max(lengths)))
    assert padding > 0.05
    assert diagnostics.shares(0, 0, 0) == {}


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_columns_are_those_of_whole_tables_however_they_are_cut(rows, monkeypatch):
    batch = batch_of()
    out = out_of(batch)
    seen = []
    out.model.q_target[0].register_forward_hook(lambda m, args, value: seen.append(len(value)))
    monkeypatch.setattr(heads, "CHUNK", rows * 23 * 8 * 4)
    with torch.no_grad():
        got = diagnostics.columns(out)
        known = torch.isfinite(batch.floor)
        h, action = out.hidden[batch.where[batch.state]][known], batch.action[known][:, None]
        table = torch.stack([q(h) for q in out.model.q_target]).amin(0)
        logp = out.model.get_output_embeddings()(h).log_softmax(-1)
        v = out.model.v(h)
    assert 0 < len(h) < batch.n, "a dialogue that was cut off does not tell its return"
    assert max(seen[:-1]) <= rows
    taken = table.gather(1, action).squeeze(1)
    seen_by_hand = torch.zeros_like(table).scatter(1, action, 1.0)
    others = (table * (1 - seen_by_hand)).sum(1) / 22
    want = {"q": taken / SCALE, "v": v / SCALE, "ret": batch.ret[known] / SCALE, "first": batch.first[known]}
    want |= {"token_q": taken / SCALE, "token_ret": batch.ret[known] / SCALE, "gap": (taken - others) / SCALE}
    want["logp"] = logp.gather(1, action).squeeze(1)
    for beta in (1.0, 4.0):
        policy = (logp + beta * (table - v[:, None])).log_softmax(-1)
        want[f"kl_{beta:g}"] = (policy.exp() * (policy - logp)).sum(1)
    assert got.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value.numpy(), rtol=1e-9, atol=1e-9, err_msg=key)
    assert got["first"].sum() == 4


def test_the_vocabulary_is_asked_of_a_sample_only(monkeypatch):
    monkeypatch.setattr(diagnostics, "SAMPLE", 7)
    got = diagnostics.columns(out_of(batch_of()))
    assert len(got["gap"]) == len(got["token_ret"]) == len(got["kl_4"]) == 7
    assert len(got["q"]) > 20
    ends = got["q"][[0, -1]]
    assert got["token_q"][[0, -1]] == pytest.approx(ends)


def test_a_policy_that_decodes_by_its_actor_leaves_nothing():
    got = diagnostics.columns(out_of(batch_of(), awac, scores="actor"))
    assert np.abs(got["kl_4"]).max() < 1e-12


def test_a_survey_reads_without_learning():
    model = tiny(reward_scale=SCALE)
    learner = Learner(model.train(), ilql, ilql.Config())
    batches = [batch_of(), batch_of(cut=False)]
    found = diagnostics.survey(learner, batches)
    assert learner.training
    assert found.n == sum(b.n for b in batches)
    assert found.m == sum(b.m for b in batches)
    parts = [out_of(b) for b in batches]
    want = sum(ilql.loss(out, b, ilql.Config())["v"].sum().item() for out, b in zip(parts, batches, strict=True))
    assert found.means({"bc"})["v"] == pytest.approx(want / found.n)
    assert len(found.columns["q"]) == sum(len(diagnostics.columns(out)["q"]) for out in parts)
    with pytest.raises(RuntimeError, match="no pass"):
        learner.take()


def columns() -> dict[str, np.ndarray]:
    q = np.arange(10.0)
    return {
        "q": q,
        "v": q - 1,
        "ret": 2 * q + 1,
        "first": np.arange(10) % 2 == 0,
        "token_q": q,
        "token_ret": 2 * q + 1,
        "logp": -q,
        "gap": np.full(10, 0.5),
        "kl_1": np.full(10, 0.1),
        "kl_4": np.full(10, 0.7),
    }


def test_what_columns_say():
    row = diagnostics.judged(columns() | {"v": np.zeros(10)})
    assert [row[f"advantage_p{p}"] for p in (10, 50, 90)] == pytest.approx([0.9, 4.5, 8.1])
    row = diagnostics.judged(columns())
    assert row["reliability_slope"] == pytest.approx(2)
    assert [row[f"reliability_q{i}"] for i in range(1, 6)] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert [row[f"reliability_return{i}"] for i in range(1, 6)] == [2, 6, 10, 14, 18]
    assert (row["first_v"], row["first_return"], row["first_rank_correlation"]) == (3, 9, pytest.approx(1))
    assert (row["seen_gap"], row["corr_q_logp"], row["corr_q_return"]) == (0.5, pytest.approx(-1), pytest.approx(1))
    assert (row["kl_beta_1"], row["kl_beta_4"]) == (pytest.approx(0.1), pytest.approx(0.7))
    constant = diagnostics.judged(columns() | {"q": np.ones(10)})
    assert "reliability_slope" not in constant, "what has no meaning is left out"
    assert diagnostics.judged({name: x[:0] for name, x in columns().items()}) == {}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("q_above_returns", {"q_above_returns": 0.2}, "20 % of the logged actions"),
        ("twin_gap", {"twin_gap": 1.5}, "differ by 1.5"),
        ("validation/reliability_slope", {"validation/reliability_slope": -0.1}, "smaller return"),
        ("validation/seen_gap", {"validation/seen_gap": -0.25}, "Q 0.25 above"),
        ("validation/corr_q_logp", {"validation/corr_q_logp": 0.7}, "correlation 0.70) more"),
    ],
)
def test_a_threshold_that_is_crossed_is_told_in_words(name, change, says):
    fine = {"q_above_returns": 0.05, "twin_gap": 0.5, "std_q": 1.0, "validation/reliability_slope": 0.8}
    fine |= {"validation/seen_gap": 0.1, "validation/corr_q_logp": 0.25, "validation/corr_q_return": 0.2}
    assert diagnostics.doubts(fine) == {}
    assert diagnostics.doubts({}) == {}
    said = diagnostics.doubts(fine | change)
    assert said.keys() == {name}
    assert says in said[name]
    assert diagnostics.doubts(fine | {"validation/corr_q_logp": 0.9, "validation/corr_q_return": 0.85}) == {}


def test_the_gradients_of_the_parts_make_the_whole():
    batch = batch_of()
    model: ILQLModel = tiny(reward_scale=SCALE)
    sum(loss.sum() for loss in Learner(model, ilql, ilql.Config())(batch).values()).backward()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = diagnostics.gradient_norms(named)
    assert found.keys() == {"grad_norm/trunk", "grad_norm/critics", "grad_norm/v"}
    whole = sum(float(p.grad.square().sum()) for p in named.values())
    assert sum(x * x for x in found.values()) == pytest.approx(whole)
    critics = sum(float(p.grad.square().sum()) for p in model.q.parameters())
    assert found["grad_norm/critics"] ** 2 == pytest.approx(critics)
    assert diagnostics.gradient_norms({"lm.x": named["v.out.bias"]}) == {}


# ---- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.dataset(tmp_path_factory.mktemp("diagnostics") / "data")


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_reports_them_and_goes_on_with_the_same_ones(data, tmp_path, monkeypatch):
    log = {"every": 2, "validate_every": 3, "checkpoint_every": 3}
    cfg = runs.config(data, tmp_path / "whole", steps=6, log=log)
    found = rows(train(cfg))
    assert [row["step"] for row in found] == [2, 3, 4, 6]
    (timing, *_) = [json.loads(line) for line in (tmp_path / "whole" / "timing.jsonl").read_text().splitlines()]
    assert timing.keys() >= {"tokens_per_second", "padding", "shared"}
    assert found[0].keys() >= ONLINE | {"grad_norm/trunk", "grad_norm/critics", "grad_norm/v"}
    assert found[1].keys() >= {"validation/seen_gap", "validation/first_v", "validation/reliability_slope"}
    step = Run.step

    def stops(self, window):
        if self.progress.step == 5:
            raise KeyboardInterrupt
        return step(self, window)

    monkeypatch.setattr(Run, "step", stops)
    other = replace(cfg, output=str(tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        train(other)
    monkeypatch.setattr(Run, "step", step)
    assert rows(train(other, resume=True)) == found


def test_a_doubt_is_told_once_and_not_at_the_beginning(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagnostics, "doubts", lambda row: {"twin_gap": "the critics differ"})
    train(runs.config(data, tmp_path / "run", steps=10, log={"every": 1}))
    assert capsys.readouterr().err.count("warning, step 2, twin_gap: the critics differ") == 1


def test_the_largest_believable_value_is_that_of_the_training_dialogues(data, tmp_path):
    from ilql.data import returns
    from ilql.feed import read
    from ilql.rows import Rows

    cfg = runs.config({"path": str(data), "reward_scale": 0.1}, tmp_path / "run")
    every = np.concatenate([returns(np.asarray(row["reward"], float), cfg.hyper.gamma) for row in Rows(data)])
    assert read(cfg).most == pytest.approx(every.max() + 0.05 * (every.max() - every.min()))
    assert read(runs.config(data, tmp_path / "run", "bc")).most == np.inf
