"""The forms that a line of a dialogue log may have: ours (`messages`), TRL's (`prompt` and `completion`) and trlx's
(`samples` and `rewards`). Decision: the fields of a line say which it is, and each becomes messages that know the field
they came from, so that what follows, and what it says of a fault, is the same for all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from datasets_prep import limits
from datasets_prep.records import decode, once, parse
from datasets_prep.rejects import Reject
from ilql.types import AGENT, PARTNER, InputError

Tools = list[dict[str, Any]] | str  # a text holds the list as JSON, since tables have no column for free objects


class Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    role: str
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reward: float | None = None
    loss_mask: Literal[0, 1] | None = None
    logp: float | list[float | None] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class Dialogue(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    messages: list[Message]
    id: str | int | None = None
    tools: Tools | None = None
    reward: float | None = None
    terminated: bool | UnsetType = UNSET  # is True
    meta: dict[str, Any] | None = None
    prefix: list[float] | None = None


class Completion(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """TRL's prompt-completion and unpaired preference records, standard (texts) or conversational (messages)."""

    prompt: str | list[Message]
    completion: str | list[Message]
    id: str | int | None = None
    tools: Tools | None = None
    reward: float | None = None
    label: bool | None = None
    terminated: bool | UnsetType = UNSET  # is True
    meta: dict[str, Any] | None = None


class Samples(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What `trlx.train(samples=..., rewards=...)` takes: texts, or lists of prompt, output, prompt, output, ..."""

    samples: list[str | list[str]]
    rewards: list[float]
    id: str | int | None = None
    meta: dict[str, Any] | None = None


Record = Dialogue | Completion | Samples


class Log(NamedTuple):
    """One dialogue of a line. place: the field where message k stands; paid: the field of the reward; suffix: what
    tells apart the ids of a line's dialogues."""

    messages: list[Message]
    place: Callable[[int], str]
    record: Record
    reward: float | None
    paid: str = "reward"
    suffix: str = ""

    @property
    def tools(self) -> Tools | None:
        return None if isinstance(self.record, Samples) else self.record.tools

    @property
    def prefix(self) -> list[float] | None:
        return self.record.prefix if isinstance(self.record, Dialogue) else None

    @property
    def terminated(self) -> bool:
        return isinstance(self.record, Samples) or self.record.terminated is not False


class _Keys(msgspec.Struct):
    """Which of these a line has."""

    messages: msgspec.Raw | UnsetType = UNSET
    prompt: msgspec.Raw | UnsetType = UNSET
    completion: msgspec.Raw | UnsetType = UNSET
    samples: msgspec.Raw | UnsetType = UNSET


FORMS: dict[type[Record], tuple[msgspec.json.Decoder[Any], tuple[str, ...]]] = {
    form: (msgspec.json.Decoder(form), tuple(dict.fromkeys([*form.__struct_fields__, *Message.__struct_fields__])))
    for form in (Dialogue, Completion, Samples)
}
_dialogue = FORMS[Dialogue][0].decode
_keys = msgspec.json.Decoder(_Keys)


def read(lines: Sequence[bytes]) -> list[Record | Reject]:
    """The record of each line, or its fault."""
    found: list[Any] = []
    for line in lines:
        try:
            limits.check(line)
            found.append(_dialogue(line))
        except Reject as fault:
            found.append(fault.with_traceback(None))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found.append(_other(line))
    return once(found, lines)


def _other(line: bytes) -> Record | Reject:
    """The record of a line that is no dialogue of ours."""
    try:
        decoder, known = FORMS[_form(line)]
        record: Record = decode(decoder, line, known)
        return record
    except Reject as fault:
        return fault.with_traceback(None)


def dialogues(record: Record | Reject, agent_role: str) -> list[Log | Reject]:
    """The dialogues of a record, and its faults: its own, or one of a single sample."""
    if isinstance(record, Dialogue):
        return [Log(record.messages, _message, record, record.reward)]
    try:
        if isinstance(record, Reject):
            return [record]
        return [_completion(record, agent_role)] if isinstance(record, Completion) else _samples(record, agent_role)
    except Reject as fault:
        return [fault.with_traceback(None)]


def _message(k: int) -> str:
    return f"messages[{k}]"


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """InputError where a table has not the columns of any form, or others beside them."""
    for form in FORMS:
        fields = msgspec.structs.fields(form)
        if all(field.name in columns for field in fields if field.required):
            break
    else:
        if {"chosen", "rejected"} <= {*columns}:
            raise InputError(f"{path} holds preferences and no logs: python -m datasets_prep preferences")
        raise InputError(
            f"{path} has the columns {', '.join(columns)}, but a log has messages, or prompt and completion, or "
            "samples and rewards; rename them"
        )
    for name in columns:
        if name not in form.__struct_fields__:
            near = difflib.get_close_matches(name, form.__struct_fields__, 1)
            hint = f"did you mean {near[0]!r}? If not, " if near else ""
            hint += "leave it out, or put it into a struct column 'meta'"
            raise InputError(f"{path}: unknown column {name!r}; {hint}")


def _form(line: bytes) -> type[Record]:
    if b'"prompt"' not in line and b'"completion"' not in line and b'"samples"' not in line:
        return Dialogue
    try:
        keys = _keys.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        keys = parse(_keys, line)  # raises: the line is no JSON, so its form's fields are not what is wrong with it
    if keys.messages is not UNSET:
        return Dialogue
    if keys.prompt is not UNSET or keys.completion is not UNSET:
        return Completion
    return Dialogue if keys.samples is UNSET else Samples


def _partner(agent_role: str) -> str:
    """A role that is not the agent's."""
    return PARTNER if agent_role != PARTNER else AGENT


def _completion(record: Completion, agent_role: str) -> Log:
    """The completion is to be learned from, the prompt is not."""
    messages, places = [], []
    texts = {"prompt": _partner(agent_role), "completion": agent_role}
    for field, role in texts.items():
        value = getattr(record, field)
        found = [Message(role, value)] if isinstance(value, str) else value
        for k, message in enumerate(found):
            if field == "prompt" and message.role == agent_role and message.loss_mask is None:
                message.loss_mask = 0
            messages.append(message)
            places.append(field if isinstance(value, str) else f"{field}[{k}]")
    reward, paid = record.reward, "reward"
    if record.label is not None:
        if reward is not None:
            raise Reject("", 0, "label", "given beside reward; leave one out", _name(record))
        reward, paid = float(record.label), "label"
    return Log(messages, places.__getitem__, record, reward, paid)


def _samples(record: Samples, agent_role: str) -> list[Log | Reject]:
    found: list[Log | Reject] = []
    if len(record.samples) != len(record.rewards):
        reason = f"{len(record.rewards)} rewards for {len(record.samples)} samples"
        raise Reject("", 0, "rewards", reason, _name(record))
    for k, (sample, reward) in enumerate(zip(record.samples, record.rewards, strict=True)):
        alone = isinstance(sample, str)  # an output without a prompt
        texts = [sample] if isinstance(sample, str) else sample
        if not alone and (not texts or len(texts) % 2):
            reason = f"{len(texts)} texts, not prompt, output, prompt, output and so on"
            found.append(Reject("", 0, f"samples[{k}]", reason, _name(record)))
            continue
        roles = (agent_role,) if alone else (_partner(agent_role), agent_role)
        messages = [Message(roles[i % len(roles)], text) for i, text in enumerate(texts)]
        places = [f"samples[{k}]" if alone else f"samples[{k}][{i}]" for i in range(len(texts))]
        found.append(Log(messages, places.__getitem__, record, reward, f"rewards[{k}]", f".{k}"))
    return found


def _name(record: Record) -> str | None:
    return None if record.id is None else str(record.id)


def tools(value: Tools | None) -> list[dict[str, Any]] | None:
    """The tools of a record as objects. Raises Reject."""
    if not isinstance(value, str):
        return value
    return parse(_objects, value.encode("utf-8", "surrogatepass"))


_objects = msgspec.json.Decoder(list[dict[str, Any]])
