"""Dialogues written by a tokenizer's own chat template.

Decision: what an agent sees when it is to speak is the template's text of the turns so far with the generation prompt;
what it is trained on must be that very text. So the action of turn i begins where `render(turns[:i], prompt)` ends, and
that text must be a prefix of the whole dialogue's. It ends with the last special token that the template writes in
that turn: what follows (a line break) nobody generates. This needs no `{% generation %}` in the template, and stays
right where such a block leaves the end token out. Every piece between these borders is tokenised by itself, so no token
ever spans two of them, and a state's tokens are a prefix of the row's tokens by construction.
"""

from __future__ import annotations

import datetime
import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from datasets_prep import tokenizer as tk
from datasets_prep.layout import Laid, Sheet, compact
from datasets_prep.rejects import Reject, at
from datasets_prep.talks import Talks
from ilql.types import InputError, Turn

PROBE = (Turn("user", "one"), Turn("assistant", "probe"), Turn("user", "two"), Turn("assistant", "probe"))
TODAY = datetime.date(2024, 7, 26)  # for templates that print it: the same logs give the same tokens on every day
_now = re.compile(r"""\bstrftime_now\(\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*\)""")
NO_END = "no special token ends an agent's turn, so no policy could learn to stop"
CALL = {"type": "function", "id": "call00001", "function": {"name": "probe", "arguments": {"a": "b"}}}


class TemplateLayout:
    """See the module. Raises InputError for a template that cannot serve, naming the tokenizer."""

    def __init__(self, tokenizer: Any, actions: dict[str, int]) -> None:
        """actions: stripped text -> id of the action token."""
        self._tokenizer, self._actions = tokenizer, actions
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        try:
            self._template = _undated(tokenizer.get_chat_template())
        except (ValueError, TypeError) as error:
            raise InputError(f"tokenizer {name!r} has no usable chat template ({error})") from None
        self._backend = Tokenizer.from_str(tk.backend_without(tokenizer, actions.values()))
        known = [t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if t is not None]
        if not known:
            raise InputError(f"tokenizer {name!r} has no bos, eos or pad token that could begin a dialogue")
        self.bos_id: int = known[0]
        specials = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(
            tokenizer.all_special_tokens
        )
        specials -= set(tokenizer.convert_ids_to_tokens(list(actions.values())))
        self._specials = re.compile("|".join(re.escape(s) for s in sorted(specials, key=len, reverse=True)) or r"(?!)")
        self._newline = self._prefix_trick()
        try:
            self._learn()
        except Reject as fault:
            raise InputError(
                f"the chat template of tokenizer {name!r} cannot be used: {fault.reason}; give a tokenizer folder with "
                "another chat_template, or train one: --tokenizer word, byte or bpe:SIZE"
            ) from None

    def _learn(self) -> None:
        """What the template writes around an agent's words and which token ends them; Reject where it cannot serve."""
        text, borders, _ = self._borders(PROBE, None, header=False)
        said = text[borders[3][0] : borders[3][1]]
        before, middle, after = said.partition("probe")
        ending = self._specials.search(after)
        if not middle or ending is None:
            raise Reject("", 0, "content", NO_END)
        self._around = before, after[: ending.start()]
        self.end_id = self._ids(said, first=False)[-1]
        self.stop_ids = [self.end_id]
        self._borders(PROBE[:1], None, header=True)
        try:  # some templates end a tool call with a token of its own
            call = (PROBE[0], Turn("assistant", "", tool_calls=[CALL]))
            text, borders, _ = self._borders(call, None, header=False)
            end = self._ids(text[slice(*borders[1])], first=False)[-1]
            self.stop_ids += [end] if end != self.end_id else []
        except Reject:
            pass

    def lay_all(self, talks: Talks, header: np.ndarray) -> tuple[Sheet, dict[int, Reject]]:
        laid: list[Laid] = []
        faults: dict[int, Reject] = {}
        for i, opens in enumerate(header.tolist()):
            turns = talks.turns_of(i)
            try:
                one = self.lay(turns, talks.tools[i], opens)
            except Reject as fault:
                faults[i] = fault.with_traceback(None)
                continue
            if turns[-1].is_action and not opens:  # nobody reads what a template writes behind the last action
                del one.tokens[one.spans[-1][2] :]
            laid.append(one)
        return Sheet.of(laid), faults

    def lay(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None, header: bool) -> Laid:
        """The agent's open turn is the generation prompt. Raises Reject where the template refuses."""
        for k, turn in enumerate(turns):
            self._no_specials(turn.text, at(k, "content"))
            if turn.tool_calls:
                self._no_specials(compact(list(turn.tool_calls)), at(k, "tool_calls"))
            self._no_specials(turn.name or "", at(k, "name"))
            self._no_specials(turn.tool_call_id or "", at(k, "tool_call_id"))
        if tools:
            self._no_specials(compact(list(tools)), "tools")
        text, borders, begins = self._borders(turns, tools, header)
        cuts = sorted({0, len(text), *begins, *(cut for pair in borders.values() for cut in pair)})
        action_at = {start: i for i, (start, _) in borders.items()}
        laid = Laid([])
        position = {}  # of a cut, in tokens
        for start, stop in pairwise(cuts):
            position[start] = len(laid.tokens)
            i = action_at.get(start)
            single = self._actions.get(turns[i].text.strip()) if i is not None and not turns[i].tool_calls else None
            piece = [single] if single is not None else self._ids(text[start:stop], first=not laid.tokens)
            if i is not None:
                if piece[-1] not in self.stop_ids and single is None:
                    raise Reject(
                        "", 0, at(i, "content"), "the chat template ends this turn with another token than usual"
                    )
                laid.spans.append((i, len(laid.tokens), len(laid.tokens) + len(piece)))
            laid.tokens += piece
        if header:  # a prompt without text: the agent's open turn begins behind the last token
            position[len(text)] = len(laid.tokens)
        shift = 0
        if not laid.tokens or laid.tokens[0] != self.bos_id:
            laid.tokens, shift = [self.bos_id, *laid.tokens], 1
        laid.spans = [(i, s + shift, e + shift) for i, s, e in laid.spans]
        # What the template writes before the first turn (a default system prompt) belongs to the first turn.
        laid.turn = [1, *sorted({position[b] + shift for b in begins if b in position and position[b] + shift > 1})]
        return laid

    def note(self, text: str) -> list[int]:
        """Written as a line between two turns: few templates allow a turn of the system there."""
        return self._ids(f"{text}\n", first=False)

    def tidy(self, text: str) -> str:
        """Decoded content as the turn's text: without what the template puts around an agent's words."""
        return text.removeprefix(self._around[0]).removesuffix(self._around[1])

    def _borders(
        self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None, header: bool
    ) -> tuple[str, dict[int, tuple[int, int]], list[int]]:
        """The dialogue's text, turn -> (start, end) of each action in it, and where turns begin in it.

        A turn that the template folds into the next one (a system prompt in some) has no beginning of its own.
        """
        messages = [_message(turn) for turn in turns]
        text = self._render(messages, tools, prompt=header)
        ends = [0]  # ends[i]: where turn i - 1 ends, -1 where the template does not end it there
        for i in range(1, len(turns) + 1):
            if i == len(turns) and not header:
                ends.append(len(text))
                continue
            try:
                so_far = self._render(messages[:i], tools, prompt=False)
            except Reject:
                so_far = "\0"
            ends.append(len(so_far) if so_far and text.startswith(so_far) else -1)
        borders = {}
        for i, turn in enumerate(turns):
            if not turn.is_action:
                continue
            before = self._render(messages[:i], tools, prompt=True)
            if not text.startswith(before) or ends[i + 1] < len(before):
                raise Reject("", 0, "messages", "the template writes a turn anew once others follow it")
            specials = list(self._specials.finditer(text, len(before), ends[i + 1]))
            if not specials:
                raise Reject("", 0, "content", NO_END)
            borders[i] = (len(before), specials[-1].end())
        begins = ends[:-1] + ([ends[-1]] if header else [])
        inside = sorted(borders.values())
        starts = [s for s, _ in inside]

        def splits_action(cut: int) -> bool:
            k = bisect_left(starts, cut) - 1
            return k >= 0 and cut < inside[k][1]

        return text, borders, [b for b in begins if b >= 0 and not splits_action(b)]

    def _render(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, prompt: bool) -> str:
        try:
            rendered: Any = render_jinja_template(
                conversations=[messages],
                tools=list(tools) if tools else None,
                chat_template=self._template,
                add_generation_prompt=prompt,
                date_string=TODAY.strftime("%d %b %Y"),
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # a template is a program, and can fail like any
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise Reject("", 0, "messages", f"the chat template refuses this dialogue ({reason})") from None
        return str(rendered[0][0])

    def _no_specials(self, text: str, where: str) -> None:
        found = self._specials.search(text)
        if found:
            raise Reject("", 0, where, f"holds the tokenizer's special token {found.group()!r}")

    def _prefix_trick(self) -> list[int]:
        """The tokens of a line break, where the tokenizer puts a space before a text's first word, else nothing.

        Such a tokenizer (SentencePiece's habit) must be shown a piece of a dialogue behind something.
        """
        plain = self._backend.encode("a", add_special_tokens=False).ids
        line = self._backend.encode("\n", add_special_tokens=False).ids
        behind = self._backend.encode("\na", add_special_tokens=False).ids
        return line if behind[: len(line)] == line and behind[len(line) :] != plain else []

    def _ids(self, piece: str, first: bool) -> list[int]:
        try:
            if self._newline and not first:
                ids = self._backend.encode("\n" + piece, add_special_tokens=False).ids
                if ids[: len(self._newline)] == self._newline:
                    return ids[len(self._newline) :]
            return self._backend.encode(piece, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):  # what the tokenizers library raises for it
            raise Reject("", 0, "content", "a lone surrogate, which is no Unicode text") from None


def _undated(template: str) -> str:
    """A template with a day of its own in the place of today's."""
    return _now.sub(lambda call: repr(TODAY.strftime(call[1] or call[2] or "")), template)


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.tool_calls:
        message["tool_calls"] = list(turn.tool_calls)
    if turn.name is not None:
        message["name"] = turn.name
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    return message
