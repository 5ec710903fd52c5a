"""Means with intervals, tables of them, and the files they are kept in.

Decision: the percentile bootstrap over *episodes*, because returns are neither normal nor equally spread, with a fixed
seed of its own, so that a report of the same episodes is the same report. Episodes that belong together (the two games
of a scenario, one in each seat) are resampled together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilql import atomic

RESAMPLES = 2000  # of a statistic that is no mean
_CHUNK = 2_000_000  # resampled indices held at a time


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval; nan where there was nothing to average."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        return f"{_number(self.mean)} [{_number(self.low)}, {_number(self.high)}]"


def _number(value: float) -> str:
    return f"{value:.2f}" if round(value, 2) else "0.00"  # no "-0.00"


def bootstrap(
    values: Sequence[float | None],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean of `values` and its percentile bootstrap interval.

    values: one number an episode; None = it has no meaning there and is not counted (the mean of a resample is over
        the numbers that it holds).
    groups: a label an episode; whole groups are drawn. None: every episode is its own group.
    A resample without any number is drawn no conclusion from: it is left out.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, but must lie between 0 and 1")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"one group a value: {len(groups)} groups, {len(values)} values")
    member, drawable = _members(len(values), groups)
    known = np.array([value is not None for value in values], dtype=bool)
    if not known.any():
        return Interval(math.nan, math.nan, math.nan)
    numbers = np.array([0.0 if value is None else value for value in values], dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not finite")
    total = np.bincount(member, numbers, drawable)  # (G)
    count = np.bincount(member, known, drawable)  # (G)
    rng = np.random.default_rng(seed)
    means = []
    for size in _chunks(resamples, max(1, _CHUNK // drawable)):
        draw = rng.integers(drawable, size=(size, drawable))
        drawn = count[draw].sum(1)
        means.append(total[draw].sum(1)[drawn > 0] / drawn[drawn > 0])
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(total.sum() / count.sum()), float(low), float(high))


def interval(
    statistic: Callable[..., float], columns: Sequence[np.ndarray], groups: Sequence[str], seed: int = 0
) -> Interval:
    """A statistic of columns of one number a dialogue, with its percentile bootstrap interval over groups."""
    _, member = np.unique(groups, return_inverse=True)
    order = np.argsort(member, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(member[order])) + 1)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([parts[i] for i in rng.integers(len(parts), size=len(parts))])
        drawn.append(statistic(*(c[chosen] for c in columns)))
    kept = np.array(drawn)[np.isfinite(drawn)]
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (np.nan, np.nan)
    return Interval(statistic(*columns), float(low), float(high))


def _members(size: int, groups: Sequence[Hashable] | None) -> tuple[np.ndarray, int]:
    """Which group each of `size` values belongs to, and how many there are."""
    index: dict[Hashable, int] = {}
    labels = range(size) if groups is None else groups
    return np.array([index.setdefault(label, len(index)) for label in labels], dtype=np.int64), len(index)


def _chunks(total: int, size: int) -> list[int]:
    return [size] * (total // size) + ([total % size] if total % size else [])


def crossed(
    runs: Sequence[Sequence[float | None]],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean over runs that played the same episodes, and its interval where runs and groups of episodes are both drawn.

    runs: one number an episode for each run, as for `bootstrap`. The mean is over all numbers alike.
    """
    member, drawable = _members(len(runs[0]), groups)
    known = np.array([[value is not None for value in values] for values in runs], bool)
    if not known.any():
        return Interval(math.nan, math.nan, math.nan)
    numbers = np.array([[0.0 if value is None else value for value in values] for values in runs], np.float64)
    total = np.stack([np.bincount(member, x, drawable) for x in numbers])  # (R, G)
    count = np.stack([np.bincount(member, x, drawable) for x in known])  # (R, G)
    rng = np.random.default_rng(seed)
    means = []
    for size in _chunks(resamples, max(1, _CHUNK // total.size)):
        run = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size)  # how often each is drawn, (S, R)
        group = rng.multinomial(drawable, np.full(drawable, 1 / drawable), size)  # (S, G)
        drawn = ((run @ count) * group).sum(1)
        means.append(((run @ total) * group).sum(1)[drawn > 0] / drawn[drawn > 0])
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(total.sum() / count.sum()), float(low), float(high))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; the columns are those of all rows in the order they first appear, an absent cell is a dash."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns] + [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    padded = ([text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Interval):
        return str(value)
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:g}"
    return str(value).replace("|", "\\|")


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write a report as JSON with sorted keys; nan becomes null, an Interval an object. Never overwrites."""
    text = json.dumps(_plain(data), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    atomic.write_text(Path(path), text + "\n", new=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
