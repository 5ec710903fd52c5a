"""Judging a run by logged dialogues."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from datasets_prep import tokenizer as tk
from datasets_prep.build import Options
from datasets_prep.build import build as build_dataset
from datasets_prep.encode import Encoder
from ilql import ope
from ilql.build import ModelConfig, build
from ilql.closed import log_chances
from ilql.decode import load, score
from ilql.envs import deal_or_no_deal as dond
from ilql.generation import Choice
from ilql.report import Interval
from ilql.rows import Rows
from ilql.trainer import train
from ilql.types import PARTNER, Episode, Turn
from tests.prep import test_deal_or_no_deal as corpus
from tests.tiny import config, dataset, replace_rows


def test_an_interval_resamples_whole_groups():
    values = np.array([0.0, 0, 0, 1, 1, 1])
    together = ope.interval(lambda v: float(v.mean()), [values], ["a"] * 3 + ["b"] * 3)
    alone = ope.interval(lambda v: float(v.mean()), [values], list("abcdef"))
    assert isinstance(together, Interval)
    assert together.mean == alone.mean == 0.5
    assert (together.low, together.high) == (0, 1)
    assert 0 < alone.low < alone.high < 1


def test_turns_begin_where_the_agent_speaks():
    token = {"start": np.array([4, 5, 6, 10, 11]), "end": np.array([5, 6, 7, 11, 12])}
    utterance = {"start": np.array([4, 10]), "end": np.array([7, 12])}
    assert ope.agent_turns(token).tolist() == [0, 3]
    assert ope.agent_turns(utterance).tolist() == [0, 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ope")
    data = dataset(folder / "data")
    return train(config(data, folder / "run", algo="ilql", steps=3)), data


def test_values_and_likelihoods_are_those_of_score(run):
    folder, data = run
    model, encoder = load(folder)
    rows = Rows(data, "train")
    turns = ope.read_turns(model, encoder.bos_id, rows, batch_rows=3)
    assert len(turns) == len(rows)
    for i in (0, len(rows) - 1):
        row = rows[i]
        ids, starts = row["tokens"].tolist(), row["turn"].tolist()
        said = []
        for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            role = encoder.tokenizer.convert_ids_to_tokens(ids[begin]).strip("<|>")
            said.append(Turn(role, encoder.text(ids[begin + 1 : end])))
        scores = score(model, said, encoder)
        first = ope.agent_turns(row)
        assert turns[i].value == pytest.approx([scores[j].v for j in first], abs=1e-5)
        assert turns[i].nll == pytest.approx(-np.mean([s.logp for s in scores]), abs=1e-5)
        assert turns[i].to_go[0] == pytest.approx(row["reward"].sum())


def test_critics_of_utterances_are_judged_and_another_time_step_has_no_losses(tmp_path, capsys):
    data = dataset(tmp_path / "utterance", step="utterance")
    folder = train(config(data, tmp_path / "run", algo="ilql_utterance", steps=2))
    model, encoder = load(folder)
    rows = Rows(data, "train")
    said = [Turn("user", "hi"), Turn("assistant", "bb"), Turn("user", "ok"), Turn("assistant", "a")]
    row = encoder.encode(Episode("d", said), "utterance")
    row |= {name: np.asarray(row[name], np.int32) for name in ("tokens", "turn", "start", "end")}
    (turns,) = ope.read_turns(model, encoder.bos_id, [row])
    ends = [s for s in score(model, said, encoder) if s.v is not None]
    assert turns.value == pytest.approx([s.v for s in ends], abs=1e-5)
    assert len(ends) == 2
    assert ope.main([str(folder), "--data", str(data), "--split", "train", "--threshold", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "AUC, return >= 0.5" in out
    assert re.search(r"^\| reliability_slope +\| -?\d", out, re.MULTILINE)
    assert "seen_gap" not in out
    few = [rows[i] for i in range(5)]
    assert ope.losses(folder, model, encoder.bos_id, "utterance", few)
    assert ope.losses(folder, model, encoder.bos_id, "token", few) == {}


def test_a_policy_matches_its_own_last_turn(run):
    folder, data = run
    model, encoder = load(folder)
    rows = Rows(data, "train")
    policy = ope.LMPolicy(model, encoder, greedy=True, max_new_tokens=8)
    matches = ope.last_turn_matches(policy, rows)
    assert len(matches) == len(rows)
    row = rows[0]
    begin = int(row["start"][ope.agent_turns(row)[-1]])
    reply = policy.complete([row["tokens"][:begin].tolist()])[0]

    class One(list):
        pass

    own = One([{**row, "tokens": np.array([*row["tokens"][:begin], *reply]), "end": np.array([begin + len(reply)])}])
    own[0]["start"] = np.array([begin])
    assert ope.last_turn_matches(policy, own) == [True]
    own[0]["tokens"][-1] += 1
    assert ope.last_turn_matches(policy, own) == [False]


def test_the_command_prints_tables_and_refuses_what_does_not_fit(run, tmp_path, capsys):
    folder, data = run
    assert ope.main([str(folder), "--data", str(data), "--split", "train", "--threshold", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "AUC, return >= 0.5" in out
    assert "last turn equals the log's" in out
    assert re.search(r"^\| cql +\| \d", out, re.MULTILINE)
    assert re.search(r"^\| reliability_slope +\| -?\d", out, re.MULTILINE)
    assert ope.main([str(folder), "--data", str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err
    assert ope.main([str(folder), "--data", str(data), "--threshold", "nan"]) == 2
    assert "--threshold" in capsys.readouterr().err
    assert ope.main([str(folder), "--data", str(data), "--thresold", "1"]) == 2
    assert capsys.readouterr().err == "error: unknown option '--thresold': did you mean '--threshold'? (see --help)\n"


def test_losses_are_those_that_training_reports(run, tmp_path):
    folder, data = run
    again = config(data, tmp_path / "again", algo="ilql", steps=1, init_from=str(folder), optim={"lr": 1e-30})
    again = replace(again, log=replace(again.log, validate_every=1), model=replace(again.model, dtype="float32"))
    (row,) = (json.loads(line) for line in (train(again) / "metrics.jsonl").read_text().splitlines())
    model, encoder = load(folder)
    found = ope.losses(folder, model, encoder.bos_id, "token", list(Rows(data, "validation")))
    assert {"q", "v", "cql", "bc", "seen_gap", "first_v"} <= found.keys()
    assert {"total"} == {n.removeprefix("validation/") for n in row if n.startswith("validation/")} - found.keys()
    online = {"q", "cql", "bc"}  # a run that begins from another copies its critics into the targets
    assert {n: found[n] for n in online} == pytest.approx({n: row[f"validation/{n}"] for n in online}, rel=1e-4)
    assert ope.losses(folder / "model", model, encoder.bos_id, "token", list(Rows(data)))
    assert ope.losses(folder, model, encoder.bos_id, "utterance", list(Rows(data))) == {}
    shutil.copytree(folder / "model", tmp_path / "alone")
    assert ope.losses(tmp_path / "alone", model, encoder.bos_id, "token", list(Rows(data))) == {}


def test_several_datasets_are_judged_apart_and_together(run, tmp_path, capsys):
    folder, data = run
    other = dataset(tmp_path / "other", 5, seed=3, held=0)
    model, encoder = load(folder)
    nll = [
        np.array([t.nll for t in ope.read_turns(model, encoder.bos_id, Rows(one, "train"))]) for one in (data, other)
    ]
    command = [str(folder), "--split", "train", "--threshold", "0.5", "--data", str(data), str(other)]
    assert ope.main([*command, "--weights", "1", "3"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "dialogues; " in line or line.endswith(":")]
    weighted = (nll[0].sum() + 3 * nll[1].sum()) / (24 + 3 * 5)
    for name, line, count, mean in (
        (f"{data}:", said[1], 24, nll[0].mean()),
        (f"{other}:", said[3], 5, nll[1].mean()),
        (f"all together, 1 x {data} + 3 x {other}:", said[5], 24 + 15, weighted),
    ):
        assert name in said
        assert line.startswith(f"{count} dialogues; ")
        assert float(line.split("mean over dialogues: ")[1].split()[0]) == pytest.approx(mean, abs=0.006)
    for weights in (["1"], ["1", "0"], ["1", "nan"]):
        assert ope.main([*command, "--weights", *weights]) == 2
        assert "--weights needs one number above 0 for each folder" in capsys.readouterr().err
    assert ope.main([*command, "--weights", "1e-9", "1e-9"]) == 2
    assert "--weights leave no dialogue" in capsys.readouterr().err
    steps = dataset(tmp_path / "steps", step="utterance")
    assert ope.main([*command, str(steps)]) == 2
    assert f"{steps} has another step than {data}" in capsys.readouterr().err
    assert ope.main([str(folder), "--data", str(data), str(other)]) == 2
    assert f"{other} has no dialogue in its validation split" in capsys.readouterr().err


def test_data_that_the_model_cannot_read_is_refused(run, tmp_path, capsys):
    folder, data = run
    other = tmp_path / "other"
    shutil.copytree(data, other)
    encoder = Encoder.from_folder(data / "tokenizer")
    words = [f"w{i}" for i in range(encoder.vocab_size - len(tk.train("word", []).get_vocab()))]
    tokenizer = tk.train("word", [" ".join(words)] * 9)
    assert len(tokenizer) == encoder.vocab_size, "the size alone does not tell them apart"
    tokenizer.save_pretrained(other / "tokenizer")
    assert ope.main([str(folder), "--data", str(other)]) == 2
    assert "built with another tokenizer than" in capsys.readouterr().err
    long = dataset(tmp_path / "long", held=0)
    turns = [Turn("user", "hi " * 30), Turn("assistant", "a")]
    replace_rows(long, [encoder.encode(Episode("long", turns), "token")])
    assert ope.main([str(folder), "--data", str(long), "--split", "train"]) == 2
    assert "the model's context is 64" in capsys.readouterr().err


def test_the_last_turn_is_asked_for_behind_its_own_window() -> None:
    """The agent's open turn has no token of its own where a chat template writes nothing before an answer."""
    asked: list[list[int]] = []

    def complete(prompts: list[list[int]]) -> list[list[int]]:
        asked.extend(prompts)
        return [[9, 2]] * len(prompts)

    model = SimpleNamespace(config=SimpleNamespace(history=1))
    policy: Any = SimpleNamespace(model=model, complete=complete, closed=None)
    row = {"tokens": [0, 4, 5, 6, 7, 8, 9, 2], "turn": [1, 3, 4, 6], "start": [3, 6], "end": [4, 8]}  # no header
    rows: Any = [{name: np.array(column) for name, column in row.items()}]
    assert ope.last_turn_matches(policy, rows) == [True]
    assert asked == [[0, 7, 8]]


@pytest.fixture(scope="module")
def deals(tmp_path_factory):
    """A negotiation corpus in bytes: two deals and one line without, and a run that reads it."""
    folder = tmp_path_factory.mktemp("deals")
    lines = [corpus.DEAL, corpus.OTHER, corpus.DEAL.replace(" agree ", " disagree ")]
    (folder / "data.txt").write_text("\n".join(lines) + "\n")
    data = folder / "data"
    build_dataset(Options("deal_or_no_deal", data, [folder / "data.txt"], tokenizer="byte"))
    encoder = Encoder.from_folder(data / "tokenizer")
    ids = {"vocab_size": encoder.vocab_size, "bos_id": encoder.bos_id, "pad_id": encoder.pad_id}
    torch.manual_seed(0)
    shape = ModelConfig(layers=1, width=16, heads=2, context=384, dtype="float64")
    model = build(shape, **ids, end_ids=encoder.end_ids, history=None)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    model.save_pretrained(folder / "model")
    encoder.tokenizer.save_pretrained(folder / "model")
    return folder / "model", data


def test_the_logged_selection_is_compared_with_the_likeliest_that_may_be_made(deals):
    folder, data = deals
    model, encoder = load(folder, dtype=torch.float64)
    policy = ope.LMPolicy(model, encoder, greedy=True, closed=dond.closed)
    every = dond.closed([Turn(PARTNER, corpus.OWN), Turn(PARTNER, "<selection>")], "")
    answers = [encoder.action([Turn(PARTNER, "x")], text) for text in every or []]
    for row in Rows(data, "train"):
        begin = int(row["start"][ope.agent_turns(row)[-1]])
        state, logged = row["tokens"][:begin].tolist(), row["tokens"][begin:].tolist()
        best = int(log_chances(model, [state], [answers], Choice())[0].argmax())
        assert ope.last_turn_matches(policy, [row]) == [logged == answers[best]]
        likeliest, other = (
            row
            | {
                "tokens": np.array([*state, *answer], np.int32),
                "start": np.append(row["start"][row["start"] < begin], begin),
                "end": np.append(row["end"][row["end"] <= begin], begin + len(answer)),
            }
            for answer in (answers[best], answers[best - 1])
        )
        assert ope.last_turn_matches(policy, [likeliest, other]) == [True, False]


def test_only_the_dialogues_asked_for_are_judged(deals, run, capsys):
    folder, data = deals
    command = [str(folder), "--data", str(data), "--split", "train"]
    assert ope.main(command) == 0
    assert "3 dialogues; " in capsys.readouterr().out
    assert ope.main([*command, "--where", "outcome=deal", "--closed"]) == 0
    out = capsys.readouterr().out
    assert "2 dialogues; " in out
    assert "closed set" in out
    assert ope.main([*command, "--where", "outcome=deal", "points=6"]) == 0
    assert "1 dialogues; " in capsys.readouterr().out
    for options, says in (
        (["--where", "outcome=sold"], "--where outcome=sold: no dialogue is left; outcome is deal, disagree"),
        (["--where", "outcome"], "--where outcome: write it as KEY=VALUE"),
    ):
        assert ope.main([*command, *options]) == 2
        assert says in capsys.readouterr().err
    other, tiny_data = run
    assert ope.main([str(other), "--data", str(tiny_data), "--closed"]) == 2
    assert "--closed: tiny has no game with closed sets" in capsys.readouterr().err
