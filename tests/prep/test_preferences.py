"""Pairs: TRL's forms and hh-rlhf's text, rated actions, compared dialogues; what is refused; a pair stays one."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_prep.build import Options, build
from datasets_prep.preferences import episodes
from datasets_prep.rejects import Placed, Reject
from datasets_prep.split import group
from ilql.rows import Rows
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn
from tests.prep import test_taskmaster
from tests.prep.test_taskmaster import ANSWER, CALL, OTHER, SAYS, START, record

USER, HELLO, NO = ({"role": r, "content": c} for r, c in ((PARTNER, "hi"), (AGENT, "Hello!"), (AGENT, "No.")))
MESSAGES = {"prompt": [USER], "chosen": [HELLO], "rejected": [NO]}
SPOKEN = {"chosen": "\n\nHuman: hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: hi\n\nAssistant: No."}
PAIR = [[Turn(PARTNER, "hi"), Turn(AGENT, "Hello!", 1.0)], [Turn(PARTNER, "hi"), Turn(AGENT, "No.")]]


def read(tmp_path: Path, *records: Any, **options: Any) -> list[Episode | Reject]:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return list(episodes([path], **options))


@pytest.mark.parametrize(
    "line",
    [
        MESSAGES,
        {"chosen": [USER, HELLO], "rejected": [USER, NO]},
        {"prompt": "hi", "chosen": "Hello!", "rejected": "No."},
        {"chosen": "hi Hello!", "rejected": "hi No."},
        SPOKEN,
        {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " Hello!", "rejected": " No."},
    ],
    ids=["prompt", "whole", "texts", "shared beginning", "hh-rlhf", "hh-rlhf with its prompt"],
)
def test_every_form_is_the_same_pair(line: Any, tmp_path: Path) -> None:
    chosen, rejected = read(tmp_path, line)
    assert isinstance(chosen, Placed)
    assert isinstance(rejected, Placed)
    assert [list(chosen.turns), list(rejected.turns)] == PAIR
    assert chosen.pair == rejected.pair == "pairs-1"
    assert (chosen.id, rejected.id) == ("pairs-1:chosen", "pairs-1:rejected")
    assert chosen.terminated is rejected.terminated is True
    assert (chosen.file, chosen.line) == ("pairs.jsonl", 1)


def test_what_was_said_before_is_observation_and_only_the_last_reply_is_judged(tmp_path: Path) -> None:
    spoken = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: {}\n\nHuman: d\n\nAssistant: e"
    chosen, rejected = read(tmp_path, {"chosen": spoken.format("x"), "rejected": spoken.format("y"), "id": 7})
    assert isinstance(chosen, Episode)
    assert isinstance(rejected, Episode)
    assert chosen.turns[1] == Turn(AGENT, "b", act=False)
    assert chosen.turns[3:] == (Turn(AGENT, "x"), Turn(PARTNER, "d"), Turn(AGENT, "e", 1.0))
    assert [turn.reward for turn in rejected.turns] == [0.0] * 6
    assert chosen.pair == "7"


def test_a_shared_beginning_is_cut_between_words(tmp_path: Path) -> None:
    chosen, rejected = read(tmp_path, {"chosen": "The sky is blue.", "rejected": "The sky is blond."})
    assert isinstance(chosen, Episode)
    assert isinstance(rejected, Episode)
    assert [[t.text for t in one.turns] for one in (chosen, rejected)] == [
        ["The sky is", "blue."],
        ["The sky is", "blond."],
    ]


def test_scores_tools_and_meta_are_kept(tmp_path: Path) -> None:
    more = {"tools": [{"name": "find"}], "meta": {"from": "us"}, "score_chosen": 4, "score_rejected": 1.5}
    chosen, rejected = read(tmp_path, MESSAGES | more)
    assert isinstance(chosen, Episode)
    assert isinstance(rejected, Episode)
    assert chosen.tools == [{"name": "find"}]
    assert (chosen.meta["score"], rejected.meta["score"], chosen.meta["from"]) == (4, 1.5, "us")


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ({"chosen": "a"}, "", "missing required field `rejected`"),
        ({"rejected": "a"}, "", "missing required field `chosen`"),
        (
            {"chosen": [USER, HELLO], "rejected": [{**USER, "content": "ha"}, NO]},
            "chosen",
            "the prompts differ: turn 0",
        ),
        ({**SPOKEN, "rejected": "\n\nHuman: ho\n\nAssistant: No."}, "chosen", "the prompts differ: turn 0"),
        (SPOKEN | {"rejected": SPOKEN["chosen"]}, "rejected", "a tie"),
        ({"prompt": "hi", "chosen": "a ", "rejected": " a"}, "rejected", "a tie"),
        (MESSAGES | {"rejected": [HELLO]}, "rejected", "a tie"),
        ({**SPOKEN, "rejected": "\n\nHuman: hi\n\nAssistant: "}, "rejected", "an empty reply"),
        ({**SPOKEN, "rejected": "\n\nHuman: hi"}, "rejected", "an empty reply"),
        ({"prompt": "hi", "chosen": "", "rejected": "a"}, "chosen", "an empty reply"),
        (MESSAGES | {"chosen": []}, "chosen", "an empty reply"),
        (MESSAGES | {"chosen": [HELLO, USER]}, "chosen", "ends with a turn that is not the agent's"),
        (MESSAGES | {"chosen": "Hello!"}, "rejected", "both be texts, or both lists"),
        (MESSAGES | {"prompt": "hi"}, "prompt", "a text beside lists of messages"),
        (MESSAGES | {"chosen": [{**HELLO, "reward": 1}]}, "chosen[0].reward", "a pair has none"),
        (MESSAGES | {"chosen": [{"role": "agent", "content": "x"}]}, "chosen[0].role", "'agent' is none of"),
        (MESSAGES | {"chosn": []}, "chosn", "did you mean 'chosen'"),
    ],
)
def test_a_fault_costs_one_pair(line: Any, field: str, reason: str, tmp_path: Path) -> None:
    *good, fault = read(tmp_path, MESSAGES, line)
    assert len(good) == 2
    assert isinstance(fault, Reject)
    assert (fault.file, fault.line, fault.field, fault.id) == ("pairs.jsonl", 2, field, "pairs-2")
    assert reason in fault.reason


def test_parquet_is_read_and_a_column_that_is_none_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([MESSAGES]), tmp_path / "a.parquet")
    assert [one.pair for one in episodes([tmp_path / "a.parquet"]) if isinstance(one, Episode)] == ["a-1"] * 2
    pq.write_table(pa.Table.from_pylist([{"chosen": "a", "bad": "b"}]), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="preferences need 'rejected'"):
        list(episodes([tmp_path / "b.parquet"]))
    with pytest.raises(InputError, match="python -m datasets_prep preferences"):
        build(Options("chat", tmp_path / "data", [tmp_path / "a.parquet"]))


# ---- pairs in datasets -----------------------------------------------------------------------------------------------


def pairs_of(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """The rows of each pair, by split."""
    found = {}
    for split in ("train", "validation"):
        found[split] = defaultdict(list)
        rows = Rows(folder, split)
        for i in range(len(rows)):
            found[split][rows[i]["pair"]].append(rows[i])
    return found


def test_no_split_parts_a_pair_nor_two_pairs_of_one_conversation(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [
        {
            "prompt": [{**USER, "content": f"question {k // 3}"}],
            "chosen": [HELLO],
            "rejected": [{**NO, "content": f"{k}"}],
        }
        for k in range(900)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    build(Options("preferences", tmp_path / "data", [path], tokenizer="byte", validation="0.3"))
    found = pairs_of(tmp_path / "data")
    assert sum(map(len, found.values())) == 900
    assert 150 < len(found["validation"]) < 400
    for some in found.values():
        assert all(sorted(sum(row["reward"]) for row in two) == [0, 1] for two in some.values())
    conversations = [{json.loads(two[0]["meta"])["group"] for two in some.values()} for some in found.values()]
    assert not conversations[0] & conversations[1]
    assert sum(map(len, conversations)) == 300


def test_what_costs_one_of_a_pair_costs_the_other(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    long = {**NO, "content": "x" * 60}
    lines = [MESSAGES, MESSAGES | {"rejected": [long]}, MESSAGES | {"chosen": [long]}, MESSAGES | {"id": "pairs-1"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings: dict[str, Any] = {"tokenizer": "byte", "max_length": 30, "max_reject_rate": 1.0}
    build(Options("preferences", tmp_path / "data", [path], **settings))
    assert [*pairs_of(tmp_path / "data")["train"]] == ["pairs-1"]
    faults = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert len(faults) == 6
    assert [fault["id"] for fault in faults[:2]] == ["pairs-2:chosen", "pairs-2:rejected"]
    assert "the other dialogue of its pair is no evidence" in faults[0]["reason"]
    assert "longer than --max-length" in faults[1]["reason"]


LONG, LONGER = ({**NO, "content": letter * 30} for letter in "xy")
BEFORE = {"prompt": [USER, HELLO] * 3 + [USER]}


@pytest.mark.parametrize(
    ("mode", "line", "reason"),
    [
        ("front", BEFORE | {"chosen": [HELLO], "rejected": [LONG]}, "cut the two dialogues of its pair differently"),
        (
            "tail",
            {"prompt": [USER], "chosen": [HELLO, USER, LONG], "rejected": [{**NO, "content": "Hallo!"}, USER, LONGER]},
            "reply was cut off",
        ),
    ],
)
def test_no_cut_leaves_a_pair_with_two_beginnings_or_without_its_reply(
    mode: str, line: Any, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(MESSAGES) + "\n" + json.dumps(line))
    settings: dict[str, Any] = {"tokenizer": "byte", "max_length": 45, "overlong": mode, "max_reject_rate": 1.0}
    build(Options("preferences", tmp_path / "data", [path], **settings))
    assert [*pairs_of(tmp_path / "data")["train"]] == ["pairs-1"]
    faults = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert len(faults) == 2
    assert all(reason in fault["reason"] for fault in faults), faults


# ---- rated actions ---------------------------------------------------------------------------------------------------


def test_a_context_with_both_verdicts_gives_its_pairs(tmp_path: Path) -> None:
    path = tmp_path / "reward_00.json"
    more = [
        record("r5", [*START, CALL, ANSWER], {"role": "agent", "text": "Nope!"}, 1.0),
        record("s1", START, OTHER, 0.0),  # the first context again, in another conversation
        record("s2", START, OTHER, 0.0),
        record("s3", [*START, OTHER], SAYS, 0.0),
    ]
    path.write_text(json.dumps([*test_taskmaster.CONVERSATION, *more]))
    found = [one for one in episodes([path]) if isinstance(one, Episode)]
    assert [one.pair for one in found[::2]] == [one.pair for one in found[1::2]] == ["r1/s1", "r3/r2", "r5/r2"]
    assert [one.total_reward for one in found] == [1, 0] * 3
    assert len({group(one.id, one.meta) for one in found}) == 1
    for chosen, rejected in zip(found[::2], found[1::2], strict=True):
        assert chosen.turns[:-1] == rejected.turns[:-1] != ()
        assert not any(turn.is_action for turn in chosen.turns[:-1])
        assert chosen.turns[-1].is_action


def test_an_action_with_either_verdict_is_a_tie(tmp_path: Path) -> None:
    path = tmp_path / "reward_00.json"
    path.write_text(json.dumps([record("a", START, OTHER, 1.0), record("b", START, OTHER, 0.0)]))
    (fault,) = episodes([path])
    assert isinstance(fault, Reject)
    assert (fault.field, fault.reason) == ("reward", "a tie: the same action was liked and disliked")


def test_the_published_ratings(corpora: Callable[[str], Path]) -> None:
    found = list(episodes(sorted(corpora("taskmaster/tm4").glob("*.json"))))
    assert len(found) == 2 * 614
    groups = Counter(group(one.id, one.meta) for one in found if isinstance(one, Episode))
    assert len(groups) == 180


# ---- compared dialogues ----------------------------------------------------------------------------------------------


def test_dialogues_are_compared_by_their_returns() -> None:
    found = [one for one in episodes([], seed=1000, of="randomwalks", ranked=4) if isinstance(one, Episode)]
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert len(pairs) > 300
    for chosen, rejected in pairs:
        assert chosen.pair == rejected.pair
        assert chosen.turns[0] == rejected.turns[0]
        assert chosen.meta["return"] > rejected.meta["return"]
        assert (chosen.total_reward, rejected.total_reward) == (1, 0)
        assert chosen.meta["group"] == rejected.meta["group"]
    blocks = defaultdict(set)
    for one in found:
        blocks[one.meta["group"]].add(tuple(turn.text for turn in one.turns))
    assert max(map(len, blocks.values())) == 4


def test_a_noisy_labeler_is_bradley_terrys() -> None:
    """Of pairs that differ by d, the better is preferred in a share sigmoid(d / noise)."""
    noise = 0.3
    found = [
        one for one in episodes([], seed=1000, of="randomwalks", ranked=20, noise=noise) if isinstance(one, Episode)
    ]
    gains = [one.meta["return"] - other.meta["return"] for one, other in zip(found[::2], found[1::2], strict=True)]
    sure = [abs(gain) for gain in gains if gain]
    expected = sum(1 / (1 + math.exp(-gain / noise)) for gain in sure)
    spread = math.sqrt(sum(math.exp(-g / noise) / (1 + math.exp(-g / noise)) ** 2 for g in sure))
    right = sum(gain > 0 for gain in gains)
    assert abs(right - expected) < 4 * spread
    assert right / len(sure) < 0.95


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"of": "nothing"}, "--of nothing: no corpus with rewards"),
        ({"of": "preferences"}, "--of preferences: no corpus with rewards"),
        ({"of": "maze", "ranked": 1}, "--ranked is 1"),
        ({"of": "maze", "noise": -1.0}, "--noise -1.0"),
    ],
)
def test_bad_options(options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        list(episodes([], **options))
