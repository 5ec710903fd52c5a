"""What the value of a next state is where an algorithm reads it off the target critics. Decision: the table over the
vocabulary that this takes is made for a few states at a time, is without a gradient, and never outlives its chunk; the
learner asks for every distinct next state once. An algorithm names its backup: `BACKUP = "max"`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ilql import heads
from ilql.likelihood import Likelihood
from ilql.model import ILQLModel

Backup = Callable[[ILQLModel, Tensor, Tensor], Tensor]


def best(model: ILQLModel, h: Tensor, acting: Tensor) -> Tensor:
    """max_a min_k Qtarget_k(s, a) over all tokens: states (N, D) -> (N)."""
    return model.q_values(h, heads=model.q_target).amax(-1)


def likeliest(model: ILQLModel, h: Tensor, acting: Tensor) -> Tensor:
    """The largest ratio of a likelihood critic's probability to the actor's, as a value: states (N, D) -> (N).

    max_a min_k p_k(a | s) / pi(a | s) over the tokens a that the actor's support has (see `Likelihood`), at most 1, on
    the scale from low to high (Hong et al. 2024, sec. 4).
    """
    how = Likelihood(**(model.config.likelihood or {}))
    logits: Tensor = model.get_output_embeddings()(acting)
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    p = (model.q_values(h, heads=model.q_target).to(logp) - how.low) / (how.high - how.low)
    top = logp.amax(-1, keepdim=True)
    inside = logp >= top + (math.log(how.support) if how.support else -math.inf)
    ratio = torch.where(inside, p / logp.exp(), 0.0).amax(-1)
    return how.low + (how.high - how.low) * ratio.clamp(max=1.0)


BACKUPS: dict[str, Backup] = {"max": best, "likelihood": likeliest}


@torch.no_grad()
def value(model: ILQLModel, h: Tensor, backup: str, acting: Tensor | None = None) -> Tensor:
    """The value of states by a name in BACKUPS: (N, D) -> (N), in float32 or wider.

    h: what the target critics read; acting: what the actor reads, where that is something else.
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    tables = len(model.q_target) + (backup == "likelihood")
    row = model.config.get_text_config().vocab_size * max(1, tables) * h.element_size()
    size = max(1, heads.CHUNK // row)
    parts = zip(h.split(size), (h if acting is None else acting).split(size), strict=True)
    return torch.cat([BACKUPS[backup](model, *part).to(wide) for part in parts])


ACTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda q: q.amax(-1),
    "lse": lambda q: q.logsumexp(-1),
}


@torch.no_grad()
def actors_value(head: Any, hidden: Sequence[Tensor], backup: str, least: str = "action") -> Tensor:
    """The value of states where an actor's logits are its Q: what its output embedding reads in each of some passes,
    (N, D) each -> (N), in float32 or wider.

    backup: the largest logit, or log-sum-exp over all. least: where there are several passes, the minimum over them is
    taken of every action's logit (action), or of what the backup makes of each pass (value).
    """
    wide = torch.promote_types(hidden[0].dtype, torch.float32)
    together = ACTORS[backup]
    size = max(1, heads.CHUNK // (2 * len(head.weight) * wide.itemsize))
    out = []
    for parts in zip(*(h.split(size) for h in hidden), strict=True):
        tables = (head(part).to(wide) for part in parts)
        if least == "action":
            out.append(together(reduce(torch.minimum, tables)))
        else:
            out.append(torch.stack([together(table) for table in tables]).amin(0))
    return torch.cat(out)
