"""What the frozen copies of the actor read: the prior, and the moving average that it is trained by. Decision: a trunk
that is not trained is that of its copies too, so it does not run twice; and only here does a copy ever drop anything.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ilql import frozen
from ilql.model import ILQLModel
from ilql.pieces import Run
from ilql.prefix import Segments

Read = tuple[Tensor, Tensor, Segments] | Run  # as for `ILQLModel.hidden`


@torch.no_grad()
def prior_hidden(model: ILQLModel, hidden: Tensor, run: Read, stored: Tensor | None = None) -> Tensor:
    """What the prior's output embedding reads, (T, D), a constant, given the actor's `hidden` of the same segments.
    stored: see `ILQLModel.hidden`."""
    if model.prior is None:
        raise RuntimeError("this loss reads a prior, but its algorithm does not say PRIOR = True")
    return _hidden(model, model.prior, hidden, run, stored)


@torch.no_grad()
def averaged_hidden(
    model: ILQLModel, hidden: Tensor, run: Read, stored: Tensor | None = None, passes: int = 1
) -> list[Tensor]:
    """What the average actor's output embedding reads, (T, D), likewise. passes: in training each of several has a
    dropout of its own; one alone, and any in eval mode, has none."""
    average = model.target_actor
    if average is None:
        raise RuntimeError("this loss reads an average of the actor, but its algorithm's model has no target_actor")
    drops = passes > 1 and model.training
    average.train(drops)
    try:
        return [_hidden(model, average, hidden, run, stored) for _ in range(passes if drops else 1)]
    finally:
        average.eval()


def _hidden(model: ILQLModel, lm: PreTrainedModel, hidden: Tensor, run: Read, stored: Tensor | None) -> Tensor:
    if model.config.freeze == frozen.TRUNK and model.beginning is None:
        return hidden.detach()
    return model.hidden(*run, stored=stored, trunk=lm)
