"""Threads with scores: whose comments are actions, once each, what they are paid, and rejects."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from datasets_prep import reddit
from datasets_prep.reddit import episodes
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn
from tests.prep.test_visdial import changed


def raw_line() -> dict[str, Any]:
    block = re.search(r"^    (\{.*?\]\})$", reddit.__doc__ or "", re.MULTILINE | re.DOTALL)
    assert block
    found: dict[str, Any] = json.loads(block[1])
    return found


def comment(id: str, parent: str, author: str, score: float = 1, at: float = 2000, **more: Any) -> dict[str, Any]:
    fields = {"id": id, "parent_id": parent, "author": author, "body": f"{author} {id}", "score": score}
    return fields | {"created_utc": at, "subreddit": "travel"} | more


def thread(*comments: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "p", "title": "T", "author": "ann", "created_utc": 1000, "comments": list(comments)} | more


def read(tmp_path: Path, *threads: Any, **options: Any) -> list[Episode | Reject]:
    path = tmp_path / "threads.jsonl"
    path.write_text("".join(json.dumps(t) + "\n" for t in threads))
    return list(episodes([path], seed=0, **options))


def said(episode: Episode | Reject) -> str:
    """A dialogue as words: the agent's actions in capitals with their reward, its other turns in brackets."""
    assert isinstance(episode, Episode), episode
    words = []
    for turn in episode.turns:
        text = turn.text.replace(" ", "-")
        if turn.role == PARTNER:
            assert not turn.reward
            words.append(text)
        else:
            words.append(f"{text.upper()}={turn.reward:g}" if turn.act else f"[{text}]")
    return " ".join(words)


def test_the_line_of_the_docstring(tmp_path: Path) -> None:
    ann, bob = read(tmp_path, raw_line())
    assert bob == Placed(
        "5yba/a3",
        (
            Turn(PARTNER, "Where to?\n\nFirst trip."),
            Turn(AGENT, "Rome.", 12.0),
            Turn(PARTNER, "In May?"),
            Turn(AGENT, "April.", 7.0),
        ),
        True,
        {"group": "5yba", "author": "bob", "scores": [12, 7], "created_utc": 1489000300},
        file="threads.jsonl",
        line=1,
    )
    assert isinstance(ann, Episode)
    assert (ann.id, ann.meta["author"]) == ("5yba/a2", "ann")
    assert ann.turns == (
        *(Turn(PARTNER, t) for t in ("Where to?\n\nFirst trip.", "Rome.")),
        Turn(AGENT, "In May?", 3.0),
    )


def test_branches_share_a_beginning_and_every_comment_is_an_action_once(tmp_path: Path) -> None:
    comments = [
        comment("f", "c", "bob", 6, 9000),  # the order of the list is not that of the tree
        comment("a", "p", "bob", 1, 2000),
        comment("b", "a", "cid", 2, 3000),
        comment("c", "t1_a", "dee", 3, 4000),
        comment("d", "b", "bob", 4, 5000),
        comment("e", "t3_p", "cid", 5, 2500),
    ]
    found = read(tmp_path, thread(*comments))
    assert [said(episode) for episode in found] == [
        "T CID-E=5",
        "T bob-a CID-B=2",
        "T bob-a DEE-C=3",
        "T BOB-A=1 cid-b BOB-D=4",
        "T [bob-a] dee-c BOB-F=6",
    ]
    assert [e.id for e in found if isinstance(e, Episode)] == ["p/e", "p/b", "p/c", "p/d", "p/f"]
    assert [said(e) for e in read(tmp_path, thread(*comments), authors=["cid"])] == ["T CID-E=5", "T bob-a CID-B=2"]
    assert read(tmp_path, thread(*comments), authors=["eve"]) == []


def test_what_is_deleted_is_observation(tmp_path: Path) -> None:
    comments = [
        comment("a", "p", "bob", 1),
        comment("b", "a", "[deleted]", 2, body="[removed]"),
        comment("c", "b", "bob", 3, body="[deleted]"),
        comment("d", "c", "[deleted]", 4),
    ]
    (found,) = read(tmp_path, thread(*comments))
    assert said(found) == "T BOB-A=1"
    (found,) = read(tmp_path, thread(*comments, comment("e", "d", "bob", 5)))
    assert said(found) == "T BOB-A=1 [removed] [deleted] [deleted]-d BOB-E=5"


@pytest.mark.parametrize(
    ("options", "paid"),
    [
        ({}, [10, 1, 0, -3]),
        ({"baseline": 1.0}, [9, 0, -1, -4]),
        ({"transform": "sign"}, [1, 1, 0, -1]),
        ({"transform": "sign", "baseline": 1.0}, [1, 0, -1, -1]),
        ({"transform": "log"}, [math.log(11), math.log(2), 0, -math.log(4)]),
        ({"clip": 2.0}, [2, 1, 0, -2]),
        ({"baseline": 1.0, "transform": "log", "clip": 1.5}, [1.5, 0, -math.log(2), -1.5]),
    ],
)
def test_transforms_in_their_order(tmp_path: Path, options: dict[str, Any], paid: list[float]) -> None:
    scores = [10, 1, 0, -3]
    comments = [comment(f"c{k}", "p", f"u{k}", score, 2000 + k) for k, score in enumerate(scores)]
    found = [e for e in read(tmp_path, thread(*comments), **options) if isinstance(e, Episode)]
    assert [episode.total_reward for episode in found] == pytest.approx(paid, abs=1e-12)
    assert [episode.meta["scores"] for episode in found] == [[score] for score in scores]


GOOD = thread(comment("a", "p", "bob", at=2000), comment("b", "a", "cid", at=3000))


@pytest.mark.parametrize(
    ("where", "value", "field", "reason"),
    [
        ("comments.1.score", None, "comments[1]", "missing required field `score`"),
        ("comments.1.score", "5", "comments[1].score", "Expected `float`, got `str`"),
        ("comments.1.score", True, "comments[1].score", "`bool`"),
        ("comments.1.score", float("nan"), "comments[1].score", "NaN is no finite number"),
        ("comments.1.created_utc", None, "comments[1]", "missing required field `created_utc`"),
        ("comments.1.created_utc", "2017-03-08", "comments[1].created_utc", "`str`"),
        ("comments.1.created_utc", -5, "comments[1].created_utc", "-5 is no time in seconds"),
        ("comments.1.created_utc", 1999, "comments[1].created_utc", "earlier than its parent's"),
        ("comments.0.created_utc", 999, "comments[0].created_utc", "earlier than its parent's"),
        ("comments.1.id", "", "comments[1].id", "it is empty"),
        ("comments.1.id", None, "comments[1]", "missing required field `id`"),
        ("comments.1.id", "t1_a", "comments[1].id", "'t1_a' is that of an earlier comment"),
        ("comments.1.parent_id", "z", "comments[1].parent_id", "'z' is neither the post nor a comment of this thread"),
        ("comments.1.parent_id", "t3_other", "comments[1].parent_id", "neither the post nor"),
        ("comments.1.parent_id", "b", "comments[1].parent_id", "it leads in a circle"),
        ("comments.1.body", "  ", "comments[1].body", "it is empty"),
        ("comments.1.author", None, "comments[1]", "missing required field `author`"),
        ("comments", [], "comments", "no reply to learn from"),
        ("id", None, "", "missing required field `id`"),
        ("id", 7, "id", "`int`"),
        ("id", " ", "id", "it is empty"),
        ("title", "", "title", "it is empty"),
        ("created_utc", "today", "created_utc", "`str`"),
    ],
)
def test_a_fault_costs_one_thread(tmp_path: Path, where: str, value: Any, field: str, reason: str) -> None:
    *before, fault, after, again = read(tmp_path, GOOD, changed(GOOD, where, value), GOOD)
    assert [said(e) for e in before] == [said(e) for e in (after, again)] == ["T BOB-A=1", "T bob-a CID-B=1"]
    assert isinstance(fault, Reject)
    assert (fault.file, fault.line, fault.field) == ("threads.jsonl", 2, field)
    assert reason in fault.reason


def test_a_circle_far_from_the_post(tmp_path: Path) -> None:
    loop = [comment("x", "y", "eve"), comment("y", "x", "fay"), comment("a", "p", "bob")]
    (fault,) = read(tmp_path, thread(*loop))
    assert isinstance(fault, Reject)
    assert (fault.field, fault.id) == ("comments[0].parent_id", "p")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"clip": 0.0}, "--clip is 0"),
        ({"clip": float("nan")}, "--clip is nan"),
        ({"baseline": float("inf")}, "--baseline is inf"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        episodes([tmp_path / "x"], seed=0, **options)
    with pytest.raises(InputError, match=r"--input FILE\.jsonl"):
        episodes([], seed=0)
