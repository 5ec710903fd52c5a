"""Dialogue logs in the general format: JSON Lines, one dialogue a line, chat messages with rewards.

One raw line:
    {"id": "42", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "reward": 1}]}

Fields of a line: `messages`; optionally `id`, `tools`, `reward` (added to the agent's last message's), `terminated`
(default true; false means that the log was cut off) and `meta`. Fields of a message: `role`, `content`; optionally
`tool_calls`, `reward`, `loss_mask` (0: not to be learned from), `logp`; `name` and `tool_call_id` are allowed, as in
others' logs, but not encoded. Licence and home page: your own.

Decision: every line is parsed by itself against a typed schema. Types are strict (a reward "1" or true is a fault, not
a number), unknown fields and fields given twice are faults, and a fault costs one line, never the file. A blank line is
no dialogue.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from datasets_prep import lines
from datasets_prep.check import number
from datasets_prep.lines import Part
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zX", b"PK\x03\x04")  # gzip, zstd, bzip2, xz, zip
ROLES = ("system", "user", "assistant", "tool")


class Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reward: float | None = None
    loss_mask: Literal[0, 1] | None = None
    logp: float | list[float | None] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class Dialogue(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[Message]
    id: str | int | None = None
    tools: list[dict[str, Any]] | None = None
    reward: float | None = None
    terminated: bool = True
    meta: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(Dialogue).decode
FIELDS = tuple(dict.fromkeys([*Dialogue.__struct_fields__, *Message.__struct_fields__]))


def episodes(inputs: list[Path], *, seed: int = 0, agent_role: str = AGENT) -> Iterator[Episode | Reject]:
    """The dialogues of JSON Lines files, one episode or reject a line that is not blank.

    agent_role: the role that the policy is to play; its messages become the agent's, and `assistant`'s the partner's.
    Raises InputError for a file that cannot be read or holds no line. seed is not used.
    """
    for part in file_parts(inputs):
        yield from read_part(part, agent_role=agent_role)


def file_parts(inputs: list[Path]) -> Iterator[Part]:
    """The files in parts, each of which can be read by itself. Raises InputError as `episodes` does."""
    if not inputs:
        raise InputError("chat reads log files: give --input FILE.jsonl")
    stems = Counter(path.stem for path in inputs)
    for k, path in enumerate(inputs, 1):
        if path.is_dir():
            raise InputError(f"{path} is a folder; give its files")
        with path.open("rb") as file:
            _refuse_other_forms(path, file.read(4))
        stem = path.stem if stems[path.stem] == 1 else f"{path.stem}.{k}"  # a folder a day, with the same names inside
        empty = True
        for part in lines.parts(path, stem):
            empty = empty and part.blank
            yield part
        if empty:
            raise InputError(f"{path} is empty: it holds no dialogue")


def read_part(part: Part, *, agent_role: str = AGENT) -> Iterator[Episode | Reject]:
    """The dialogues of a part of a file."""
    for at, line in part.lines():
        try:
            yield _episode(line, (part.path.name, at), f"{part.stem}-{at}", agent_role)
        except Reject as fault:
            yield Reject(part.path.name, at, fault.field, fault.reason, fault.id)


def _refuse_other_forms(path: Path, begins: bytes) -> None:
    """A compressed file, whatever its name, and UTF-16 are faults of the file, not of each of its lines."""
    if path.suffix in (".gz", ".zst", ".bz2", ".xz", ".zip") or begins.startswith(COMPRESSED):
        raise InputError(f"{path} is compressed; unpack it first")
    if begins.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16; convert it to UTF-8")


def _episode(line: bytes, place: tuple[str, int], fallback: str, agent_role: str) -> Episode:
    log = _parse(line)
    name = fallback if log.id is None else str(log.id)
    turns = []
    for k, message in enumerate(log.messages):
        try:
            turns.append(_turn(message, agent_role))
        except Reject as fault:
            raise Reject("", 0, f"messages[{k}].{fault.field}", fault.reason, name) from None
    if log.reward:
        last = max((k for k, turn in enumerate(turns) if turn.role == AGENT), default=None)
        if last is None:
            raise Reject("", 0, "reward", "the dialogue has a reward but no message of the agent", name)
        try:
            number(log.reward, "reward")
        except Reject as fault:
            raise Reject("", 0, fault.field, fault.reason, name) from None
        if not turns[last].act:
            raise Reject("", 0, "reward", "goes to the last message of the agent, which has loss_mask 0", name)
        turns[last] = replace(turns[last], reward=turns[last].reward + log.reward)
    return Placed(name, turns, log.terminated, log.meta or {}, log.tools, file=place[0], line=place[1])


def _turn(message: Message, agent_role: str) -> Turn:
    if message.role not in (*ROLES, agent_role):
        near = difflib.get_close_matches(message.role, (*ROLES, agent_role), 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; --agent-role names the agent's"
        raise Reject(
            "", 0, "role", f"{message.role!r} is none of {', '.join(dict.fromkeys((*ROLES, agent_role)))}{hint}"
        )
    role = message.role
    if role == agent_role:
        role = AGENT
    elif role == AGENT:
        role = PARTNER
    if message.content is None and not message.tool_calls:
        raise Reject("", 0, "content", "missing or null, which only a message with tool_calls may have")
    if message.tool_calls and role != AGENT:
        raise Reject("", 0, "tool_calls", "on a message that is not the agent's")
    if message.loss_mask and role != AGENT:
        raise Reject("", 0, "loss_mask", "1 on a message that is not the agent's")
    if message.reward and role != AGENT:
        raise Reject(
            "", 0, "reward", f"on a message of {message.role!r}; only the agent's, {agent_role!r}, may have one"
        )
    if message.logp is not None and role != AGENT:
        raise Reject("", 0, "logp", "on a message that is not the agent's")
    return Turn(
        role=role,
        text=message.content or "",
        reward=message.reward or 0.0,
        logp=message.logp,
        act=message.loss_mask != 0,
        tool_calls=message.tool_calls or None,
    )


class _Twice(Exception):
    """A field that one object has twice: JSON leaves open which of the two counts."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for k, name in enumerate(names) if name in names[:k]))
    return found


def _parse(line: bytes) -> Dialogue:
    try:
        log = _decode(line)
        json.loads(line, object_pairs_hook=_once, parse_int=str, parse_float=str)  # msgspec takes the last of two
        return log
    except _Twice as fault:
        raise Reject("", 0, str(fault), "given twice in one object; leave one out") from None
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except msgspec.DecodeError as error:
        raise _not_finite(line) or Reject("", 0, "", f"not a JSON object on one line ({error})") from None
    except UnicodeDecodeError:
        raise Reject("", 0, "", "not valid UTF-8") from None
    except RecursionError:
        raise Reject("", 0, "", "nested too deeply") from None


def _not_finite(line: bytes) -> Reject | None:
    """The fault of a line that would be JSON but for NaN or Infinity, which many programs write; None for others."""
    try:
        value = json.loads(line.decode(), parse_constant=_Constant, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    waiting = [("", value)]
    while waiting:
        path, value = waiting.pop(0)
        if isinstance(value, _Constant):
            return Reject("", 0, path, f"{value.name} is no finite number")
        if isinstance(value, dict):
            waiting += [(f"{path}.{key}".lstrip("."), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}[{k}]", inner) for k, inner in enumerate(value)]
    return None


@dataclass(frozen=True)
class _Constant:
    """NaN, Infinity or -Infinity where a number should stand."""

    name: str


def _explain(message: str) -> Reject:
    """msgspec's "what - at `$.path`" as field and reason, with the near name for an unknown field."""
    what, _, where = message.partition(" - at `$")
    field = where.strip("`").lstrip(".")
    if field.endswith("content") and what.endswith("got `array`"):
        return Reject("", 0, field, "a list of parts, but only text can be read; join the parts to one string")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL)
    if unknown is None:
        return Reject("", 0, field, what)
    name = unknown.group(1)
    near = difflib.get_close_matches(name, FIELDS, 1)
    hint = f"did you mean {near[0]!r}?" if near else "put facts of your own under 'meta'"
    return Reject("", 0, f"{field}.{name}".lstrip("."), f"unknown field {name!r}; {hint}")
