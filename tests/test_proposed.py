"""A dataset with what an actor would say at each of its states, and who may learn from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets_prep.encode import Encoder
from ilql import actor, annotate, ope, proposed, schema
from ilql.decode import load
from ilql.feed import read
from ilql.propose import Proposal
from ilql.proposed import propose_all
from ilql.rows import Rows
from ilql.schema import sealed
from ilql.trainer import train
from ilql.types import InputError
from tests.test_trainer import refused
from tests.tiny import config, dataset
from tests.toys import tiny


class Place:
    """A dataset at utterance steps, two actors of its tokens, and what the first proposes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = dataset(folder / "data", 12, step="utterance", held=4)
        learn = {"steps": 60, "optim": {"lr": 1e-2}, "log": {"every": 60}}  # until replies end
        self.run = train(config(self.data, folder / "run", "bc", **learn))
        self.other = train(config(self.data, folder / "other", "bc", steps=1, init_from=str(self.run)))
        self.made = propose_all(self.run, self.data, n=3, seed=1, max_new_tokens=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("proposed"))


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_every_state_has_distinct_candidates_that_end(place):
    assert place.made.name == "data-proposals"
    schema.validate(place.made)
    ends = set(Encoder.from_folder(place.data / "tokenizer").end_ids)
    count = 0
    for split in schema.SPLITS:
        before, after = Rows(place.data, split), Rows(place.made, split)
        assert len(before) == len(after) > 0
        for old, new in zip(before, after, strict=True):
            assert old["tokens"].tolist() == new["tokens"].tolist()
            assert old["reward"].tolist() == new["reward"].tolist()
            assert (old["id"], old["meta"], old["terminated"]) == (new["id"], new["meta"], new["terminated"])
            for said in new["proposals"]:
                texts = [tuple(c.tolist()) for c in said]
                assert len(set(texts)) == len(texts) <= 3
                assert all(text[-1] in ends and not ends & set(text[:-1]) and len(text) <= 4 for text in texts)
                count += len(texts)
    about = manifest(place.made)["proposals"]
    assert about["candidates"] == count > 20
    assert about["states"] >= about["distinct_states"]
    assert about["without"] < about["states"]
    assert {k: about[k] for k in ("n", "temperature", "seed", "max_new_tokens")} == {
        "n": 3,
        "temperature": 1.0,
        "seed": 1,
        "max_new_tokens": 4,
    }
    assert about["sha256"] == actor.digest(load(place.run)[0])


def test_states_are_asked_for_as_the_actor_saw_them(place, monkeypatch):
    """In the windows of its training, once each; what it does not end is dropped."""
    asked = []

    def stand_in(policy, prompts, n, *, temperature):
        asked.extend(tuple(p) for p in prompts)
        return [[Proposal([7, 2], -1.0, True), Proposal([7, 7], -2.0, False)][:n] for _ in prompts]

    monkeypatch.setattr(proposed, "propose", stand_in)
    run = train(config({"path": str(place.data), "history": 1}, place.folder / "windows", "bc", steps=1))
    made = propose_all(run, place.data, place.folder / "in-windows")
    wanted = set()
    for split in schema.SPLITS:
        for row in Rows(place.data, split):
            tokens, turn = row["tokens"].tolist(), row["turn"].tolist()
            for start in row["start"].tolist():
                begin = turn[max(i for i, t in enumerate(turn) if t <= start) - 1]
                wanted.add(tuple(tokens[:start] if begin <= 1 else [tokens[0], *tokens[begin:start]]))
    assert len(asked) == len(set(asked))
    assert set(asked) >= wanted
    rows = Rows(made)
    assert all([c.tolist() for c in said] == [[7, 2]] for row in rows for said in row["proposals"])
    assert manifest(made)["proposals"]["not_ended"] == len(asked)
    never = [Proposal([7], 0.0, False)]
    monkeypatch.setattr(proposed, "propose", lambda policy, prompts, n, **_: [never for _ in prompts])
    with pytest.raises(InputError, match=r"ended none of its .* raise --max-new-tokens"):
        propose_all(run, place.data, place.folder / "never")
    assert not (place.folder / "never").exists()


def test_the_same_seed_gives_the_same_file(place, capsys):
    again = place.folder / "again"
    words = ["propose", str(place.run), str(place.data), "--output", str(again), "--n", "3", "--seed", "1"]
    assert annotate.main([*words, "--max-new-tokens", "4"]) == 0
    assert "candidates a state" in capsys.readouterr().out
    assert manifest(again)["files"] == manifest(place.made)["files"]


def test_a_source_that_does_not_fit_is_refused(place, tmp_path):
    with pytest.raises(InputError, match="exists; name another --output"):
        propose_all(place.run, place.data)
    token = dataset(tmp_path / "token", 4)
    with pytest.raises(InputError, match=r"has token steps; build it again: .*--step utterance"):
        propose_all(place.run, token)
    info = place.other / "data.json"
    known = info.read_text()
    info.write_text(known.replace(json.loads(known)["tokenizer"]["sha256"], "0" * 64))
    with pytest.raises(InputError, match="another tokenizer"):
        propose_all(place.other, place.data, tmp_path / "x")
    info.write_text(known)


def test_who_learns_from_proposals_is_told_what_is_missing(place, tmp_path):
    refused(config(place.data, tmp_path / "a", "chai"), "annotate propose RUN .*data --output .*data-proposals")
    mixed = {"path": [str(place.made), str(place.data)]}
    refused(config(mixed, tmp_path / "a", "chai"), "learns from proposals, which .*data has not")
    foreign = propose_all(place.other, place.data, tmp_path / "foreign", n=2, max_new_tokens=4)
    mixed = {"path": [str(place.made), str(foreign)]}
    refused(config(mixed, tmp_path / "a", "chai"), "has proposals of another actor")
    cfg = config(foreign, tmp_path / "a", "chai", init_from=str(place.run))
    refused(cfg, "proposals of another actor .* than init_from, .*run; make them again .*propose .*run")
    facts = manifest(foreign)
    facts["proposals"]["tokenizer"] = "0" * 64
    (foreign / "manifest.json").write_text(sealed(facts))
    refused(config(foreign, tmp_path / "a", "chai"), "made with another tokenizer")
    cache = {"path": str(place.made), "cache": ["nowhere"]}
    refused(config(cache, tmp_path / "a", "chai", model={"freeze": 1}), "has no states of the proposals")
    assert not (tmp_path / "a").exists()


def test_a_frozen_actor_stays_as_it_is(place, tmp_path):
    options = {"steps": 2, "chai": {"bc_weight": 0}, "log": {"every": 1, "validate_every": 2}}
    frozen = {"model": {"freeze": "trunk"}}
    cfg = config(place.made, tmp_path / "run", "chai", init_from=str(place.run), **options, **frozen)
    assert actor.digest(load(train(cfg))[0]) == manifest(place.made)["proposals"]["sha256"]
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"q", "v", "cql", "mean_q", "validation/total"} <= row.keys()
    with pytest.raises(InputError, match=r"set model\.freeze to trunk"):
        config(place.made, tmp_path / "b", "chai", init_from=str(place.run), **options)
    with pytest.raises(InputError, match="set init_from to a run"):
        config(place.made, tmp_path / "b", "chai", **options, **frozen)


def test_an_untied_output_embedding_is_part_of_the_actor(place):
    model = tiny(model={"extra": {"tie_word_embeddings": False}})
    before = actor.digest(model)
    model.q[0].out.bias.data += 1.0
    assert actor.digest(model) == before, "critics are not the actor"
    model.get_output_embeddings().weight.data[3] += 1.0
    assert actor.digest(model) != before


def test_candidates_longer_than_their_dialogue_count_for_the_context(place, monkeypatch):
    said = [7] * 40 + [2]
    long = [Proposal(said, 0.0, True)]
    monkeypatch.setattr(proposed, "propose", lambda policy, prompts, n, **_: [long for _ in prompts])
    made = propose_all(place.run, place.data, place.folder / "long")
    rows = [row for split in schema.SPLITS for row in Rows(made, split)]
    ends = [max(len(r["tokens"]) if len(r["proposals"]) > len(r["start"]) else 0, int(r["start"][-1])) for r in rows]
    cfg = config(made, place.folder / "never-made", "chai", log={"validate_every": 1})
    assert read(cfg).longest == max(ends) + 41 > max(len(r["tokens"]) for r in rows)


def test_what_people_said_is_ranked_among_proposals(place, tmp_path, capsys):
    options = {"steps": 1, "chai": {"bc_weight": 0}, "model": {"freeze": "trunk"}}
    run = train(config(place.made, tmp_path / "run", "chai", init_from=str(place.run), **options))
    assert ope.main([str(run), "--data", str(place.made)]) == 0
    said = capsys.readouterr().out
    assert "the logged reply among proposals, by" in said
    assert all(name in said for name in ("log pi", "chance", "of the run's own", "cql"))
    assert ope.main([str(run), "--data", str(place.data)]) == 0
    assert "among proposals" not in capsys.readouterr().out
