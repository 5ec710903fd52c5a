"""Threads of comments with scores, one thread a line, its comments with the fields of Reddit's API and dumps. Nothing
is shipped and no site is asked: bring threads that you may use, under the terms they came with
(https://www.redditinc.com/policies for Reddit's own).

One raw line (cut here into lines):

    {"id": "t3_5yba", "title": "Where to?", "selftext": "First trip.", "author": "ann", "created_utc": 1489000000,
     "comments": [
      {"id": "t1_a1", "parent_id": "t3_5yba", "author": "bob", "body": "Rome.", "score": 12, "created_utc": 1489000100},
      {"id": "t1_a2", "parent_id": "t1_a1", "author": "ann", "body": "In May?", "score": 3, "created_utc": 1489000200},
      {"id": "t1_a3", "parent_id": "t1_a2", "author": "bob", "body": "April.", "score": 7, "created_utc": 1489000300}]}

All fields but `selftext` are required, others are passed over; times are seconds since 1970; ids may stand without
their `t1_` and `t3_`.

Decision: the agent is one author who replies, and each of them in turn (bob with two actions above, ann with one): an
episode is the way from the post down to an author's last word in a branch. The author's comments on it are the
actions, all else is observation, the post always. A comment that two branches share is the action of the earlier one
and observation of the other, so every comment is learned from once. The reward is its score, changed only by options.
What is [deleted] or [removed] stays as observation. One malformed comment costs its thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from datasets_prep.files import refuse_others
from datasets_prep.lines import parts
from datasets_prep.records import parse
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

GONE = ("[deleted]", "[removed]")
POST, COMMENT = "t3_", "t1_"
WAYS = 10**7  # comments on the ways from each of a thread's comments to its post, together


class Comment(msgspec.Struct):
    id: str
    parent_id: str
    author: str
    body: str
    score: float
    created_utc: float


class Thread(msgspec.Struct):
    id: str
    title: str
    author: str
    created_utc: float
    comments: list[Comment]
    selftext: str = ""


def episodes(
    inputs: Sequence[Path],
    *,
    seed: int,
    authors: list[str] = [],  # noqa: B006 - read only; None would hide that it is a list
    baseline: float = 0.0,
    transform: Literal["raw", "log", "sign"] = "raw",
    clip: float | None = None,
) -> Iterator[Episode | Reject]:
    """The episodes of files of threads; `seed` is not used, since nothing is drawn.

    authors: whose replies are actions (default: everybody's); a thread without one of theirs gives no episode. A
    comment's reward is its score less `baseline` (on Reddit 1 is the author's own vote), then as it is, as sign(x)
    log(1 + |x|), or as its sign, then cut to [-clip, clip]. Ids are THREAD/COMMENT, the author's last word; meta: group
    (the thread), author, scores (as they were, one an action), created_utc (of the last word).
    """
    if not inputs:
        raise InputError("reddit needs files of threads: give --input FILE.jsonl")
    if clip is not None and not clip > 0:
        raise InputError(f"--clip is {clip:g}, but must be above 0")
    if not math.isfinite(baseline):
        raise InputError(f"--baseline is {baseline:g}, but must be a finite number")

    def reward(score: float) -> float:
        x = score - baseline
        if transform == "log":
            x = math.copysign(math.log1p(abs(x)), x)
        elif transform == "sign":
            x = float((x > 0) - (x < 0))
        return x if clip is None else max(-clip, min(clip, x))

    return _episodes(inputs, frozenset(authors), reward)


def _episodes(
    inputs: Sequence[Path], authors: frozenset[str], reward: Callable[[float], float]
) -> Iterator[Episode | Reject]:
    decoder = msgspec.json.Decoder(Thread)
    for path in inputs:
        refuse_others(path, "reddit")
        for number, line in (line for part in parts(path, "") for line in part.lines()):
            name = None
            try:
                thread = parse(decoder, line)
                name = thread.id.removeprefix(POST)
                ways = _ways(thread, authors)
            except Reject as fault:
                yield Reject(path.name, number, fault.field, fault.reason, fault.id or name)
                continue
            learned: set[int] = set()
            for way in ways:
                turns, meta = _episode(thread, way, learned, reward)
                id = f"{name}/{thread.comments[way[-1]].id.removeprefix(COMMENT)}"
                yield Placed(id, turns, True, {"group": name, **meta}, file=path.name, line=number)


def _gone(comment: Comment) -> bool:
    return comment.author in GONE or comment.body.strip() in GONE


def _ways(thread: Thread, authors: frozenset[str]) -> list[list[int]]:
    """From the post down to every last word of an author, as places in `comments`; the earliest last word first."""
    parents = _parents(thread)
    comments = thread.comments
    replies = [i for i, comment in enumerate(comments) if not _gone(comment)]
    if not replies:
        raise Reject("", 0, "comments", "no reply to learn from")
    replies = [i for i in replies if not authors or comments[i].author in authors]
    up: dict[int, list[int]] = {}
    answered: set[int] = set()  # by a later word of the same author
    for i in replies:
        up[i] = _upwards(parents, i)
        answered.update(k for k in up[i][1:] if comments[k].author == comments[i].author)
    last = sorted((i for i in replies if i not in answered), key=lambda i: (comments[i].created_utc, i))
    return [up[i][::-1] for i in last]


def _upwards(parents: Sequence[int | None], i: int) -> list[int]:
    """A comment and those above it, up to the post."""
    way: list[int] = []
    at: int | None = i
    while at is not None:
        way.append(at)
        at = parents[at]
    return way


def _parents(thread: Thread) -> list[int | None]:
    """The place of each comment's parent, None for the post. Raises Reject for whatever is malformed."""
    _check(thread, "")
    post = POST + thread.id.removeprefix(POST)
    place: dict[str, int] = {}
    for i, comment in enumerate(thread.comments):
        _check(comment, f"comments[{i}].")
        if place.setdefault(comment.id.removeprefix(COMMENT), i) != i:
            raise Reject("", 0, f"comments[{i}].id", f"{comment.id!r} is that of an earlier comment")
    parents: list[int | None] = []
    for i, comment in enumerate(thread.comments):
        field, parent = f"comments[{i}].parent_id", comment.parent_id
        if post in (parent, POST + parent):
            parents.append(None)
        elif parent.removeprefix(COMMENT) in place:
            parents.append(place[parent.removeprefix(COMMENT)])
        else:
            raise Reject("", 0, field, f"{parent!r} is neither the post nor a comment of this thread")
        above = thread if parents[i] is None else thread.comments[parents[i] or 0]
        if comment.created_utc < above.created_utc:
            raise Reject("", 0, f"comments[{i}].created_utc", "it is earlier than its parent's")
    _refuse_deep(parents)
    return parents


def _refuse_deep(parents: Sequence[int | None]) -> None:
    """Reject where comments lead in a circle, or stand so deep below each other that all ways to the post together,
    which are looked at one by one, are too long."""
    depth: dict[int | None, int] = {None: 0}
    for i in range(len(parents)):
        way: list[int] = []
        at: int | None = i
        while at not in depth:
            way.append(at)  # type: ignore[arg-type]  # None is in `depth`
            depth[at] = -1
            at = parents[at]  # type: ignore[index]
        if depth[at] < 0:
            raise Reject("", 0, f"comments[{i}].parent_id", "it leads in a circle, never to the post")
        for below, comment in enumerate(reversed(way), 1):
            depth[comment] = depth[at] + below
    if sum(depth.values()) > WAYS:
        raise Reject("", 0, "comments", f"too many below each other: more than {WAYS:,} steps from all to the post")


def _check(item: Thread | Comment, at: str) -> None:
    for field in ("id", "author", "title" if isinstance(item, Thread) else "body"):
        if not getattr(item, field).strip():
            raise Reject("", 0, f"{at}{field}", "it is empty")
    if item.created_utc < 0:
        raise Reject("", 0, f"{at}created_utc", f"{item.created_utc:g} is no time in seconds since 1970")


def _episode(
    thread: Thread, way: Sequence[int], learned: set[int], reward: Callable[[float], float]
) -> tuple[tuple[Turn, ...], dict[str, Any]]:
    """Turns and meta; `learned` are the actions of earlier episodes, and gains this one's."""
    last = thread.comments[way[-1]]
    turns = [Turn(PARTNER, f"{thread.title}\n\n{thread.selftext}".strip())]
    scores = []
    for i in way:
        comment = thread.comments[i]
        if comment.author != last.author or _gone(comment):
            turns.append(Turn(PARTNER, comment.body))
        elif i in learned:
            turns.append(Turn(AGENT, comment.body, act=False))
        else:
            turns.append(Turn(AGENT, comment.body, reward(comment.score)))
            scores.append(comment.score)
            learned.add(i)
    return tuple(turns), {"author": last.author, "scores": scores, "created_utc": last.created_utc}
