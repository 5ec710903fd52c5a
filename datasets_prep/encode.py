"""Dialogues become rows of token ids here and nowhere else: datasets, rollouts and decoding share this file.

Decision: one class, two questions. `encode` gives a whole dialogue with its transitions, `state` what the agent sees
before it speaks; the second is always the exact prefix of the first, whatever the tokenizer. Dialogues are tokenised
whole and never cut by a tokenizer: cutting happens at turns, in `datasets_prep.overlong`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets_prep import check
from datasets_prep import tokenizer as tk
from datasets_prep.columns import Columns, Row
from datasets_prep.layout import Laid, Layout, MarkLayout, Sheet
from datasets_prep.rejects import Reject, at
from datasets_prep.talks import Talks
from ilql.schema import STEPS
from ilql.types import AGENT, Episode, InputError, Turn


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
        self.layout: Layout = MarkLayout(tokenizer, by_text) if ours else _foreign(tokenizer, by_text)
        self.vocab_size: int = len(tokenizer)
        self.bos_id: int = self.layout.bos_id
        self.pad_id: int = self.bos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.end_ids: list[int] = [*self.layout.stop_ids, *texts.values()]
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
        columns, faults = encode_all(self.layout, Talks.of([episode]), step)
        for fault in faults.values():
            raise fault
        return columns.row(0)

    def state(
        self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None = None
    ) -> tuple[list[int], list[int]]:
        """What the agent sees when it is to speak: tokens (BOS, the turns, the agent's header) and where turns begin.

        The last beginning is that of the agent's open turn. Exactly the first tokens that `encode` gives to a dialogue
        which goes on from there. Raises Reject for turns that no row could hold.
        """
        laid = self.open(turns, tools)
        return laid.tokens, laid.turn

    def open(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None = None) -> Laid:
        """What `state` says, and where the actions among the turns are."""
        check.check_turns(turns)
        return self.layout.lay(turns, tools, header=True)

    def action(self, turns: Sequence[Turn], text: str) -> list[int]:
        """The tokens of the agent's next turn where it says `text`, its end included: an action of `encode`."""
        laid = self.open([*turns, Turn(AGENT, text)])
        _, start, end = laid.spans[-1]
        return laid.tokens[start:end]

    def note(self, text: str) -> list[int]:
        """A text that is no turn of the dialogue, for the agent alone, as tokens. Raises InputError where the tokenizer
        cannot write it."""
        ids = self.layout.note(text)
        if self.unk_id is not None and self.unk_id in ids:
            raise InputError(
                f"the tokenizer has no tokens for {text!r}; build the dataset with --tokenizer byte, bpe:SIZE or a "
                "pretrained model's"
            )
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The utterance that generated action ids say; what follows the first end mark is ignored."""
        ids = [int(i) for i in ids]
        end = next((k for k, i in enumerate(ids) if i in self.end_ids), len(ids))
        said = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        closing = self._action_texts.get(ids[end], "") if end < len(ids) else ""
        return self.layout.tidy(said) + closing


def _foreign(tokenizer: Any, actions: dict[str, int]) -> Layout:
    from datasets_prep.template import TemplateLayout  # with it come transformers, which a worker may do without

    return TemplateLayout(tokenizer, actions)


def encode_all(layout: Layout, talks: Talks, step: str) -> tuple[Columns, dict[int, Reject]]:
    """All dialogues but those that are no evidence, in order, and what is wrong with these, by their place."""
    if step not in STEPS:
        raise InputError(f"step is {step!r}, not one of {', '.join(STEPS)}")
    faults = check.faults(talks)
    places = [i for i in range(len(talks)) if i not in faults]
    if faults:
        talks = talks.take(places)
    sheet, unlaid = layout.lay_all(talks, open_ended(talks))
    if unlaid:
        faults |= {places[k]: fault for k, fault in unlaid.items()}
        kept = [k for k in range(len(talks)) if k not in unlaid]
        places, talks = [places[k] for k in kept], talks.take(kept)
    meta, unwritten = _metas(talks)
    logp, unlikely = _logps(talks, sheet, step)
    columns = Columns(
        step=step,
        id=talks.id,
        meta=meta,
        terminated=np.array(talks.terminated, bool),
        **{name: getattr(sheet, name) for name in ("tokens", "size", "turn", "turns", "start", "end", "spans")},
        reward=np.array(talks.reward, np.float64)[talks.is_action],
        logp=logp,
        cut=np.zeros((len(talks), 2), np.int64),
        pair=talks.pair,
    )
    columns.prefix, unfit = _prefixes(talks)
    late = unlikely | unwritten | unfit
    if late:
        faults |= {places[k]: fault for k, fault in late.items()}
        columns = columns.take([k for k in range(len(talks)) if k not in late])
    return columns, faults


def open_ended(talks: Talks) -> np.ndarray:
    """Which dialogues (B) were cut off after the agent's last turn was answered, so that they end with its header."""
    acts = np.flatnonzero(talks.is_action)
    last = acts[np.searchsorted(acts, talks.first[1:]) - 1]  # every dialogue has an action
    return ~np.array(talks.terminated, bool) & (last + 1 < talks.first[1:])


def _prefixes(talks: Talks) -> tuple[list[np.ndarray | None] | None, dict[int, Reject]]:
    """The column `prefix`, float32, and the dialogues whose prefix is no list of finite numbers."""
    if talks.prefix is None:
        return None, {}
    column: list[np.ndarray | None] = []
    faults = {}
    for i, given in enumerate(talks.prefix):
        found = None
        try:
            with np.errstate(over="ignore"):
                found = None if given is None else np.array(given, np.float64).astype(np.float32)
        except (TypeError, ValueError, OverflowError):
            faults[i] = Reject("", 0, "prefix", "no list of numbers")
        if found is not None and (found.ndim != 1 or not len(found)):
            faults[i] = Reject("", 0, "prefix", "no list of numbers")
        elif found is not None and not np.isfinite(found).all():
            faults[i] = Reject("", 0, "prefix", "a number is NaN, infinite or too large for 32 bits")
        column.append(None if i in faults else found)
    return column, faults


_write = json.JSONEncoder(ensure_ascii=False, sort_keys=True, allow_nan=False).encode


def _metas(talks: Talks) -> tuple[list[str], dict[int, Reject]]:
    """The column `meta`, and the dialogues whose id or meta cannot be written."""
    texts, faults = [], {}
    for i, (name, meta) in enumerate(zip(talks.id, talks.meta, strict=True)):
        try:
            text = "{}" if meta == {} else _write(meta)
            text.encode()
            name.encode()
        except (TypeError, ValueError, RecursionError) as error:
            text = ""
            faults[i] = Reject("", 0, "meta", f"id or meta cannot be written as JSON ({type(error).__name__})")
        texts.append(text)
    return texts, faults


def _logps(talks: Talks, sheet: Sheet, step: str) -> tuple[np.ndarray | None, dict[int, Reject]]:
    """The column `logp`, one number a transition, None where no action has any; and the dialogues at fault in it."""
    acts = np.flatnonzero(talks.is_action).tolist()
    if all(talks.logp[k] is None for k in acts):
        return None, {}
    lengths = (sheet.end - sheet.start).tolist() if step == "token" else [1] * len(acts)
    owner = (np.searchsorted(talks.first, acts, side="right") - 1).tolist()
    column: list[float] = []
    faults: dict[int, Reject] = {}
    for k, n, i in zip(acts, lengths, owner, strict=True):
        field = at(k - int(talks.first[i]), "logp")
        numbers = [math.nan] * n
        try:
            numbers = _token_logp(talks.logp[k], n, field) if step == "token" else _scalar_logp(talks.logp[k], field)
        except Reject as fault:
            faults.setdefault(i, fault.with_traceback(None))
        column += numbers
    return np.array(column), faults


def _scalar_logp(value: Any, field: str) -> list[float]:
    if value is None:
        return [math.nan]
    if isinstance(value, Sequence):
        raise Reject("", 0, field, "a list, but at utterance steps it is one number a message (or use --step token)")
    return [check.logp(value, field)]


def _token_logp(value: Any, n: int, field: str) -> list[float]:
    if value is None:
        return [math.nan] * n
    if not isinstance(value, Sequence):
        if n > 1:
            hint = "(use --step utterance, or make each message one token, with --turn-tokens or --action-token)"
            raise Reject("", 0, field, f"one number, but at token steps it is one a token {hint}")
        value = [value]
    if len(value) != n:
        raise Reject("", 0, field, f"{len(value)} numbers for a message of {n} tokens, its end included")
    return [math.nan if x is None else check.logp(x, field) for x in value]
