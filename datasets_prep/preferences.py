"""Preferences: of two replies in one context, which one somebody liked better. Two lines, in TRL's form
(https://huggingface.co/docs/trl/dataset_formats) and in that of hh-rlhf (Bai et al. 2022, MIT licence,
https://github.com/anthropics/hh-rlhf):

    {"prompt": [{"role": "user", "content": "hi"}], "chosen": [{"role": "assistant", "content": "Hello!"}],
     "rejected": [{"role": "assistant", "content": "No."}]}
    {"chosen": "\\n\\nHuman: hi\\n\\nAssistant: Hello!", "rejected": "\\n\\nHuman: hi\\n\\nAssistant: No."}

`prompt` may be left out, where both others are whole conversations; all three may be texts; beside them may stand `id`,
`tools`, `meta`, and `score_chosen` and `score_rejected`, which go into meta. Files are JSON Lines (gzip and zstd too)
or Parquet, or Taskmaster's lists of rated actions (see `taskmaster`), of which every context with both verdicts gives
its pairs. `--of CORPUS` compares dialogues with rewards of another corpus (`datasets_prep.compared`). Licence: your
own.

Decision: a pair is two dialogues that share `pair`, the chosen one with reward 1 on its last action, the other with 0.
The prompt of whole conversations is what both have in common; where they part, both have to be the agent's turn, or
their prompts differ. Prompts are observation. Conversations that begin with the same turns are one group, so no split
parts a pair, nor two pairs of one conversation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from datasets_prep import compared, lines, parquet, taskmaster
from datasets_prep.chat import refuse_message
from datasets_prep.files import HEAD, LOOKS, PARQUET, beginning, opened, refuse_others, stems
from datasets_prep.forms import Message, Tools, tools
from datasets_prep.layout import called
from datasets_prep.records import decode, once
from datasets_prep.rejects import Placed, Reject
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

SPEAKER = re.compile(r"\n\n(Human|Assistant):")  # of hh-rlhf


class Preference(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    chosen: str | list[Message]
    rejected: str | list[Message]
    prompt: str | list[Message] | None = None
    id: str | int | None = None
    tools: Tools | None = None
    score_chosen: float | None = None
    score_rejected: float | None = None
    meta: dict[str, Any] | None = None


DECODER = msgspec.json.Decoder(Preference)
KNOWN = (*Preference.__struct_fields__, *Message.__struct_fields__)
Two = tuple[Episode, Episode]


def episodes(
    inputs: Sequence[Path], *, seed: int = 0, of: str | None = None, ranked: int = 2, noise: float = 0.0
) -> Iterator[Episode | Reject]:
    """Both dialogues of each pair, one after the other, the chosen one first.

    of: another corpus, whose dialogues are compared by their returns. ranked: how many that begin alike are compared
    with each other. noise: of the labeler, in units of their returns. seed: of that labeler, and the other corpus'.
    """
    if of is None:
        if not inputs:
            raise InputError("preferences needs files: give --input FILE.jsonl, or --of and a corpus with rewards")
        return (one for pair in _pairs(inputs) for one in ((pair,) if isinstance(pair, Reject) else pair))
    import datasets_prep

    corpus: Any = datasets_prep.CORPORA.get(of)
    if corpus is None or of == "preferences":
        raise InputError(f"--of {of}: no corpus with rewards; those are {', '.join(datasets_prep.CORPORA)}")
    if ranked < 2 or not 0 <= noise < float("inf"):
        raise InputError(f"--ranked is {ranked} and --noise {noise}: at least 2, and at least 0")
    found = compared.compare(corpus.episodes(list(inputs), seed=seed), seed=seed, ranked=ranked, noise=noise)
    return (one for pair in found for one in ((pair,) if isinstance(pair, Reject) else pair))


def _pairs(inputs: Sequence[Path]) -> Iterator[Two | Reject]:
    rated = []
    for path, stem in zip(inputs, stems(inputs), strict=True):
        if beginning(path) == PARQUET:
            _check_columns(path)
        elif _is_rated(path):
            rated.append(path)
            continue
        else:
            refuse_others(path, "preferences")
        for part in lines.parts(path, stem):
            yield from _of_lines(path.name, stem, list(part.lines()))
    if rated:
        yield from _of_ratings(rated)


def _check_columns(path: Path) -> None:
    """InputError where a table lacks a column, or has another beside."""
    columns = parquet.columns(path)
    for name in ("chosen", "rejected"):
        if name not in columns:
            raise InputError(f"{path} has the columns {', '.join(columns)}, but preferences need {name!r}; rename them")
    for name in columns:
        if name not in Preference.__struct_fields__:
            raise InputError(f"{path}: unknown column {name!r}; leave it out, or put it into a struct column 'meta'")


def _is_rated(path: Path) -> bool:
    with opened(path) as file:
        return re.search(LOOKS["taskmaster"], file.read(HEAD).removeprefix(lines.BOM), re.DOTALL) is not None


# ---- lines -----------------------------------------------------------------------------------------------------------


def _of_lines(file: str, stem: str, numbered: Sequence[tuple[int, bytes]]) -> Iterator[Two | Reject]:
    found: list[Any] = []
    for _, line in numbered:
        try:
            found.append(decode(DECODER, line, KNOWN))
        except Reject as fault:
            found.append(fault.with_traceback(None))
    for (number, _), record in zip(numbered, once(found, [line for _, line in numbered]), strict=True):
        name = f"{stem}-{number}"
        try:
            if isinstance(record, Reject):
                raise record
            name = name if record.id is None else str(record.id)
            yield _pair(record, name, (file, number))
        except Reject as fault:
            yield fault.of(name, (file, number)).with_traceback(None)


def _pair(record: Preference, name: str, place: tuple[str, int]) -> Two:
    """Raises Reject for a pair that cannot be compared."""
    prompt, replies = _parted(record)
    if replies["chosen"] == replies["rejected"]:
        raise Reject("", 0, "rejected", "a tie: it is the same as chosen")
    for side, reply in replies.items():
        if not reply or not (reply[-1].text.strip() or reply[-1].tool_calls):
            raise Reject("", 0, side, "an empty reply")
        if reply[-1].role != AGENT:
            raise Reject("", 0, side, "it ends with a turn that is not the agent's")
    given = record.meta or {}
    scores = {side: getattr(record, f"score_{side}") for side in replies}
    told = None if record.tools is None else tools(record.tools)
    both = []
    for side, reply in replies.items():
        turns = (*prompt, *reply[:-1], replace(reply[-1], reward=float(side == "chosen")))
        meta = {"group": _opening(turns), **given}
        meta |= {} if scores[side] is None else {"score": scores[side]}
        both.append(Placed(f"{name}:{side}", turns, True, meta, told, name, file=place[0], line=place[1]))
    return both[0], both[1]


def _opening(turns: Sequence[Turn]) -> str:
    """A name for all conversations that begin with the same turns, up to the agent's first."""
    first = next((k for k, turn in enumerate(turns) if turn.role == AGENT), len(turns))
    said = json.dumps([[turn.role, turn.text] for turn in turns[:first]])
    return f"opening-{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}"


def _parted(record: Preference) -> tuple[list[Turn], dict[str, list[Turn]]]:
    """The prompt's turns, observation, and those of each side behind it."""
    sides: dict[str, Any] = {"chosen": record.chosen, "rejected": record.rejected}
    prompt: Any = record.prompt
    if any(isinstance(side, str) is not isinstance(record.chosen, str) for side in sides.values()):
        raise Reject("", 0, "rejected", "chosen and rejected must both be texts, or both lists of messages")
    if prompt is not None and isinstance(prompt, str) is not isinstance(record.chosen, str):
        reason = "a text beside lists of messages, or the other way round; leave it out where they hold it"
        raise Reject("", 0, "prompt", reason)
    if isinstance(record.chosen, str):
        whole = {side: (prompt or "") + text for side, text in sides.items()}
        if all(SPEAKER.match(text) for text in whole.values()):
            return _common({side: _spoken(text) for side, text in whole.items()})
        return _texts(prompt, record.chosen, sides["rejected"])
    talks = {side: [_turn(m, f"{side}[{k}]") for k, m in enumerate(said)] for side, said in sides.items()}
    if prompt is None:
        return _common(talks)
    before = [_turn(m, f"prompt[{k}]") for k, m in enumerate(prompt)]
    return [_seen(turn) for turn in before], talks


def _common(talks: dict[str, list[Turn]]) -> tuple[list[Turn], dict[str, list[Turn]]]:
    """What two conversations have in common, and how each goes on. Raises Reject where the prompts differ."""
    chosen, rejected = talks.values()
    if chosen == rejected:
        raise Reject("", 0, "rejected", "a tie: it is the same as chosen")
    n = next((k for k, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if n is None:
        short = min(talks, key=lambda side: len(talks[side]))
        raise Reject("", 0, short, "an empty reply: the other conversation goes on where it ends")
    for side, turns in talks.items():
        if turns[n].role != AGENT:
            raise Reject("", 0, side, f"the prompts differ: turn {n} is not the agent's and not the same")
    return [_seen(turn) for turn in chosen[:n]], {side: turns[n:] for side, turns in talks.items()}


def _seen(turn: Turn) -> Turn:
    return replace(turn, act=False) if turn.role == AGENT else turn


def _spoken(text: str) -> list[Turn]:
    """hh-rlhf's text as turns."""
    marks = [*SPEAKER.finditer(text), None]
    turns = []
    for mark, after in pairwise(marks):
        said = text[mark.end() : None if after is None else after.start()].strip()  # type: ignore[union-attr]
        turns.append(Turn(AGENT if mark[1] == "Assistant" else PARTNER, said))  # type: ignore[index]
    return turns


def _texts(prompt: str | None, chosen: str, rejected: str) -> tuple[list[Turn], dict[str, list[Turn]]]:
    """TRL's standard form; without a prompt it is the beginning that both texts share, up to a word."""
    if prompt is None:
        n = min(len(chosen), len(rejected))
        shared = chosen[: next((k for k in range(n) if chosen[k] != rejected[k]), n)]
        cut = len(re.sub(r"\s*\S+\Z", "", shared))  # where the word begins that it breaks off in
        prompt, chosen, rejected = shared[:cut], chosen[cut:], rejected[cut:]
    replies = {"chosen": [Turn(AGENT, chosen.strip())], "rejected": [Turn(AGENT, rejected.strip())]}
    return [Turn(PARTNER, prompt.strip())] if prompt.strip() else [], replies


def _turn(message: Message, field: str) -> Turn:
    try:
        refuse_message(message, AGENT)
        for name in ("reward", "logp", "loss_mask"):
            if getattr(message, name) is not None:
                raise Reject("", 0, name, "a pair has none: which is preferred is all that it says")
        calls = called(message.tool_calls)
    except Reject as fault:
        raise Reject("", 0, f"{field}.{fault.field}", fault.reason) from None
    text = message.content or ""
    return Turn(message.role, text, tool_calls=calls, name=message.name, tool_call_id=message.tool_call_id)


# ---- rated actions ---------------------------------------------------------------------------------------------------


def _of_ratings(inputs: Sequence[Path]) -> Iterator[Two | Reject]:
    """Of every context that has actions with either verdict, all pairs of a liked and a disliked one, each once.

    Conversations that share such a context are one group.
    """
    contexts: dict[str, list[taskmaster.Rated]] = {}
    root: dict[str, str] = {}  # of a context: a name that all of its conversations share

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for item in taskmaster.conversations(inputs):
        if isinstance(item, Reject):
            yield item
            continue
        for record in item:
            key = repr(record.path)
            rated = contexts.setdefault(key, [])
            other = find(rated[0].name if rated else record.name)
            root[find(record.name)] = root[find(item[0].name)] = other
            rated.append(record)
    for rated in contexts.values():
        liked, disliked = (_distinct(rated, verdict) for verdict in (1.0, 0.0))
        for good in liked.values():
            for bad in disliked.values():
                yield _rated_pair(good, bad, find(rated[0].name))


def _distinct(rated: Sequence[taskmaster.Rated], verdict: float) -> dict[str, taskmaster.Rated]:
    """The first record of each action with a verdict."""
    found: dict[str, taskmaster.Rated] = {}
    for record in rated:
        if record.action.reward == verdict:
            found.setdefault(repr(replace(record.action, reward=0.0)), record)
    return found


def _rated_pair(good: taskmaster.Rated, bad: taskmaster.Rated, group: str) -> Two | Reject:
    name = f"{good.name}/{bad.name}"
    if replace(good.action, reward=0.0) == replace(bad.action, reward=0.0):
        return Reject(bad.file, bad.line, "reward", "a tie: the same action was liked and disliked", name)
    both = []
    for side, record in (("chosen", good), ("rejected", bad)):
        meta = {"group": group}
        turns = (*record.path, record.action)
        both.append(Placed(f"{name}:{side}", turns, True, meta, None, name, file=record.file, line=record.line))
    return both[0], both[1]
