"""Dialogues become rows of token ids here and nowhere else: datasets, rollouts and decoding share this file.

Decision: one class, two questions. `encode` gives a whole dialogue with its transitions, `state` what the agent sees
before it speaks; the second is always the exact prefix of the first, whatever the tokenizer. Dialogues are tokenised
whole and never cut by a tokenizer: cutting happens at turns, in `datasets_prep.overlong`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from datasets_prep import tokenizer as tk
from datasets_prep.layout import Laid, MarkLayout
from datasets_prep.rejects import Reject, at
from datasets_prep.template import TemplateLayout
from ilql.schema import STEPS
from ilql.types import AGENT, Episode, InputError, Turn

Row = dict[str, Any]
LARGEST = 3.4028234663852886e38  # of a float32, what rewards are stored as


class Encoder:
    """Text to tokens and back for one tokenizer.

    vocab_size: the length of the tokenizer, added tokens included. bos_id: every row's first token. end_ids: what ends
    an agent's turn, to be given to `generate` as `eos_token_id`.
    """

    def __init__(self, tokenizer: Any, action_tokens: Mapping[str, int] | None = None) -> None:
        """action_tokens: text -> id; None reads what the tokenizer's files remember. Raises InputError."""
        self.tokenizer = tokenizer
        texts = dict(tk.action_tokens(tokenizer) if action_tokens is None else action_tokens)
        self._action_texts = {i: text for text, i in texts.items()}
        by_text = {text.strip(): i for text, i in texts.items()}
        ours = tk.turn_format(tokenizer) == tk.TURN_FORMAT
        self._layout = MarkLayout(tokenizer, by_text) if ours else TemplateLayout(tokenizer, by_text)
        self.vocab_size: int = len(tokenizer)
        self.bos_id: int = self._layout.bos_id
        self.pad_id: int = self.bos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.end_ids: list[int] = [*self._layout.stop_ids, *texts.values()]
        self.unk_id: int | None = tokenizer.unk_token_id

    @classmethod
    def from_folder(cls, path: str | Path) -> Encoder:
        """The encoder of a saved tokenizer: `dataset/tokenizer`, `run/model` or any `save_pretrained` folder."""
        if not Path(path).is_dir():
            raise InputError(f"{path} is no folder with a tokenizer")
        return cls(tk.load(str(path)))

    def encode(self, episode: Episode, step: str) -> Row:
        """One dialogue as a row of `ilql.schema.SCHEMA`; step is "token" or "utterance".

        A dialogue that did not terminate ends with what followed the agent's last turn and the agent's header, so that
        the last transition bootstraps there; where nothing followed it ends with the agent's last action.
        Raises Reject for a dialogue that is no evidence: see `check`.
        """
        if step not in STEPS:
            raise InputError(f"step is {step!r}, not one of {', '.join(STEPS)}")
        turns = episode.turns
        check(turns)
        last = max(i for i, turn in enumerate(turns) if turn.is_action)
        laid = self._layout.lay(turns, episode.tools, header=not episode.terminated and last + 1 < len(turns))
        if last + 1 == len(turns):  # nobody reads what a template writes behind the last action
            del laid.tokens[laid.spans[-1][2] :]
        try:
            meta = json.dumps(episode.meta, ensure_ascii=False, sort_keys=True, allow_nan=False)
            meta.encode()
            episode.id.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise Reject("", 0, "meta", f"id or meta cannot be written as JSON ({type(error).__name__})") from None
        row: Row = {"id": episode.id, "tokens": laid.tokens, "turn": laid.turn}
        row |= transitions(turns, laid, step)
        return row | {"terminated": episode.terminated, "meta": meta}

    def state(
        self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None = None
    ) -> tuple[list[int], list[int]]:
        """What the agent sees when it is to speak: tokens (BOS, the turns, the agent's header) and where turns begin.

        The last beginning is that of the agent's open turn. Exactly the first tokens that `encode` gives to a dialogue
        which goes on from there. Raises Reject for turns that no row could hold.
        """
        check_turns(turns)
        laid = self._layout.lay(turns, tools, header=True)
        return laid.tokens, laid.turn

    def text(self, ids: Sequence[int]) -> str:
        """The utterance that generated action ids say; what follows the first end mark is ignored."""
        ids = [int(i) for i in ids]
        end = next((k for k, i in enumerate(ids) if i in self.end_ids), len(ids))
        said = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        closing = self._action_texts.get(ids[end], "") if end < len(ids) else ""
        return self._layout.tidy(said) + closing


def check_turns(turns: Sequence[Turn]) -> None:
    """Reject an unknown role, or tool calls that are not the agent's."""
    for i, turn in enumerate(turns):
        if turn.role not in tk.ROLES:
            raise Reject("", 0, at(i, "role"), f"{turn.role!r} is none of {', '.join(tk.ROLES)}")
        if turn.tool_calls and turn.role != AGENT:
            raise Reject("", 0, at(i, "tool_calls"), f"on a turn of {turn.role!r}; only the agent calls tools")


def check(turns: Sequence[Turn]) -> None:
    """Reject a dialogue without an action, a reward that is not a finite number, or one that is not on an action."""
    check_turns(turns)
    for i, turn in enumerate(turns):
        field = at(i, "reward")
        number(turn.reward, field)
        if turn.reward and turn.role != AGENT:
            raise Reject("", 0, field, f"on a turn of {turn.role!r}; only a turn of the agent may carry one")
        if turn.reward and not turn.act:
            raise Reject("", 0, field, "on a turn of the agent that is not to be learned from (loss_mask 0)")
    if not any(turn.is_action for turn in turns):
        raise Reject("", 0, "messages", "no turn of the agent to learn from")


def number(value: Any, where: str) -> float:
    """A finite number that fits into 32 bits, as a float; True, "1" and NaN are none, and a Reject."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise Reject("", 0, where, f"a {type(value).__name__}, not a number")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not abs(result) <= LARGEST:
        raise Reject("", 0, where, "NaN, infinite or too large for a 32-bit number")
    return result


def transitions(turns: Sequence[Turn], laid: Laid, step: str) -> dict[str, list[Any]]:
    """The columns start, end, reward and logp: one entry a token of each action, or one an utterance.

    An utterance's reward is received on completing it, so at token steps it sits on the last token and nowhere else.
    """
    start: list[int] = []
    end: list[int] = []
    reward: list[float] = []
    logp: list[float | None] = []
    for i, s, e in laid.spans:
        turn = turns[i]
        if step == "utterance":
            start.append(s)
            end.append(e)
            reward.append(float(turn.reward))
            logp.append(_scalar_logp(turn.logp, at(i, "logp")))
        else:
            start += range(s, e)
            end += range(s + 1, e + 1)
            reward += [0.0] * (e - s - 1) + [float(turn.reward)]
            logp += _token_logp(turn.logp, e - s, at(i, "logp"))
    if not start:
        raise Reject("", 0, "messages", "no token of the agent to learn from")
    return {"start": start, "end": end, "reward": reward, "logp": logp}


def _scalar_logp(value: Any, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, Sequence):
        raise Reject("", 0, field, "a list, but at utterance steps it is one number a message (or use --step token)")
    return _logp(value, field)


def _token_logp(value: Any, n: int, field: str) -> list[float | None]:
    if value is None:
        return [None] * n
    if not isinstance(value, Sequence):
        raise Reject("", 0, field, "one number, but at token steps it is one a token (or use --step utterance)")
    if len(value) != n:
        raise Reject("", 0, field, f"{len(value)} numbers for a message of {n} tokens, its end included")
    return [None if x is None else _logp(x, field) for x in value]


def _logp(value: Any, field: str) -> float:
    result = number(value, field)
    if result > 0:
        raise Reject("", 0, field, "above 0, so it is not the logarithm of a probability")
    return result
