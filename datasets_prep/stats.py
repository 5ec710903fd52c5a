"""What one must know of the logs before training on them. Decision: a few numbers a dialogue are kept, so that
quantiles are exact and do not depend on the number of workers; the texts and tokens are not.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from datasets_prep.columns import Columns
from datasets_prep.talks import offsets

FEW = 12  # action tokens that are printed one by one
QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}


@dataclass(slots=True)
class Tally:
    """The sum of one split's facts."""

    tokens: array[int] = field(default_factory=lambda: array("q"))
    turns: array[int] = field(default_factory=lambda: array("q"))
    returns: array[float] = field(default_factory=lambda: array("d"))
    rewards: array[float] = field(default_factory=lambda: array("d"))
    actions: array[int] = field(default_factory=lambda: array("q"))
    transitions: int = 0
    unknown: int = 0
    truncated: int = 0
    without_target: int = 0
    cut_dialogues: int = 0
    cut_turns: int = 0
    cut_rewards: int = 0
    digests: set[bytes] = field(default_factory=set)
    action_tokens: Counter[int] = field(default_factory=Counter)

    def add(self, rows: Columns, unk_id: int | None, action_ids: Sequence[int]) -> None:
        """Count some rows. Actions that follow each other without a gap are one turn of the agent."""
        at = offsets(rows.spans)
        closes = np.append(rows.start[1:] != rows.end[:-1], True)
        closes[at[1:] - 1] = True
        opens = np.append(True, closes[:-1])
        owner, rewards = np.repeat(np.arange(len(rows)), rows.spans)[closes], rows.reward[closes]
        open_end = ~rows.terminated & (rows.end[at[1:] - 1] < rows.size)
        _extend(self.tokens, rows.size)
        _extend(self.turns, rows.turns - open_end)
        _extend(self.returns, np.bincount(owner, rewards, len(rows)))
        _extend(self.rewards, rewards)
        _extend(self.actions, rows.end[closes] - rows.start[opens])
        self.transitions += int(rows.transitions.sum())
        self.unknown += 0 if unk_id is None else int(np.count_nonzero(rows.tokens == unk_id))
        self.truncated += int(np.count_nonzero(~rows.terminated))
        self.without_target += int(np.count_nonzero(~rows.terminated & ~open_end))
        self.cut_dialogues += int(np.count_nonzero(rows.cut[:, 0]))
        self.cut_turns += int(rows.cut[:, 0].sum())
        self.cut_rewards += int(rows.cut[:, 1].sum())
        tokens, ends = memoryview(rows.tokens.tobytes()), offsets(rows.size * 4).tolist()
        self.digests.update(hashlib.blake2b(tokens[a:b], digest_size=16).digest() for a, b in pairwise(ends))
        if len(action_ids):
            used = rows.tokens[np.isin(rows.tokens, action_ids)]
            self.action_tokens.update(
                dict(zip(*(x.tolist() for x in np.unique(used, return_counts=True)), strict=True))
            )

    def summary(self) -> dict[str, Any]:
        """For the manifest: counts, shares in [0, 1] and quantiles."""
        tokens, rewards = sum(self.tokens), np.asarray(self.rewards)
        return {
            "dialogues": len(self.tokens),
            "turns": sum(self.turns),
            "agent_turns": len(self.rewards),
            "tokens": tokens,
            "transitions": self.transitions,
            "action_token_share": _round(sum(self.actions) / max(tokens, 1)),
            "nonzero_reward_share": _round(float(np.count_nonzero(rewards)) / max(len(rewards), 1)),
            "reward": _quantiles(self.rewards),
            "return": _quantiles(self.returns),
            "tokens_per_dialogue": _quantiles(self.tokens),
            "turns_per_dialogue": _quantiles(self.turns),
            "tokens_per_action": _quantiles(self.actions),
            "truncated": self.truncated,
            "transitions_without_target": self.without_target,
            "cut_dialogues": self.cut_dialogues,
            "cut_turns": self.cut_turns,
            "cut_rewards": self.cut_rewards,
            "duplicates": len(self.tokens) - len(self.digests),
            "unknown_tokens": self.unknown,
        }


def _extend(numbers: array[Any], more: np.ndarray) -> None:
    numbers.frombytes(more.astype(numbers.typecode, copy=False).tobytes())


def _quantiles(values: array[Any]) -> dict[str, float]:
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return {}
    found = np.quantile(numbers, list(QUANTILES.values()))
    return {"mean": _round(float(numbers.mean()))} | {
        name: _round(float(value)) for name, value in zip(QUANTILES, found, strict=True)
    }


def _round(value: float) -> float:
    """Six digits: what a reader needs, and the same on machines that sum in another order."""
    return float(f"{value:.6g}")


TEXTS = {
    "dialogues": "dialogues",
    "turns": "turns",
    "agent_turns": "turns of the agent (actions)",
    "tokens": "tokens",
    "transitions": "transitions",
    "action_token_share": "share of action tokens",
    "nonzero_reward_share": "share of actions with reward",
    "truncated": "dialogues cut off by the log (truncated)",
    "transitions_without_target": "transitions without a target",
    "cut_dialogues": "dialogues cut at --max-length",
    "cut_turns": "turns dropped by that",
    "cut_rewards": "rewards dropped by that",
    "duplicates": "dialogues with the tokens of another",
    "unknown_tokens": "unknown tokens",
}
SPREADS = {
    "reward": "reward of an action",
    "return": "return of a dialogue",
    "tokens_per_dialogue": "tokens a dialogue",
    "turns_per_dialogue": "turns a dialogue",
    "tokens_per_action": "tokens an action",
}


def table(statistics: dict[str, Any]) -> str:
    """The statistics of a manifest as aligned text."""
    splits = [split for split in ("train", "validation") if split in statistics]
    lines = [["", *splits]]
    lines += [[text, *(_show(statistics[split][key]) for split in splits)] for key, text in TEXTS.items()]
    blocks = [_align(lines)]
    columns = ["mean", *QUANTILES]
    for split in splits:
        lines = [[split, *columns]]
        for key, text in SPREADS.items():
            spread = statistics[split][key]
            lines.append([text, *(_show(spread[column]) if spread else "" for column in columns)])
        blocks.append(_align(lines))
    uses = statistics.get("action_tokens")
    if uses:
        lines = [["action token", "uses"]]
        shown = list(uses)
        if len(shown) > FEW:
            shown.sort(key=uses.__getitem__)
            lines[0][0] = f"action token (the rarest and commonest of {len(shown)})"
            shown[FEW // 2 : -FEW // 2] = []
        lines += [[repr(text), _show(uses[text])] for text in shown]
        blocks.append(_align(lines))
    return "\n\n".join(blocks)


def _show(value: float) -> str:
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}"


def _align(lines: list[list[str]]) -> str:
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
