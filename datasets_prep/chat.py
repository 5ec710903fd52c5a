"""Dialogue logs in the general format: JSON Lines, one dialogue a line, chat messages with rewards.

One raw line:
    {"id": "42", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "reward": 1}]}

Fields of a line: `messages`; optionally `id`, `tools`, `reward` (added to the agent's last message's), `terminated`
(default true; false means that the log was cut off) and `meta`. Fields of a message: `role`, `content`; optionally
`tool_calls`, `reward`, `loss_mask` (0: not to be learned from), `logp`, `name` and `tool_call_id` (written where a chat
template asks for them). A line may also be a record of TRL (`prompt` and `completion`, with `reward` or `label`) or of
trlx (`samples` and `rewards`); see `datasets_prep/forms.py`. Licence and home page: your own.

Decision: every line is parsed by itself against a typed schema. Types are strict (a reward "1" or true is a fault, not
a number), unknown fields and fields given twice are faults, and a fault costs one line, never the file. A blank line is
no dialogue. A file may be compressed by gzip or zstd, or be Parquet, whatever its name; a row of a table is a line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from datasets_prep import lines, parquet
from datasets_prep.check import number
from datasets_prep.files import PARQUET, beginning, refuse_others, stems
from datasets_prep.forms import FORMS, Dialogue, Log, Message, Samples, check_columns, logs, tools
from datasets_prep.layout import called
from datasets_prep.lines import Part
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

ROLES = ("system", "user", "assistant", "tool")


FIELDS = FORMS[Dialogue][1]


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
    for path, stem in zip(inputs, stems(inputs), strict=True):
        refuse_others(path, "chat")
        if beginning(path) == PARQUET:
            check_columns(path, parquet.columns(path))
        yield from lines.parts(path, stem)


def read_part(part: Part, *, agent_role: str = AGENT) -> Iterator[Episode | Reject]:
    """The dialogues of a part of a file."""
    file = part.path.name
    for at, line in part.lines():
        try:
            for log in logs(line, agent_role):
                if isinstance(log, Reject):
                    yield Reject(file, at, log.field, log.reason, log.id)
                    continue
                try:
                    yield _episode(log, (file, at), f"{part.stem}-{at}", agent_role)
                except Reject as fault:
                    yield Reject(file, at, fault.field, fault.reason, fault.id)
        except Reject as fault:
            yield Reject(file, at, fault.field, fault.reason, fault.id)


def _episode(log: Log, place: tuple[str, int], fallback: str, agent_role: str) -> Episode:
    record = log.record
    name = (fallback if record.id is None else str(record.id)) + log.suffix
    turns = []
    for k, message in enumerate(log.messages):
        try:
            turns.append(_turn(message, agent_role))
        except Reject as fault:
            raise Reject("", 0, f"{log.place(k)}.{fault.field}", fault.reason, name) from None
    if log.reward:
        last = max((k for k, turn in enumerate(turns) if turn.role == AGENT), default=None)
        if last is None:
            raise Reject("", 0, log.paid, "the dialogue has a reward but no message of the agent", name)
        try:
            number(log.reward, log.paid)
        except Reject as fault:
            raise Reject("", 0, fault.field, fault.reason, name) from None
        if not turns[last].act:
            raise Reject("", 0, log.paid, "goes to the last message of the agent, which has loss_mask 0", name)
        turns[last] = replace(turns[last], reward=turns[last].reward + log.reward)
    if isinstance(record, Samples):
        return Placed(name, turns, True, record.meta or {}, file=place[0], line=place[1])
    try:
        known = tools(record.tools)
    except Reject as fault:
        raise Reject("", 0, f"tools.{fault.field}".rstrip("."), fault.reason, name) from None
    return Placed(name, turns, record.terminated, record.meta or {}, known, file=place[0], line=place[1])


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
        tool_calls=called(message.tool_calls),
        name=message.name,
        tool_call_id=message.tool_call_id,
    )
