"""Timing in alternation. Decision: what is compared runs in turns on the same weights and data within one process, so
that a machine that is slow for a while is slow for both; nothing is timed before the numbers are known to agree.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

ENOUGH, MORE = 4.0, 3  # seconds that rounds may take in all where there are up to so many times as many as asked

Steps = Mapping[str, Callable[[], object]]


class Disagreement(RuntimeError):
    """Two ways of computing the same thing do not give the same numbers: their speeds must not be compared."""


class Measured(NamedTuple):
    """A figure with the lowest and highest of its pairs."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Measured:
        return Measured(*(factor * x for x in self))


def clock(step: Callable[[], object], count: int = 1) -> float:
    """Seconds that one of `count` steps in a row takes."""
    begin = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - begin) / count


def times(steps: Steps, pairs: int, warm: Mapping[str, float], least: float = 0.2) -> dict[str, list[float]]:
    """Seconds of each step in each round. Every round runs all of them, beginning with another one.

    warm: what each took when it was tried; shorter ones are repeated within a round to fill `least` seconds. Of short
    rounds there are more, up to three times as many: a passing disturbance weighs more there. One or two pairs are
    a trial and stay as they are.
    """
    count = {name: max(1, math.ceil(least / max(warm[name], 1e-4))) for name in steps}
    fitting = int(ENOUGH / sum(max(least, warm[name]) for name in steps))
    rounds = pairs if pairs <= 2 else max(pairs, min(MORE * pairs, fitting))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for i in range(rounds):
        for name in (*order[i % len(order) :], *order[: i % len(order)]):
            seconds[name].append(clock(steps[name], count[name]))
    return seconds


def spread(values: Sequence[float]) -> Measured:
    return Measured(statistics.median(values), min(values), max(values))


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> Measured:
    """How many times faster ours is: the ratio of the medians, with the lowest and highest ratio of a pair."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return Measured(statistics.median(theirs) / statistics.median(ours), min(each), max(each))


def agree(what: str, ours: Mapping[str, float], theirs: Mapping[str, float], tolerance: float) -> None:
    """Raise Disagreement unless every number that both have is equal to `tolerance`, relative."""
    for name in (name for name in ours if name in theirs):
        a, b = ours[name], theirs[name]
        if not math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-3 * tolerance):
            raise Disagreement(f"{what}: {name} is {a:.8g} in one and {b:.8g} in the other; nothing was timed")


def say(text: str) -> None:
    """Progress, beside the tables on standard output."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
