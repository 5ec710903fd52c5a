"""Taskmaster-3 and -4 reward sets: a person's thumb up or down for each action of an assistant that calls tools
(Google, https://github.com/google-research-datasets/Taskmaster, TM-3-2020 and TM-4-2024), CC BY 4.0.

One record of the list in such a file (`reward_00.json` and so on; its texts are cut here):

    {"conversation_id": "dlg-ake4",
     "context": "[{\\"role\\": \\"agent\\", \\"text\\": \\"Hi there.\\"},
       {\\"role\\": \\"user\\", \\"text\\": \\"What is on in SF?\\"},
       {\\"role\\": \\"agent\\", \\"api\\": {\\"resolve_location\\": {\\"location\\": \\"SF\\"}}},
       {\\"role\\": \\"api\\", \\"response\\": {\\"resolve_location\\": {\\"location\\": [\\"San Francisco\\"]}}}]",
     "generation": "{\\"role\\": \\"agent\\", \\"api\\": {\\"find_movies\\": {\\"location\\": \\"San Francisco\\"}}}",
     "reward": 1.0}

`context` and `generation` are JSON inside of texts. Every record has an id of its own, so a conversation is known by
its contexts: it is a run of consecutive records (the files of --input behind each other) in which each context begins
with the one before.

Decision: the last context of a conversation and its generation are one trajectory; the records whose generations it
contains are its rated actions. A record whose generation the conversation did not go on with is a trajectory of its
own, its context and its action. So every record is the action of exactly one trajectory, with its own reward; actions
of the contexts that nobody rated there are observation. A call is a tool call, its response a turn of `tool`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from datasets_prep.elements import elements
from datasets_prep.files import refuse_others
from datasets_prep.records import parse
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn


class Record(msgspec.Struct):
    conversation_id: str
    context: str
    generation: str
    reward: float


class Said(msgspec.Struct):
    """One turn of a context, or a generation: a text, or a call (`api`) or its `response` of the form {name: value}."""

    role: Literal["agent", "user", "api"]
    text: str | None = None
    api: dict[str, Any] | None = None
    response: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Rated:
    """A record, read and checked. path: what was said before its action."""

    name: str
    path: tuple[Turn, ...]
    action: Turn  # with its reward
    file: str
    line: int

    def leads_to(self, path: Sequence[Turn]) -> bool:
        """Whether a later context of the conversation says that it went on with the action."""
        n = len(self.path)
        return len(path) > n and path[n] == replace(self.action, reward=0.0, act=False)

    def begins(self, path: tuple[Turn, ...]) -> bool:
        """Whether another record's context begins with this one's; an empty one begins all and so tells nothing."""
        n = len(self.path)
        return path[:n] == self.path and (n > 0 or not path or self.leads_to(path))


def episodes(
    inputs: Sequence[Path], *, seed: int, down: float = 0.0, ends: Literal["cut", "over"] = "cut"
) -> Iterator[Episode | Reject]:
    """The trajectories of the published JSON lists; `seed` is not used, since nothing is drawn.

    down: the reward of a thumb down; a thumb up is 1. ends: what comes after a trajectory's last action. "cut": the
    conversation, which the file does not show, so critics learn nothing of this action; "over": nothing, so its rating
    is all that it is worth. Ids are those of the last record; meta: group (the conversation's first record), up and
    down (how many actions were rated so).
    """
    if not inputs:
        raise InputError("taskmaster needs files: give --input reward_00.json reward_01.json ...")
    return _episodes(inputs, down, ends == "over")


def _episodes(inputs: Sequence[Path], down: float, over: bool) -> Iterator[Episode | Reject]:
    for item in conversations(inputs, down):
        if isinstance(item, Reject):
            yield item
        else:
            yield from _trajectories(item, over)


def conversations(inputs: Sequence[Path], down: float = 0.0) -> Iterator[list[Rated] | Reject]:
    """The records of each conversation, and the records that cannot be read."""
    conversation: list[Rated] = []
    seen: set[str] = set()
    for item in _records(inputs, down):
        if isinstance(item, Reject):
            yield item
        elif item.name in seen:
            yield Reject(item.file, item.line, "conversation_id", "it is that of an earlier record", item.name)
        else:
            seen.add(item.name)
            if conversation and not conversation[-1].begins(item.path):
                yield conversation
                conversation = []
            conversation.append(item)
    if conversation:
        yield conversation


def _trajectories(conversation: Sequence[Rated], over: bool) -> Iterator[Episode]:
    """The trajectories of a conversation, in the order of their last records."""
    last = conversation[-1]
    inside = {
        len(record.path): record for record in conversation if record.leads_to(last.path)
    }  # of two alike, the later
    for record in conversation:
        if inside.get(len(record.path)) is record:
            continue
        rated = {n: other.action for n, other in inside.items()} if record is last else {}
        turns = [rated.get(n, turn) for n, turn in enumerate(record.path)] + [record.action]
        rewards = [turn.reward for turn in turns if turn.is_action]
        meta = {"group": conversation[0].name, "up": rewards.count(1), "down": len(rewards) - rewards.count(1)}
        yield Placed(record.name, tuple(turns), over, meta, file=record.file, line=record.line)


def _records(inputs: Sequence[Path], down: float) -> Iterator[Rated | Reject]:
    records = msgspec.json.Decoder(Record)
    contexts, generations = msgspec.json.Decoder(list[Said]), msgspec.json.Decoder(Said)
    for path in inputs:
        refuse_others(path, "taskmaster")
        for element in elements(path, "records"):
            name = None
            try:
                record = parse(records, element.data)
                name = record.conversation_id
                if not name:
                    raise Reject("", 0, "conversation_id", "it is empty")
                if record.reward not in (0, 1):
                    raise Reject("", 0, "reward", f"it is {record.reward:g}, neither 0 nor 1")
                said = _inside(contexts, record.context, "context")
                turns = tuple(_turn(turn, f"context[{k}]") for k, turn in enumerate(said))
                rated = _inside(generations, record.generation, "generation")
                action = _turn(rated, "generation", record.reward or down)
                if action.role != AGENT:
                    raise Reject("", 0, "generation.role", "it is not the agent's")
            except Reject as fault:
                yield element.at(path.name, fault, name)
                continue
            yield Rated(name, turns, action, path.name, element.line)


def _inside(decoder: msgspec.json.Decoder[Any], text: str, field: str) -> Any:
    """The JSON inside of a text."""
    try:
        return parse(decoder, text.encode("utf-8", "surrogatepass"))
    except Reject as fault:
        raise Reject("", 0, f"{field}.{fault.field}".replace(".[", "[").rstrip("."), fault.reason) from None


def _turn(said: Said, field: str, reward: float | None = None) -> Turn:
    """A turn; an agent's without a reward is observation, since nobody rated it."""
    forms = {"agent": ("text", "api"), "user": ("text",), "api": ("response",)}[said.role]
    given = [name for name in ("text", "api", "response") if getattr(said, name) is not None]
    if len(given) != 1 or given[0] not in forms:
        raise Reject("", 0, field, f"a turn of {said.role!r} needs {' or '.join(forms)} alone, not {given}")
    value = getattr(said, given[0])
    if not value and said.role != "agent":  # a silent assistant can be rated
        raise Reject("", 0, f"{field}.{given[0]}", "it is empty")
    if said.role == "user":
        return Turn(PARTNER, value)
    if said.role == "api":
        return Turn("tool", json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    calls = None if given[0] == "text" else [_call(name, arguments, field) for name, arguments in value.items()]
    return Turn(AGENT, "" if calls else value, reward or 0.0, act=reward is not None, tool_calls=calls)


def _call(name: str, arguments: Any, field: str) -> dict[str, Any]:
    """A call as chat templates know it."""
    if not isinstance(arguments, dict):
        raise Reject("", 0, f"{field}.api.{name}", "its arguments are no object")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}
