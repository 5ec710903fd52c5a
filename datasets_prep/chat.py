"""Dialogue logs in the general format: JSON Lines, one dialogue a line, chat messages with rewards.

One raw line:
    {"id": "42", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "reward": 1}]}

Fields of a line: `messages`; optionally `id`, `tools`, `reward` (added to the agent's last message's), `terminated`
(default true; false means that the log was cut off), `meta` and `prefix` (numbers that the agent is given with the
dialogue, as many in each). Fields of a message: `role`, `content`; optionally
`tool_calls`, `reward`, `loss_mask` (0: not to be learned from), `logp`, `name` and `tool_call_id` (written where a chat
template asks for them). A line may also be a record of TRL (`prompt` and `completion`, with `reward` or `label`) or of
trlx (`samples` and `rewards`); see `datasets_prep/forms.py`. Licence and home page: your own.

Decision: every line is parsed by itself against a typed schema. Types are strict (a reward "1" or true is a fault, not
a number), unknown fields and fields given twice are faults, and a fault costs one line, never the file. A blank line is
no dialogue. A file may be compressed by gzip or zstd, or be Parquet, whatever its name; a row of a table is a line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import astuple

from datasets_prep import lines, parquet
from datasets_prep.check import LARGEST, number
from datasets_prep.files import PARQUET, beginning, refuse_others, stems
from datasets_prep.forms import FORMS, Dialogue, Log, Message, check_columns, dialogues, read, tools
from datasets_prep.layout import called
from datasets_prep.lines import Part
from datasets_prep.rejects import Reject
from datasets_prep.talks import Read, Talks, offsets
from ilql.types import AGENT, PARTNER, Episode, InputError

ROLES = ("system", "user", "assistant", "tool")
FIELDS = FORMS[Dialogue][1]


def episodes(inputs: list[Path], *, seed: int = 0, agent_role: str = AGENT) -> Iterator[Episode | Reject]:
    """The dialogues of JSON Lines files, one episode or reject a line that is not blank.

    agent_role: the role that the policy is to play; its messages become the agent's, and `assistant`'s the partner's.
    Raises InputError for a file that cannot be read or holds no line. seed is not used.
    """
    for part in file_parts(inputs):
        yield from read_part(part, agent_role=agent_role).items()


def file_parts(inputs: list[Path]) -> Iterator[Part]:
    """The files in parts, each of which can be read by itself. Raises InputError as `episodes` does."""
    if not inputs:
        raise InputError("chat reads log files: give --input FILE.jsonl")
    for path, stem in zip(inputs, stems(inputs), strict=True):
        refuse_others(path, "chat")
        if beginning(path) == PARQUET:
            check_columns(path, parquet.columns(path))
        yield from lines.parts(path, stem)


def read_part(part: Part, *, agent_role: str = AGENT) -> Read:
    """The dialogues of a part of a file."""
    file, numbered = part.path.name, list(part.lines())
    logs: list[Log] = []
    places: list[tuple[str, int]] = []
    where: list[int] = []  # each stands among all that was read
    rejects: dict[int, Reject] = {}
    for (line, _), record in zip(numbered, read([text for _, text in numbered]), strict=True):
        for item in dialogues(record, agent_role):
            if isinstance(item, Reject):
                rejects[len(rejects) + len(logs)] = item.of(item.id, (file, line))
                continue
            where.append(len(rejects) + len(logs))
            logs.append(item)
            places.append((file, line))
    names = [_name(log, f"{part.stem}-{line}") for log, (_, line) in zip(logs, places, strict=True)]
    said = Said(logs, agent_role)
    for i in _suspects(logs, said, agent_role):
        try:
            _refuse(logs[i], agent_role)
        except Reject as fault:
            rejects[where[i]] = fault.of(names[i], places[i])
    kept = [i for i, k in enumerate(where) if k not in rejects]
    if len(kept) < len(logs):
        logs, names, places = [logs[i] for i in kept], [names[i] for i in kept], [places[i] for i in kept]
        said = Said(logs, agent_role)
    return Read(_talks(logs, said, names, places, agent_role), rejects)


def _name(log: Log, fallback: str) -> str:
    return (fallback if log.record.id is None else str(log.record.id)) + log.suffix


class Said:
    """The messages (n) of dialogues (B) as columns, None where a message has no such field.

    agents (n): which are the agent's; turns (B): how many a dialogue has; last (B): its agent's last one, -1 for none.
    """

    def __init__(self, logs: Sequence[Log], agent_role: str) -> None:
        columns = list(zip(*map(astuple, [message for log in logs for message in log.messages]), strict=True))
        self.role, self.content, self.calls, self.reward, self.mask, self.logp, self.name, self.call_id = columns or [
            ()
        ] * len(Message.__struct_fields__)
        self.agents = np.array([role == agent_role for role in self.role], bool)
        self.turns = [len(log.messages) for log in logs]
        first, acts = offsets(self.turns), np.flatnonzero(self.agents)
        last = np.append(-1, acts)[np.searchsorted(acts, first[1:])]
        self.last: list[int] = np.where(last >= first[:-1], last, -1).tolist()


def _suspects(logs: list[Log], said: Said, agent_role: str) -> list[int]:
    """The dialogues that `_refuse` may refuse: all that it refuses are among them."""
    odd: list[int] = []
    if not {*ROLES, agent_role}.issuperset(said.role):
        odd += [k for k, role in enumerate(said.role) if role not in (*ROLES, agent_role)]
    if not all(said.content):
        odd += [k for k, content in enumerate(said.content) if content is None]
    if any(said.calls):
        odd += [k for k, calls in enumerate(said.calls) if calls]
    for column in (said.reward, said.mask, said.logp):
        if column.count(None) < len(column):
            odd += [k for k in np.flatnonzero(~said.agents).tolist() if column[k] is not None]
    found = set((np.searchsorted(offsets(said.turns), odd, side="right") - 1).tolist())
    for i, (log, last) in enumerate(zip(logs, said.last, strict=True)):
        if (log.reward and (last < 0 or said.mask[last] == 0 or not abs(log.reward) <= LARGEST)) or log.tools:
            found.add(i)
    return sorted(found)


def _refuse(log: Log, agent_role: str) -> None:
    """Raise Reject for the first message at fault, or else for the dialogue's reward or tools."""
    for k, message in enumerate(log.messages):
        try:
            refuse_message(message, agent_role)
        except Reject as fault:
            raise Reject("", 0, f"{log.place(k)}.{fault.field}", fault.reason) from None
    if log.reward:
        last = next((message for message in reversed(log.messages) if message.role == agent_role), None)
        if last is None:
            raise Reject("", 0, log.paid, "the dialogue has a reward but no message of the agent")
        number(log.reward, log.paid)
        if last.loss_mask == 0:
            raise Reject("", 0, log.paid, "goes to the last message of the agent, which has loss_mask 0")
    try:
        tools(log.tools)
    except Reject as fault:
        raise Reject("", 0, f"tools.{fault.field}".rstrip("."), fault.reason) from None


def refuse_message(message: Message, agent_role: str) -> None:
    """Raise Reject for a message that no dialogue may have."""
    if message.role not in (*ROLES, agent_role):
        near = difflib.get_close_matches(message.role, (*ROLES, agent_role), 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; --agent-role names the agent's"
        raise Reject(
            "", 0, "role", f"{message.role!r} is none of {', '.join(dict.fromkeys((*ROLES, agent_role)))}{hint}"
        )
    if message.content is None and not message.tool_calls:
        raise Reject("", 0, "content", "missing or null, which only a message with tool_calls may have")
    if message.role == agent_role:
        called(message.tool_calls)
        return
    if message.tool_calls:
        raise Reject("", 0, "tool_calls", "on a message that is not the agent's")
    if message.loss_mask:
        raise Reject("", 0, "loss_mask", "1 on a message that is not the agent's")
    if message.reward:
        raise Reject(
            "", 0, "reward", f"on a message of {message.role!r}; only the agent's, {agent_role!r}, may have one"
        )
    if message.logp is not None:
        raise Reject("", 0, "logp", "on a message that is not the agent's")


def _talks(logs: list[Log], said: Said, names: list[str], places: list[tuple[str, int]], agent_role: str) -> Talks:
    """Dialogues that nothing is wrong with."""
    role: Sequence[str] = said.role
    if agent_role != AGENT:
        swapped = {agent_role: AGENT, AGENT: PARTNER}
        role = [swapped.get(one, one) for one in role]
    reward = [x or 0.0 for x in said.reward]
    for log, last in zip(logs, said.last, strict=True):
        if log.reward:
            reward[last] += log.reward
    return Talks(
        id=names,
        terminated=[log.terminated is not False for log in logs],
        meta=[log.record.meta or {} for log in logs],
        tools=[tools(log.tools) for log in logs],
        place=places,
        turns=said.turns,
        role=role,
        text=[x or "" for x in said.content],
        reward=reward,
        logp=said.logp,
        act=[x != 0 for x in said.mask],
        calls=list(map(called, said.calls)) if any(said.calls) else [None] * len(said.calls),
        name=said.name,
        call_id=said.call_id,
        prefix=[log.prefix for log in logs] if any(log.prefix is not None for log in logs) else None,
    )
