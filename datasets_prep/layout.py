"""What a dialogue looks like as tokens. Decision: two layouts, one result. Our own tokenizers write a turn as mark,
content, end (`MarkLayout`); any other writes what its chat template says (`datasets_prep.template`). Both lay many
dialogues at once on a `Sheet`, and everything after that is the same code.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from datasets_prep import limits
from datasets_prep import tokenizer as tk
from datasets_prep.pieces import Pieces, splitter
from datasets_prep.rejects import Reject
from datasets_prep.talks import Talks, offsets
from ilql.types import AGENT, Episode, Turn

# Distinct turns remembered, and their bytes; templates of a simulator repeat themselves, people hardly do.
MEMO, MEMO_BYTES = 100_000, 64 * 2**20
UNWRITABLE = "\ud800"  # no text has it: stands for a content that is no JSON


@dataclass(slots=True)
class Laid:
    """tokens: from BOS on; turn: where each turn begins; spans: (index of the turn, start, end) of each action."""

    tokens: list[int]
    turn: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Sheet:
    """Dialogues (B) as tokens, end to end; places count from the dialogue's own beginning.

    tokens int32, size (B) of them each; turn: where turns begin, turns (B) of them each; start, end of the actions in
    the order of their turns, spans (B) of them each.
    """

    tokens: np.ndarray
    size: np.ndarray
    turn: np.ndarray
    turns: np.ndarray
    start: np.ndarray
    end: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, laid: Sequence[Laid]) -> Sheet:
        def flat(parts: Iterable[Iterable[int]], kind: type = np.int64) -> np.ndarray:
            return np.fromiter((x for part in parts for x in part), kind)

        return cls(
            tokens=flat((one.tokens for one in laid), np.int32),
            size=np.array([len(one.tokens) for one in laid], np.int64),
            turn=flat(one.turn for one in laid),
            turns=np.array([len(one.turn) for one in laid], np.int64),
            start=flat((s for _, s, _ in one.spans) for one in laid),
            end=flat((e for _, _, e in one.spans) for one in laid),
            spans=np.array([len(one.spans) for one in laid], np.int64),
        )


class Layout(Protocol):
    """bos_id: every dialogue's first token; stop_ids: what ends a turn of the agent."""

    bos_id: int
    stop_ids: list[int]

    def lay_all(self, talks: Talks, header: np.ndarray) -> tuple[Sheet, dict[int, Reject]]:
        """The sheet of all dialogues but those at fault, and these faults by the place of their dialogue.

        header (B): whether the agent's open turn follows the last one; without, nothing follows a last action.
        """
        ...

    def lay(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None, header: bool) -> Laid:
        """One dialogue. Raises Reject where it cannot be written."""
        ...

    def note(self, text: str) -> list[int]:
        """A text that is no turn of the dialogue, for the agent alone, as tokens."""
        ...

    def tidy(self, text: str) -> str:
        """Decoded content as the turn's text."""
        ...


def compact(value: Any) -> str:
    """JSON on one line; raises Reject for what is not JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Reject("", 0, "tool_calls", f"not JSON ({type(error).__name__})") from None


def content(text: str, calls: Sequence[dict[str, Any]] | None) -> str:
    """What a turn says, its tool calls as compact JSON after the text."""
    if not calls:
        return text
    return text + ("\n" if text else "") + compact(list(calls))


def called(calls: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tool calls with their arguments as objects, as chat templates want them; many logs have them as JSON texts.

    None for none. Raises Reject for a text that is no JSON object: a template would quote it once more.
    """
    found = []
    for k, call in enumerate(calls or ()):
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                limits.check(function["arguments"].encode("utf-8", "surrogatepass"))
                arguments = json.loads(function["arguments"])
            except (ValueError, RecursionError, Reject):
                arguments = None
            if not isinstance(arguments, dict):
                raise Reject("", 0, f"tool_calls[{k}].function.arguments", "a text that is no JSON object")
            call = {**call, "function": {**function, "arguments": arguments}}
        found.append(call)
    return found or None


class MarkLayout:
    """BOS, then every turn as its speaker's mark, its content and END; contents never become special tokens.

    Distinct turns are tokenised once, all new ones of a call together.
    """

    def __init__(self, tokenizer: Any, actions: dict[str, int]) -> None:
        """actions: stripped text -> id of the action token."""
        ids = tokenizer.backend_tokenizer.token_to_id
        self._json = tk.backend_without(tokenizer, actions.values())
        self._actions = actions
        self._marks = {role: ids(mark) for role, mark in tk.MARKS.items()}
        self._memo: dict[tuple[str, str], bytes] = {}
        self._memo_bytes = 0
        self.bos_id: int = tokenizer.bos_token_id
        self.stop_ids: list[int] = [ids(tk.END)]

    @cached_property
    def _backend(self) -> Tokenizer:
        backend = Tokenizer.from_str(self._json)
        backend.encode_special_tokens = True  # the backend does not write this down itself
        return backend

    @cached_property
    def _by_piece(self) -> Pieces | None:
        return splitter(self._backend)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_backend", "_by_piece")}
        return kept | {"_memo": {}, "_memo_bytes": 0}

    def lay(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None, header: bool) -> Laid:
        talks = Talks.of([Episode("", turns, tools=tools)])
        sheet, faults = self.lay_all(talks, np.array([header]))
        for fault in faults.values():
            raise fault
        acts = np.flatnonzero(talks.is_action).tolist()
        spans = list(zip(acts, sheet.start.tolist(), sheet.end.tolist(), strict=True))
        return Laid(sheet.tokens.tolist(), sheet.turn.tolist(), spans)

    def lay_all(self, talks: Talks, header: np.ndarray) -> tuple[Sheet, dict[int, Reject]]:
        """The agent's open turn is its mark; tools are a system turn before all others."""
        written, leads = self._written(talks), [self._lead(tools) for tools in talks.tools]
        gaps = {i for i, lead in enumerate(leads) if not lead and talks.tools[i]}
        if b"" in written:
            gaps |= {*talks.holders([k for k, turn in enumerate(written) if not turn])}
        if gaps:
            keep = [i for i in range(len(talks)) if i not in gaps]
            return self.lay_all(talks.take(keep), header[keep])[0], {i: self._why(talks, i) for i in gaps}
        bos, prompt, first = _bytes([self.bos_id]), _bytes([self._marks["assistant"]]), talks.first.tolist()
        laid: list[bytes] = []
        for i, lead in enumerate(leads):
            laid += (bos, lead) if lead else (bos,)
            laid += written[first[i] : first[i + 1]]
            if header[i]:
                laid.append(prompt)
        led = np.array([bool(lead) for lead in leads], bool)
        return _sheet(laid, 1 + led + np.diff(talks.first) + header, 1 + led, talks), {}

    def note(self, text: str) -> list[int]:
        """Written as a turn of the system."""
        return self.lay([Turn("system", text)], None, header=False).tokens[1:]

    def tidy(self, text: str) -> str:
        return text

    def _written(self, talks: Talks) -> list[bytes]:
        """Every turn's mark, content and end, as the bytes of int32; nothing for one that cannot be written."""
        said = list(talks.text)
        for k in talks.calling():
            try:
                said[k] = content(talks.text[k], talks.calls[k])
            except Reject:
                said[k] = UNWRITABLE
        keys = list(zip(talks.role, said, strict=True))
        written = list(map(self._memo.get, keys, repeat(b"")))
        if b"" in written:
            made = self._learn(dict.fromkeys(key for key, turn in zip(keys, written, strict=True) if not turn))
            written = [turn or made[key] for key, turn in zip(keys, written, strict=True)]
        return written

    def _lead(self, tools: Sequence[dict[str, Any]] | None) -> bytes:
        """The turn of tools; nothing without any, or where it cannot be written."""
        if not tools:
            return b""
        try:
            key = ("system", compact(list(tools)))
        except Reject:
            return b""
        return self._memo.get(key) or self._learn([key])[key]

    def _learn(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        """New turns, each given as its role and content, written and remembered."""
        single: dict[str, int] = {}
        if self._actions:
            said = {text: self._actions.get(text.strip()) for role, text in keys if role == AGENT}
            single = {text: action for text, action in said.items() if action is not None}
        texts = list(dict.fromkeys(text for role, text in keys if role != AGENT or text not in single))
        bodies: dict[str, bytes | None] = dict(self._by_piece(texts)) if self._by_piece else {}
        rest = [text for text in texts if text not in bodies]
        bodies |= zip(rest, self._bodies(rest), strict=True)
        marks, end = {role: _bytes([i]) for role, i in self._marks.items()}, _bytes(self.stop_ids)
        made = {}
        for role, text in keys:
            action = single.get(text) if role == AGENT else None
            body = _bytes([action]) if action is not None else bodies[text]
            made[role, text] = b"" if body is None else marks[role] + body + (end if action is None else b"")
        size = sum(len(text) + len(turn) for (_, text), turn in made.items())
        if len(self._memo) + len(made) > MEMO or self._memo_bytes + size > MEMO_BYTES:
            self._memo.clear()
            self._memo_bytes = 0
        self._memo |= made
        self._memo_bytes += size
        return made

    def _bodies(self, texts: list[str]) -> list[bytes | None]:
        """The tokens of texts; None for a text that is no Unicode."""
        try:
            found = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # what the tokenizers library raises for a lone surrogate, in any text
            half = len(texts) // 2
            return [*self._bodies(texts[:half]), *self._bodies(texts[half:])] if half else [None]
        return [_bytes(one.ids) for one in found]

    def _why(self, talks: Talks, i: int) -> Reject:
        """The first fault of a dialogue that cannot be written."""
        try:
            for text in _contents(talks.tools[i], talks.turns_of(i)):
                if self._bodies([text]) == [None]:
                    return Reject("", 0, "content", "a lone surrogate, which is no Unicode text")
        except Reject as fault:
            return fault.with_traceback(None)
        raise AssertionError(f"{talks.id[i]!r} has no fault")


def _contents(tools: Sequence[dict[str, Any]] | None, turns: Sequence[Turn]) -> Iterator[str]:
    if tools:
        yield compact(list(tools))
    for turn in turns:
        yield content(turn.text, turn.tool_calls)


def _bytes(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def _sheet(laid: list[bytes], parts: np.ndarray, before: np.ndarray, talks: Talks) -> Sheet:
    """What all dialogues say in parts: parts (B) of each, before (B) of which stand before its first turn.

    A dialogue's first part is BOS, all others are turns.
    """
    ends = np.cumsum(np.fromiter(map(len, laid), np.int64, len(laid))) // 4
    at = offsets(parts)
    size = np.diff(ends[at[1:] - 1], prepend=0)
    shift = np.repeat(np.cumsum(size) - size, parts)
    begins, ends = np.append(0, ends[:-1]) - shift, ends - shift
    opens = np.ones(len(laid), bool)
    opens[at[:-1]] = False
    acts = np.flatnonzero(talks.is_action)
    owner = np.searchsorted(talks.first, acts, side="right") - 1
    place = acts + (at[:-1] + before - talks.first[:-1])[owner]
    spans = np.bincount(owner, minlength=len(talks))
    tokens = np.frombuffer(b"".join(laid), np.int32)
    return Sheet(tokens, size, begins[opens], parts - 1, begins[place] + 1, ends[place], spans)
