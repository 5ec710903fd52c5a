"""What was played, as lines of a table: one run, or several runs that differ by their training seed.

Decision: runs play the same episodes, so two things are drawn anew in a resample, each on its own: the runs, and the
episodes that all of them play. The interval then covers the luck of training and that of episodes. Of few runs it is
too narrow, as any bootstrap of few draws is; so the runs' own means are shown beside it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ilql.report import Interval, bootstrap, crossed
from ilql.types import Episode

PARTNER_ROW = "partner"


@dataclass
class Row:
    """One line of the table: what was played, and the values an episode that its intervals come from."""

    name: str
    beta: float
    values: dict[str, list[float | None]]
    groups: Sequence[Hashable]
    episodes: list[Episode]

    def label(self) -> str:
        return "partner, both sides" if self.name == PARTNER_ROW else f"beta {self.beta:g}"


Lines = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # of the table, and of eval.json


def one(rows: Sequence[Row], headline: str) -> Lines:
    """One run's rows; those of a game have the gain over the partner's row in the column `headline`."""
    lines, results = [], []
    for row in rows:
        intervals = {name: bootstrap(x, groups=row.groups) for name, x in _columns(row, rows, headline).items()}
        lines.append({"policy": row.label(), "n": len(row.groups), **intervals})
        results.append({"name": row.name, "beta": row.beta, "n": len(row.groups), "metrics": intervals})
    return lines, results


def several(runs: Sequence[Sequence[Row]], headline: str) -> Lines:
    """The rows of several runs, in the same order, which played the same episodes, taken together."""
    lines, results = [], []
    for same in zip(*runs, strict=True):
        first = same[0]
        each = [_columns(row, rows, headline) for row, rows in zip(same, runs, strict=True)]
        metrics: dict[str, Interval] = {
            name: crossed([columns[name] for columns in each], groups=first.groups) for name in each[0]
        }
        means = {name: [_mean(columns[name]) for columns in each] for name in metrics}
        known = [x for x in means[headline] if x is not None]
        spread = f"{min(known):.2f} to {max(known):.2f}" if known else None
        count = {"runs": len(runs), "n": len(first.groups)}
        lines.append({"policy": first.label(), **count, f"runs' {headline}": spread, **metrics})
        results.append({"name": first.name, "beta": first.beta, **count, "metrics": metrics, "means of runs": means})
    return lines, results


def _columns(row: Row, rows: Sequence[Row], headline: str) -> dict[str, Sequence[float | None]]:
    """A row's values an episode, with the gain over the partner's row where there is one."""
    columns: dict[str, Sequence[float | None]] = dict(row.values)
    reference = next((other for other in rows if other.name == PARTNER_ROW), None)
    if reference is not None and row is not reference:
        pairs = zip(row.values[headline], reference.values[headline], strict=True)
        columns[f"gain in {headline}"] = [None if a is None or b is None else a - b for a, b in pairs]
    return columns


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
