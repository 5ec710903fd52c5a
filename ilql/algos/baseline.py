"""What a return is compared with, for policy gradients. Decision: V, a number, or the mean return to go of the training
dialogues, known before training; no mean of a batch, since a step's gradient would depend on how it is cut into
micro-batches and processes. Whatever does not depend on the action leaves the gradient's mean as it is, and changes its
variance.

The option is called `baseline` in every Config that has it: `value`, `mean`, or a number in the log's units (0: none).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor

from ilql.algos import limits
from ilql.data import Batch
from ilql.learner import Out

Baseline = Literal["value", "mean"] | float


def check(section: str, baseline: Baseline) -> None:
    if not isinstance(baseline, str):
        limits.finite(f"{section}.baseline", baseline)


def level(to_go: np.ndarray, cfg: Any) -> float:
    """The constant, in the log's units, that the baseline is, or from which V begins: were that 0, and the returns far
    from it, the first steps would push all that was logged the same way. to_go: the returns to go of the training
    dialogues, one a decision."""
    return (float(to_go.mean()) if len(to_go) else 0.0) if isinstance(cfg.baseline, str) else float(cfg.baseline)


def advantage(out: Out, batch: Batch, baseline: Baseline) -> Tensor:
    """The return to go less the baseline, (N), a constant."""
    if baseline == "value":
        return (batch.ret - out.v).detach()
    return batch.ret - out.model.config.baseline * out.model.config.reward_scale
