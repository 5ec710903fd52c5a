"""Which dialogues are no evidence, whatever tokenizer writes them. Decision: whole columns are checked at once; only
for a dialogue that may be at fault its turns are gone through one by one, for the first fault's name and place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from datasets_prep import tokenizer as tk
from datasets_prep.rejects import Reject, at
from datasets_prep.talks import Talks
from ilql.types import AGENT, Turn

LARGEST = 3.4028234663852886e38  # of a float32, what rewards are stored as


def faults(talks: Talks) -> dict[int, Reject]:
    """What `check` says against dialogues, by their place."""
    found = {}
    for i in _suspects(talks):
        try:
            check(talks.turns_of(i))
        except Reject as fault:
            found[i] = fault.with_traceback(None)  # which would keep this frame, and the frame the fault
    return found


def _suspects(talks: Talks) -> list[int]:
    """The dialogues that `check` may refuse: all that it refuses are among them."""
    numbers = set(map(type, talks.reward)) <= {float, int}
    try:
        reward = np.array(talks.reward if numbers else np.nan, np.float64)
    except OverflowError:
        reward = np.array(np.nan)
    odd = ~(np.abs(reward) <= LARGEST) | ((reward != 0) & ~talks.is_action)
    if not set(talks.role) <= set(tk.ROLES):
        odd |= np.array([role not in tk.ROLES for role in talks.role])
    odd[[k for k in talks.calling() if talks.role[k] != AGENT]] = True
    acts = np.concatenate(([0], np.cumsum(talks.is_action)))[talks.first]
    silent = np.flatnonzero(acts[1:] == acts[:-1]).tolist()
    return sorted({*silent, *talks.holders(np.flatnonzero(odd))})


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


def logp(value: Any, field: str) -> float:
    """The logarithm of a probability, or a Reject."""
    result = number(value, field)
    if result > 0:
        raise Reject("", 0, field, "above 0, so it is not the logarithm of a probability")
    return result
