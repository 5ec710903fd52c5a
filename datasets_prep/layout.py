"""What a dialogue looks like as tokens. Decision: two layouts, one result. Our own tokenizers write a turn as mark,
content, end (`MarkLayout`); any other writes what its chat template says (`datasets_prep.template`). Both give a
`Laid`, and everything after that is the same code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets_prep import tokenizer as tk
from datasets_prep.rejects import Reject
from ilql.types import Turn

MEMO = 100_000  # distinct turns remembered; templates of a simulator repeat themselves, people hardly do


@dataclass(slots=True)
class Laid:
    """tokens: from BOS on; turn: where each turn begins; spans: (index of the turn, start, end) of each action."""

    tokens: list[int]
    turn: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)


def compact(value: Any) -> str:
    """JSON on one line; raises Reject for what is not JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Reject("", 0, "tool_calls", f"not JSON ({type(error).__name__})") from None


def content(turn: Turn) -> str:
    """What a turn says, its tool calls as compact JSON after the text."""
    if not turn.tool_calls:
        return turn.text
    return turn.text + ("\n" if turn.text else "") + compact(list(turn.tool_calls))


class MarkLayout:
    """BOS, then every turn as its speaker's mark, its content and END; contents never become special tokens."""

    def __init__(self, tokenizer: Any, actions: dict[str, int]) -> None:
        """actions: stripped text -> id of the action token."""
        ids = tokenizer.backend_tokenizer.token_to_id
        self._backend = tk.backend_without(tokenizer, actions.values())
        self._backend.encode_special_tokens = True
        self._marks = {role: ids(mark) for role, mark in tk.MARKS.items()}
        self._actions = actions
        self._memo: dict[tuple[str, str], list[int]] = {}
        self.bos_id: int = tokenizer.bos_token_id
        self.end_id: int = ids(tk.END)
        self.stop_ids = [self.end_id]

    def lay(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None, header: bool) -> Laid:
        """header: whether the agent's mark follows the last turn. Tools are a system turn before all others."""
        laid = Laid([self.bos_id])
        if tools:
            laid.turn.append(len(laid.tokens))
            laid.tokens += self._turn("system", compact(list(tools)))
        for i, turn in enumerate(turns):
            begin = len(laid.tokens)
            laid.turn.append(begin)
            laid.tokens += self._turn(turn.role, content(turn))
            if turn.is_action:
                laid.spans.append((i, begin + 1, len(laid.tokens)))
        if header:
            laid.turn.append(len(laid.tokens))
            laid.tokens.append(self._marks["assistant"])
        return laid

    def _turn(self, role: str, text: str) -> list[int]:
        found = self._memo.get((role, text))
        if found is None:
            action = self._actions.get(text.strip()) if role == "assistant" else None
            body = [action] if action is not None else [*self._ids(text), self.end_id]
            found = [self._marks[role], *body]
            if len(self._memo) >= MEMO:
                self._memo.clear()
            self._memo[role, text] = found
        return found

    def _ids(self, text: str) -> list[int]:
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):  # what the tokenizers library raises for it
            raise Reject("", 0, "content", "a lone surrogate, which is no Unicode text") from None

    def tidy(self, text: str) -> str:
        """Decoded content as the turn's text."""
        return text
