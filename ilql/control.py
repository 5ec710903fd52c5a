"""The return that a decision transformer is told: control tokens at the beginning of each of the agent's turns.

Decision: they are no part of a dataset, which holds facts only. Training makes them of the rewards that followed,
decoding of the return that is wanted less the rewards had so far, and both lay them by `insert`; so a prompt is the
beginning of a training row. They belong to the agent's turn, and a window of N turns is what it was without them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ilql.data import Row
from ilql.types import InputError, Turn

Note = Callable[[str], list[int]]  # the tokens of a control text


class Moved(NamedTuple):
    """tokens and turn: as in a row, with the control tokens. at: where a position has gone."""

    tokens: np.ndarray
    turn: np.ndarray
    at: Callable[[np.ndarray], np.ndarray]


def written(value: float, digits: int) -> str:
    """A number with few significant digits, without an exponent: -83, 0.35, 1200 for 1234."""
    rounded = float(f"{value:.{digits}g}")
    text = f"{rounded:.0f}" if rounded == int(rounded) else f"{rounded:.12f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def text(value: float, digits: int) -> str:
    return f"return {written(value, digits)}"


def insert(tokens: Sequence[int], turn: Sequence[int], begins: Sequence[int], notes: Sequence[list[int]]) -> Moved:
    """Lay notes at the beginnings of turns (ascending, each in `turn`); each becomes the beginning of its turn."""
    before, at = np.asarray(turn), np.asarray(begins)
    sizes = np.array([len(note) for note in notes], np.int64)
    total = np.concatenate([[0], np.cumsum(sizes)])
    flat = np.array([token for note in notes for token in note], np.asarray(tokens).dtype)
    return Moved(
        np.insert(np.asarray(tokens), np.repeat(at, sizes), flat),
        before + total[np.searchsorted(at, before, side="left")],
        lambda place: place + total[np.searchsorted(at, place, side="right")],
    )


def prepare(row: Row, note: Note, digits: int) -> dict[str, Any]:
    """A row of a dataset with the return to go, undiscounted and in the log's units, before each turn of actions."""
    start, end, reward = row["start"], row["end"], np.asarray(row["reward"], np.float64)
    owner = np.searchsorted(np.asarray(row["turn"]), np.asarray(start), side="right") - 1
    _, first = np.unique(owner, return_index=True)
    to_go = np.cumsum(reward[::-1])[::-1][first]
    begins = row["turn"][owner[first]]
    moved = insert(row["tokens"], row["turn"], begins, [note(text(value, digits)) for value in to_go.tolist()])
    kind = row["start"].dtype
    columns = {"tokens": moved.tokens, "turn": moved.turn, "start": moved.at(start), "end": moved.at(end - 1) + 1}
    return {**row, **{name: column.astype(kind) for name, column in columns.items()}}


def state(laid: Any, turns: Sequence[Turn], target: float, note: Note, digits: int) -> tuple[list[int], list[int]]:
    """What the agent sees that is to speak, tokens and where turns begin, with the wanted return before its open turn,
    and what of it was left before each of its earlier ones. laid: of `Encoder.open`, for the same turns."""
    told: dict[int, float] = {}
    left = target
    for i, start, _ in laid.spans:
        told.setdefault(laid.turn[int(np.searchsorted(laid.turn, start, side="right")) - 1], left)
        left -= turns[i].reward
    told[laid.turn[-1]] = left
    moved = insert(laid.tokens, laid.turn, list(told), [note(text(value, digits)) for value in told.values()])
    return moved.tokens.tolist(), moved.turn.tolist()


def advise(target: float, low: float, high: float) -> str | None:
    """What to say of a wanted return that no dialogue had."""
    if low <= target <= high:
        return None
    return (
        f"the target return is {target:g}, but the returns of the training dialogues reach from {low:g} to {high:g}: "
        "the model was told no such return"
    )


def target(told: Mapping[str, Any] | None, algo: str | None, wanted: float | None) -> float | None:
    """The return to tell the agent, None for one that is told none; warns of one that no dialogue had. told: `control`
    of the model's config."""
    if told is None:
        if wanted is not None:
            raise InputError(f"target_return is {wanted}, but {algo} is told no return; only dt is")
        return None
    if wanted is None:
        return float(told["high"])
    if not math.isfinite(wanted):
        raise InputError(f"target_return is {wanted}, but must be a finite number")
    if doubt := advise(wanted, told["low"], told["high"]):
        warnings.warn(doubt, stacklevel=4)
    return wanted
