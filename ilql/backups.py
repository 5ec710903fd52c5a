"""What the value of a next state is where an algorithm reads it off the target critics. Decision: the table over the
vocabulary that this takes is made for a few states at a time, is without a gradient, and never outlives its chunk; the
learner asks for every distinct next state once. An algorithm names its backup: `BACKUP = "max"`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ilql import heads
from ilql.model import ILQLModel

Backup = Callable[[ILQLModel, Tensor], Tensor]


def best(model: ILQLModel, h: Tensor) -> Tensor:
    """max_a min_k Qtarget_k(s, a) over all tokens: states (N, D) -> (N)."""
    return model.q_values(h).amax(-1)


BACKUPS: dict[str, Backup] = {"max": best}


@torch.no_grad()
def value(model: ILQLModel, h: Tensor, backup: str) -> Tensor:
    """The value of states by a name in BACKUPS: (N, D) -> (N), in float32 or wider."""
    wide = torch.promote_types(h.dtype, torch.float32)
    row = model.config.get_text_config().vocab_size * max(1, len(model.q_target)) * h.element_size()
    parts = h.split(max(1, heads.CHUNK // row))
    return torch.cat([BACKUPS[backup](model, part).to(wide) for part in parts])
