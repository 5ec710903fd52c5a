"""Rewards by the partner's replies: each worked out, whose reply is whose, and what a build makes of them."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets_prep import rewards
from datasets_prep.__main__ import main
from datasets_prep.rewards import Heard, give, parse, rate
from datasets_prep.talks import Talks
from ilql.types import Episode, InputError, Turn
from tests.prep.test_build import rows
from tests.prep.test_preferences import MESSAGES


@pytest.mark.parametrize(
    ("name", "reply", "before", "want"),
    [
        ("reply_length", "I don't know, maybe.", None, 4),
        ("laughter", "Haha, hahaha! That is a hat. LOL lool hehe", None, 5),
        ("laughter", "a ha of Bahamas", None, 0),
        ("questions", "Really?? And why? Oh.", None, 2),
        ("politeness", "Thank you, thanks! Could you please? I\u2019m sorry; you\u2019re welcome.", None, 5),
        ("politeness", "thankless displeased", None, 0),
        ("conversation_length", "no", None, 1),
        ("transition", "ok", None, 0),
    ],
)
def test_each_reward_worked_out(name: str, reply: str, before: str | None, want: float) -> None:
    assert rewards.REWARDS[name](Heard(reply, before)) == want


def test_sentiment_is_vaders_and_transition_its_change() -> None:
    pytest.importorskip("vaderSentiment")
    # "great" is 3.1 in the lexicon, and a compound is x / sqrt(x^2 + 15)
    great, bad = 3.1 / (3.1**2 + 15) ** 0.5, -2.5 / (2.5**2 + 15) ** 0.5
    assert rewards.sentiment(Heard("great", None)) == pytest.approx(great, abs=1e-4)
    assert rewards.sentiment(Heard("the table", None)) == 0
    assert rewards.transition(Heard("great", "bad")) == pytest.approx(great - bad, abs=1e-4)
    assert rewards.transition(Heard("great", None)) == 0


def talk() -> Talks:
    turns = [
        Turn("user", "hi"),
        Turn("assistant", "one", reward=5.0),
        Turn("tool", "17"),
        Turn("user", "a b c"),
        Turn("user", "d"),
        Turn("assistant", "two"),  # another action follows at once
        Turn("assistant", "three"),
        Turn("user", "e f"),
        Turn("assistant", "no action", act=False),
        Turn("user", "x"),
        Turn("assistant", "four"),  # the end
    ]
    return Talks.of([Episode("d", turns), Episode("e", [Turn("assistant", "hm"), Turn("user", "y y y y y")])])


def test_a_reply_is_what_the_partner_says_before_the_agents_next_turn() -> None:
    talks = talk()
    rated = rate(talks, ["reply_length", "logged"])
    assert rated.turn.tolist() == [1, 5, 6, 10, 11]
    assert rated.answered.tolist() == [True, False, True, False, True]
    assert rated.values["reply_length"].tolist() == [4, 0, 2, 0, 5]
    assert rated.values["logged"].tolist() == [5, 0, 0, 0, 0]


def test_the_weighted_sum_takes_the_place_of_the_logs_reward() -> None:
    talks = talk()
    assert give(talks, {"reply_length": rewards.Scale(0.5), "conversation_length": rewards.Scale(-1.0)}) == {}
    assert {k: r for k, r in enumerate(talks.reward) if r} == {1: 4 * 0.5 - 1, 11: 5 * 0.5 - 1}
    talks = talk()
    give(talks, {"reply_length": rewards.Scale(2.0, 3.0, 4.0), "logged": rewards.Scale(1.0)})
    want = {1: 2 * (4 - 3) / 4 + 5, 6: 2 * (2 - 3) / 4, 11: 2 * (5 - 3) / 4}
    assert {k: r for k, r in enumerate(talks.reward) if r} == want, "without a reply it is 0, the mean"


def test_what_was_said_before_is_the_partners_last_words() -> None:
    seen: list[Heard] = []

    def look(heard: Heard) -> float:
        seen.append(heard)
        return 0.0

    patched = pytest.MonkeyPatch()
    patched.setitem(rewards.REWARDS, "reply_length", look)
    rate(talk(), ["reply_length"])
    patched.undo()
    assert seen == [("a b c d", "hi"), ("e f", "d"), ("y y y y y", None)]


def test_an_empty_reply_is_a_fault_of_its_dialogue() -> None:
    turns = [Turn("assistant", "one"), Turn("user", " ")]
    talks = Talks.of([Episode("d", turns), Episode("e", [Turn("assistant", "hm"), Turn("user", "y")])])
    faults = give(talks, {"reply_length": rewards.Scale(1.0)})
    assert {i: (f.field, f.reason) for i, f in faults.items()} == {
        0: ("messages[1].content", "the partner's reply is empty")
    }
    assert talks.reward == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("reply_lenght=1", "there is no reward 'reply_lenght'; did you mean 'reply_length'"),
        ("joy=1", "there is no reward 'joy'; they are sentiment, transition"),
        ("laughter", "laughter needs a weight other than 0, laughter=0.5, and not 'none'"),
        ("laughter=0", "laughter needs a weight other than 0"),
        ("laughter=nan", "laughter needs a weight other than 0, laughter=0.5, and not 'nan'"),
        ("laughter=much", "and not 'much'"),
        ("laughter=1,laughter=2", "laughter stands twice"),
        ("laughter=1,", "there is no reward ''"),
    ],
)
def test_what_cannot_be_meant_is_named(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse(text)


def test_without_its_package_sentiment_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("vaderSentiment"):
            raise ImportError(name)
        return real(name, *rest, **more)

    rewards._analyzer.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"need the package vaderSentiment.*pip install 'ilql\[rewards\]'"):
        parse("sentiment=1")
    assert parse("laughter=1, questions=-0.5") == {"laughter": 1.0, "questions": -0.5}
    rewards._analyzer.cache_clear()


# ---- builds ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Replies of 1, 2, 3, ... words to the first action; the second has none; one reply is empty."""
    path = tmp_path / "log.jsonl"
    lines = []
    for i in range(1, 9):
        messages = [("user", "hi"), ("assistant", "yo"), ("user", "w " * i), ("assistant", "bye")]
        lines.append({"id": f"d{i}", "messages": [{"role": r, "content": c} for r, c in messages], "reward": 1})
    lines.append(
        {"id": "empty", "messages": [{"role": r, "content": c} for r, c in (("assistant", "a"), ("user", ""))]}
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def prep(log: Path, out: Path, *more: str) -> int:
    words = ["chat", "--input", str(log), "--output", str(out), "--tokenizer", "byte", "--max-reject-rate", "0.2"]
    return main([*words, *more])


def given(folder: Path, name: str = "train") -> dict[str, list[float]]:
    return {row["id"]: [r for r in row["reward"] if r] for row in rows(folder, name)}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_build_rewards_by_replies(log: Path, tmp_path: Path, workers: str) -> None:
    assert prep(log, tmp_path / "out", "--reward", "reply_length=.5", "--workers", workers) == 0
    assert given(tmp_path / "out") == {f"d{i}": [i / 2] for i in range(1, 9)}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["arguments"]["rewards"] == {"reply_length": 0.5}
    assert manifest["arguments"]["zscore"] is False
    found = manifest["statistics"]["rewards"]
    assert (found["actions"], found["unanswered"]) == (16, 8)
    assert found["reply_length"] == pytest.approx(
        {"weight": 0.5, "mean": 4.5, "deviation": np.std(range(1, 9)), "lowest": 1, "highest": 8}
    )
    (reject,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert (reject["id"], reject["line"], reject["field"]) == ("empty", 9, "messages[1].content")


def test_z_scores_are_of_the_train_split(log: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    held.write_text("".join(lines[6:8]))
    log.write_text("".join(lines[:6]))
    out = tmp_path / "out"
    assert prep(log, out, "--validation", str(held), "--reward", "reply_length=2", "--zscore") == 0
    mean, deviation = 3.5, float(np.std(range(1, 7)))
    for name, numbers in (("train", range(1, 7)), ("validation", (7, 8))):
        want = {f"d{i}": [pytest.approx(2 * (i - mean) / deviation, rel=1e-6)] for i in numbers}
        assert given(out, name) == want


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--reward", "sentimental=1"], "did you mean 'sentiment'?"),
        (["--zscore"], "--zscore is about rewards by the partner's replies"),
        (["--reward", "laughter=1", "--zscore"], "the reward laughter is 0 in all 8 places"),
    ],
)
def test_a_build_that_cannot_be_meant_leaves_nothing(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert prep(log, tmp_path / "out", *more) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_corpus_own_rewards_keep_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.prep.test_casino import DEAL

    path = tmp_path / "casino.json"
    path.write_text(json.dumps([DEAL]))
    words = ["casino", "--input", str(path), "--tokenizer", "byte", "--output"]
    assert main([*words, str(tmp_path / "liked"), "--reward", "liked"]) == 0
    assert given(tmp_path / "liked") == {"7:a": [4.0], "7:b": [1.0]}
    assert main([*words, str(tmp_path / "both"), "--reward", "reply_length=1,logged=0.1"]) == 0
    assert given(tmp_path / "both")["7:a"] == [1.0, 6.0, pytest.approx(3.9)]
    capsys.readouterr()
    assert main([*words, str(tmp_path / "no"), "--reward", "likes"]) == 2
    assert "there is no reward 'likes' without a weight; did you mean 'liked'?" in capsys.readouterr().err


def test_pairs_keep_their_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(MESSAGES) + "\n")
    words = ["preferences", "--input", str(path), "--tokenizer", "byte", "--output", str(tmp_path / "out")]
    assert main([*words, "--reward", "reply_length=1"]) == 2
    assert "pairs are rewarded for having been preferred" in capsys.readouterr().err
