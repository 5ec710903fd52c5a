"""A reward model: its losses worked by hand, the strengths of items that a table of wins is likeliest under, and what
data it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets_prep.build import Options, build
from ilql.algos import reward_model
from ilql.data import collate
from ilql.feed import read
from ilql.learner import Learner
from ilql.pairs import check_pairs
from ilql.rows import Rows
from ilql.stream import Taken, divided
from ilql.trainer import train
from ilql.types import InputError
from ilql.verdicts import read_pairs
from tests.tiny import config, dataset
from tests.toys import BOS, model_fields, row, stats, table_model

CFG = reward_model.Config()


def test_losses_are_those_worked_by_hand():
    # pairs (0, 2) and (3, 1): differences 2 and 0 of the first critic, 0 and -1 of the second
    out = stats(q=[[3, 1, 1, 1], [2, 5, 2, 4]], v=[0, 3, 1.5, 4.5])
    batch = stats(pair=[[0, 2], [3, 1]])
    batch.pair = batch.pair.long()
    first = math.log(1 + math.exp(-2)) + math.log(2)
    second = math.log(2) + math.log(1 + math.exp(1))
    u = [2.5, 0, 0, -2]
    got = reward_model.loss(out, batch, CFG)
    assert {k: v.tolist() for k, v in got.items()} == {
        "pair": pytest.approx([first, second, first, second]),
        "v": pytest.approx([0.1 * x * x / 2 for x in u]),
    }
    got = reward_model.loss(out, batch, reward_model.Config(center=0.5, value=1))
    assert got["v"].tolist() == [x * x / 2 for x in u]
    # (3 + 1)^2 + (2 + 2)^2 and (1 + 1)^2 + (5 + 4)^2
    assert got["center"].tolist() == [16, 42.5, 16, 42.5]
    assert got["pair"].tolist() == pytest.approx([first, second, first, second])


def test_only_the_last_action_is_judged():
    one = row([BOS, 1, 2, 1, 3], [2, 4], [3, 5], [0, 1.0], turn=[1, 2, 3, 4]) | {"pair": "x"}
    made = reward_model.prepare(one, list, CFG)
    assert {name: made[name].tolist() for name in ("start", "end", "reward")} == {
        "start": [4],
        "end": [5],
        "reward": [1],
    }
    assert made["tokens"] is one["tokens"]
    assert made["pair"] == "x"


# ---- a table of wins -------------------------------------------------------------------------------------------------

# WINS[i, j]: how often item i was preferred to item j. No order of the items agrees with all of it.
WINS = np.array([[0, 4, 1, 3], [2, 0, 5, 3], [2, 1, 0, 4], [1, 2, 1, 0]])


def strengths(wins: np.ndarray) -> np.ndarray:
    """The maximum likelihood of Bradley and Terry by the iteration of Zermelo (1929), as logarithms with mean 0."""
    games, p = wins + wins.T, np.ones(len(wins))
    for _ in range(5000):
        p = wins.sum(1) / (games / (p[:, None] + p)).sum(1)
        p /= p.prod() ** (1 / len(p))
    return np.log(p)


def compared() -> list[dict[str, Any]]:
    """A pair of one-token replies for each win, the preferred one now first and now second."""
    rows: list[dict[str, Any]] = []
    for i, j in np.argwhere(WINS):
        for _ in range(WINS[i, j]):
            name = f"pair {len(rows) // 2}"
            two = [row([BOS, 1, 2 + item], [2], [3], [verdict], turn=[1, 2]) for item, verdict in ((i, 1.0), (j, 0.0))]
            rows += [one | {"pair": name} for one in (two[::-1] if len(rows) % 4 else two)]
    return rows


@pytest.mark.parametrize("critics", [1, 2])
def test_the_rewards_of_a_table_of_wins_are_their_maximum_likelihood(critics):
    model = table_model(8, critics=critics, **model_fields(reward_model, CFG))
    learner = Learner(model, reward_model, CFG)
    batch = collate(compared(), gamma=1.0, bos=BOS, bootstraps=False).to("cpu", torch.float64)
    assert len(batch.pair) == WINS.sum()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for i in range(600):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * i / 600)) + 1e-6
        optimizer.zero_grad()
        sum(loss.mean() for loss in learner(batch).values()).backward()
        optimizer.step()
        model.update_targets(CFG.polyak)
    items = torch.eye(8, dtype=torch.float64)[2:6]
    for head in (*model.q, *model.q_target):
        learned = head(items).detach().numpy()
        np.testing.assert_allclose(learned - learned.mean(), strengths(WINS), atol=1e-3)
    # V at the state: the mean reward of what was compared there
    shown = learner.take().q.mean(0).mean().item()
    assert learner(batch) is not None
    assert learner.take().v[0].item() == pytest.approx(shown, abs=1e-2)


# ---- data ------------------------------------------------------------------------------------------------------------


def pairs(folder: Path, lines: int = 24, **options: Any) -> Path:
    """A dataset in which the longer reply is preferred."""
    path = folder / "pairs.jsonl"
    made = [{"prompt": f"q {k}", "chosen": "yes please " + "x" * (k % 3), "rejected": "no"} for k in range(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in made))
    settings: dict[str, Any] = {"tokenizer": "byte", "step": "utterance", "validation": "0.25"} | options
    build(Options("preferences", folder / "pairs", [path], **settings))
    return folder / "pairs"


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_split_of_a_step_and_where_it_was_interrupted_do_not_matter(tmp_path: Path) -> None:
    data = pairs(tmp_path)
    assert len(Rows(data)) >= 32  # 4 steps of 8
    log = {"every": 1, "validate_every": 4, "validation_batches": 9, "checkpoint_every": 2}
    whole = train(config(data, tmp_path / "8", "reward_model", batch={"dialogues": 8}, log=log, steps=4))
    split = {"dialogues": 2, "accumulate": 4}
    parts = train(config(data, tmp_path / "2", "reward_model", batch=split, log=log, steps=4))
    for a, b in zip(metrics(whole), metrics(parts), strict=True):
        assert a == pytest.approx({**b, "epoch": a["epoch"]}, rel=1e-9)
    train(config(data, tmp_path / "again", "reward_model", batch=split, log=log, steps=4))
    last = tmp_path / "again" / "checkpoints" / "step-4"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    resumed = train(config(data, tmp_path / "again", "reward_model", batch=split, log=log, steps=4), resume=True)
    assert metrics(resumed) == metrics(parts)


def test_a_batch_that_is_divided_keeps_its_pairs(tmp_path: Path) -> None:
    feed = read(config(pairs(tmp_path), tmp_path / "run", "reward_model", batch={"dialogues": 10}))
    rows = feed.order.batches(0)[0]
    whole = feed.collate(feed.rows.__getitems__(rows))
    for pieces in (2, 3, 4, 5, 10):
        parts = divided(feed, Taken(whole, rows), pieces)
        assert len(parts) > 1
        assert sum(len(part.pair) for part in parts) == len(whole.pair) == 5
        assert [name for part in parts for name in part.ids] == whole.ids


def test_a_dataset_without_pairs_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    plain = dataset(tmp_path / "plain", step="token")
    words = (
        "learns from pairs of dialogues, but 24 of 24 in .*plain.* are of none; .* python -m datasets_prep preferences"
    )
    with pytest.raises(InputError, match=words):
        train(config(plain, tmp_path / "run", "reward_model"))
    assert not (tmp_path / "run").exists()


def test_other_bad_input(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    tokens = pairs(tmp_path / "t", step="token")
    with pytest.raises(InputError, match=r"learns at utterance steps, but .* has token steps"):
        train(config(tokens, tmp_path / "run", "reward_model"))
    data = pairs(tmp_path)
    with pytest.raises(InputError, match=r"data\.reward_scale"):
        train(config({"path": str(data), "reward_scale": 0.5}, tmp_path / "run", "reward_model"))
    with pytest.raises(InputError, match=r"reward_model\.center is -1"):
        reward_model.Config(center=-1)
    with pytest.raises(InputError, match=r"reward_model\.value is 0"):
        reward_model.Config(value=0)
    rows = Rows(data)
    for batch in rows._batches:
        batch["reward"] = (batch["reward"][0], batch["reward"][1] / 2)
    with pytest.raises(InputError, match=r"pair .* have the rewards 0\.5, 0, but the preferred one of two has 1"):
        check_pairs(rows, "reward_model")


def test_pairs_are_learned(tmp_path: Path) -> None:
    """Known rewards, here how often a reply says a word: 95 % of held-out pairs and more are told right."""
    rng = np.random.default_rng(0)
    words = np.array(["good", "fine", "dull", "bad"])
    worth = {"good": 2.0, "fine": 1.0, "dull": -1.0, "bad": -2.0}
    lines = []
    while len(lines) < 500:
        two = [rng.choice(words, 3).tolist() for _ in range(2)]
        gains = [sum(map(worth.__getitem__, reply)) for reply in two]
        if gains[0] != gains[1]:
            best, worst = two if gains[0] > gains[1] else two[::-1]
            lines.append({"prompt": f"film {len(lines)}", "chosen": " ".join(best), "rejected": " ".join(worst)})
    path = tmp_path / "films.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings: dict[str, Any] = {"tokenizer": "word", "step": "utterance", "validation": "0.4"}
    build(Options("preferences", tmp_path / "data", [path], **settings))
    log = {"every": 60, "validate_every": 60, "validation_batches": 99}
    optim = {"lr": 3e-3, "schedule": "cosine", "clip": 1.0}
    options: dict[str, Any] = {"batch": {"dialogues": 32}, "log": log, "optim": optim}
    train(config(tmp_path / "data", tmp_path / "run", "reward_model", steps=60, **options))
    gains = [pair.gain for pair in read_pairs(tmp_path / "run", [tmp_path / "data"], "validation")]
    assert len(gains) > 150
    assert np.mean(np.array(gains) > 0) >= 0.95
