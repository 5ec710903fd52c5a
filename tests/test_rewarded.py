"""Datasets that carry a reward model's rewards: which utterance gets what, in which unit, and what stays as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilql import annotate
from ilql.decode import load, load_policy
from ilql.rewarded import label, utterance_rewards, whole
from ilql.rows import Rows
from ilql.schema import validate
from ilql.trainer import train
from ilql.types import InputError
from tests.algos.test_reward_model import pairs
from tests.tiny import config, dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewarded")
    for name, history in (("run", None), ("windows", 2)):
        data: Any = {"path": str(folder / "pairs"), "history": history}
        if not (folder / "pairs").exists():
            pairs(folder)
        train(config(data, folder / name, "reward_model", steps=2, log={"validate_every": 0}))
    for step in ("token", "utterance"):
        dataset(folder / step, step=step)
    return folder


def by_hand(run: Path, row: dict[str, Any]) -> np.ndarray:
    """The reward of each utterance by every critic, (K, n), one dialogue and one utterance at a time."""
    model, _ = load(run)
    found = []
    made = whole(row)
    for end in made["end"].tolist():
        short = row["tokens"][:end]
        h = model.lm.base_model(input_ids=torch.tensor(short.astype(np.int64))[None]).last_hidden_state[0, -1]
        found.append([q(h).item() for q in model.q])
    return np.array(found).T


@pytest.mark.parametrize("step", ["token", "utterance"])
def test_an_utterance_is_judged_at_its_last_token_with_all_before_it(place: Path, step: str) -> None:
    rows = Rows(place / step)
    model, encoder = load(place / "run")
    for row, found in zip(rows, utterance_rewards(model, list(rows), encoder.bos_id), strict=True):
        np.testing.assert_allclose(found, by_hand(place / "run", row), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["last", "all"])
def test_rewards_sit_on_the_last_token_of_an_utterance(place: Path, tmp_path: Path, which: str) -> None:
    plain = {}
    for step in ("token", "utterance"):
        folder = label(place / "run", place / step, tmp_path / step, which=which, normalise="none")
        validate(folder)
        plain[step] = Rows(folder)
    for token, utterance in zip(plain["token"], plain["utterance"], strict=True):
        closes = np.append(token["start"][1:] != token["end"][:-1], True)
        assert not token["reward"][~closes].any()
        np.testing.assert_allclose(token["reward"][closes], utterance["reward"], rtol=1e-5)
        means = by_hand(place / "run", utterance).mean(0)
        wanted = means if which == "all" else np.append(np.zeros(len(means) - 1), means[-1])
        np.testing.assert_allclose(utterance["reward"], wanted, rtol=1e-4, atol=1e-5)


def test_rewards_are_normalised_by_the_train_split_alone_and_the_manifest_says_how(place: Path, tmp_path: Path) -> None:
    raw = label(place / "run", place / "utterance", tmp_path / "raw", normalise="none", ensemble="min")
    made = label(place / "run", place / "utterance", tmp_path / "made", ensemble="min")
    told = json.loads((made / "manifest.json").read_bytes())["label"]
    before, after = Rows(raw), Rows(made)
    assert (after.returns.mean(), after.returns.std()) == pytest.approx((0, 1), abs=1e-5)
    assert told["mean"] == pytest.approx(before.returns.mean(), rel=1e-4)
    assert told["scale"] == pytest.approx(before.returns.std(), rel=1e-4)
    held = (Rows(raw, "validation").returns - told["mean"]) / told["scale"]
    np.testing.assert_allclose(Rows(made, "validation").returns, held, rtol=1e-4, atol=1e-5)
    lowest = [by_hand(place / "run", row).min(0)[-1] for row in before]
    np.testing.assert_allclose(before.returns, lowest, rtol=1e-4, atol=1e-5)
    assert len(told["digest"]) == 64
    assert (told["which"], told["ensemble"], told["normalise"], told["history"]) == ("last", "min", "standard", None)
    assert told["rewards"]["train"]["dialogues"] == len(after)


def test_nothing_but_rewards_changes(place: Path, tmp_path: Path) -> None:
    made = Rows(label(place / "windows", place / "token", tmp_path / "made"))
    for old, new in zip(Rows(place / "token"), made, strict=True):
        assert old.keys() == new.keys()
        for name in old.keys() - {"reward"}:
            np.testing.assert_array_equal(old[name], new[name])
    assert json.loads((tmp_path / "made" / "manifest.json").read_bytes())["label"]["history"] == 2


def test_the_command(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["label", str(place / "run"), str(place / "token"), "--output", str(tmp_path / "made"), "--which", "all"]
    assert annotate.main(words) == 0
    assert f"{tmp_path / 'made'}: rewards less " in capsys.readouterr().out
    assert annotate.main(words) == 2
    assert "exists; name another --output" in capsys.readouterr().err


def test_a_reward_model_is_no_policy(place: Path) -> None:
    with pytest.raises(InputError, match="is a reward model and no policy"):
        load_policy(place / "run")


def test_bad_input(place: Path, tmp_path: Path) -> None:
    train(config(place / "utterance", tmp_path / "bc", "bc", steps=1))
    with pytest.raises(InputError, match="is a run of bc, not of reward_model"):
        label(tmp_path / "bc", place / "token")
    with pytest.raises(InputError, match="another tokenizer"):
        label(place / "run", pairs(tmp_path, tokenizer="word"))
    with pytest.raises(InputError, match="--which is 'first', not one of last, all"):
        label(place / "run", place / "token", which="first")
