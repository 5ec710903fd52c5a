"""What every corpus promises, asked of each: a documented source, the same episodes again, rows from all of them."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from datasets_prep import CORPORA, options
from datasets_prep.build import Options, build
from datasets_prep.encode import Encoder
from datasets_prep.files import LOOKS
from datasets_prep.rejects import Reject
from datasets_prep.split import group
from datasets_prep.tokenizer import train
from ilql import schema
from ilql.types import Episode, InputError
from tests.prep import (
    test_casino,
    test_craigslist,
    test_deal_or_no_deal,
    test_preferences,
    test_reddit,
    test_taskmaster,
    test_visdial,
)
from tests.prep.test_files import PACKERS

SAMPLES = {
    "chat": json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}),
    "casino": json.dumps([test_casino.DEAL, test_casino.WALK]),
    "craigslist": json.dumps([test_craigslist.DEAL, test_craigslist.QUIT]),
    "deal_or_no_deal": f"{test_deal_or_no_deal.DEAL}\n{test_deal_or_no_deal.OTHER}\n",
    "preferences": json.dumps(test_preferences.MESSAGES),
    "reddit": json.dumps(test_reddit.GOOD),
    "taskmaster": json.dumps(test_taskmaster.CONVERSATION),
    "visdial": json.dumps([test_visdial.BUS, test_visdial.CAT]),
}
# What costs one record, written behind a sample's: its field and its line.
FAULTS = {
    "chat": ('\n{"messages": [{"role": "assistant", "content": "yo", "reward": "1"}]}', "messages[0].reward", 2),
    "casino": (', {"dialogue_id": 5, "chat_logs": [], "participant_info": {}}]', "[2].participant_info", 1),
    "craigslist": (
        ', {"uuid": "x", "scenario": {"kbs": []}, "outcome": {"reward": 0}, "events": []}]',
        "[2].scenario.kbs",
        1,
    ),
    "deal_or_no_deal": ("1 4 4 1 1 2 THEM: hi <eos> YOU: <selection> item0=1\n", "line", 3),
    "preferences": ('\n{"chosen": "a", "rejected": 1}', "rejected", 2),
    "reddit": (
        '\n{"id": "y", "title": "x", "author": "a", "created_utc": "soon", "comments": []}',
        "created_utc",
        2,
    ),
    "taskmaster": (', {"conversation_id": "x", "context": "[]", "generation": "{}", "reward": "up"}]', "[4].reward", 1),
    "visdial": (', {"image_id": 9, "caption": "a dog", "dialog": []}]', "[2].dialog", 1),
}
SEED = 1000  # one of random walks in which every node leads to the goal
SMALL = {"dialogues": 6, "games": 6, "walks": 6}  # of those that are generated


def read(name: str, folder: Path) -> list[Episode | Reject]:
    corpus: Any = CORPORA[name]
    if name not in SAMPLES:
        known = options.corpus_options(corpus)
        return list(corpus.episodes([], seed=SEED, **{k: v for k, v in SMALL.items() if k in known}))
    path = folder / "sample"
    path.write_text(SAMPLES[name])
    return list(corpus.episodes([path], seed=SEED))


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_says_where_it_comes_from(name: str) -> None:
    doc = CORPORA[name].__doc__ or ""
    assert re.search("licen[cs]e|CC BY|terms", doc, re.IGNORECASE)
    assert "https://" in doc or "your own" in doc
    assert options.first_line(CORPORA[name])


@pytest.mark.parametrize("name", CORPORA)
def test_the_same_input_gives_the_same_episodes_and_each_becomes_rows(name: str, tmp_path: Path) -> None:
    found = read(name, tmp_path)
    assert found == read(name, tmp_path)
    assert found
    ids = set()
    encoder = Encoder(train("byte", []))
    for episode in found:
        assert isinstance(episode, Episode), episode
        ids.add(episode.id)
        assert json.dumps(episode.meta)
        assert group(episode.id, episode.meta)
        assert math.isfinite(episode.total_reward)
        assert all(turn.is_action or not turn.reward for turn in episode.turns)
        for step in ("token", "utterance"):
            row = encoder.encode(episode, step)
            assert sum(row["reward"]) == pytest.approx(episode.total_reward)
    assert len(ids) == len(found)


@pytest.mark.parametrize("name", CORPORA)
def test_a_dataset_is_sound_and_a_fault_is_a_counted_reject_however_it_is_packed(name: str, tmp_path: Path) -> None:
    if name not in SAMPLES:
        known = options.corpus_options(CORPORA[name])
        own = {k: v for k, v in SMALL.items() if k in known}
        build(Options(name, tmp_path / "data", tokenizer="byte", seed=SEED, corpus_options=own))
        assert schema.validate(tmp_path / "data")["statistics"]["rejected"] == 0
        return
    fault, field, line = FAULTS[name]
    data = (SAMPLES[name].removesuffix("]") if fault[0] == "," else SAMPLES[name]) + fault
    found = []
    for form, pack in {"plain": bytes, **PACKERS}.items():
        path = tmp_path / form / "sample"
        path.parent.mkdir()
        path.write_bytes(pack(data.encode()))
        build(Options(name, path.parent / "data", [path], tokenizer="byte", max_reject_rate=0.9))
        manifest = schema.validate(path.parent / "data")
        assert manifest["statistics"]["rejected"] == 1
        assert manifest["statistics"]["rows_out"] == len(read(name, tmp_path))
        (reject,) = (path.parent / "data" / "rejected.jsonl").read_text().splitlines()
        found.append((reject, manifest["files"]))
    assert found[0] == found[1] == found[2]
    said = json.loads(found[0][0])
    assert (said["file"], said["line"], said["field"]) == ("sample", line, field)
    assert said["reason"]


@pytest.mark.parametrize("name", CORPORA)
def test_without_a_file_or_without_need_of_one(name: str, tmp_path: Path) -> None:
    episodes: Any = CORPORA[name].episodes
    if name in SAMPLES:
        with pytest.raises(InputError, match=r"give --input"):
            list(episodes([], seed=0))
        with pytest.raises(InputError, match=r"cannot read .*absent"):
            list(episodes([tmp_path / "absent"], seed=0))
        with pytest.raises(InputError, match=r"is a folder; give its files"):
            list(episodes([tmp_path], seed=0))
        (tmp_path / "empty").touch()
        with pytest.raises(InputError, match="is empty: it holds no dialogue"):
            list(episodes([tmp_path / "empty"], seed=0))
        assert name in LOOKS
    else:
        with pytest.raises(InputError, match="leave --input out"):
            list(episodes([tmp_path], seed=0))
