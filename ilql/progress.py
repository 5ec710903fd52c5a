"""Where a run stands. Decision: one small record, JSON-able, holds whatever of a run is neither a tensor nor a random
state, so that a checkpoint has it whole and a run that goes on cannot forget a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ilql.types import InputError


class TrainingError(RuntimeError):
    """Training cannot go on; the weights are those of the last whole step. The text says why and what to try."""


@dataclass
class Progress:
    """Where a run stands, JSON-able. step: optimizer steps done. epoch, batch: the next micro-batch of this order.

    accumulated: micro-batches taken of the open window, none between steps, where checkpoints are made. reported: the
    last step whose rows are written and checkpoints made. pieces: into how many each micro-batch is divided for want of
    memory. skipped: windows left out since something was not finite. sums, rows: metrics since the last row of the log.
    values: the number of decisions and their `diagnostics.sums` since then. norms: of the gradient's parts, where a row
    is due. best: step and validation total of the best checkpoint. reports: the last value of each metric.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    accumulated: int = 0
    reported: int = 0
    pieces: int = 1
    skipped: int = 0
    rows: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    values: list[float] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] | None = None
    reports: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, record: Mapping[str, Any], name: str) -> Progress:
        """That of a checkpoint's record; one of another version holds other things."""
        own = {each.name for each in fields(cls)}
        if record.keys() != {"progress", "metrics", "environment"} or record["progress"].keys() != own:
            raise InputError(f"{name} is of another version of ilql; go on with that version, or begin a new run")
        return cls(**record["progress"])

    def count(self, metrics: Mapping[str, float], decisions: float, seen: Sequence[float]) -> None:
        """One optimizer step more. seen: its `diagnostics.sums`, of so many decisions."""
        self.step += 1
        self.accumulated = 0
        self.rows += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if seen:
            before = self.values
            if len(before) != 1 + len(seen):  # none yet, or those of a checkpoint that counted others
                before = [0.0] * (1 + len(seen))
            self.values = [a + b for a, b in zip(before, [decisions, *seen], strict=True)]

    def means(self) -> dict[str, float]:
        """Of the metrics since the last row."""
        return {name: value / self.rows for name, value in self.sums.items()}

    def begin_row(self) -> None:
        self.sums, self.values, self.rows = {}, [], 0


def due(step: int, every: int) -> bool:
    """Whether something that happens `every` so many steps (0 for never) happens after this one."""
    return every > 0 and step % every == 0
