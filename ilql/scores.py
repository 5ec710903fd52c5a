"""How a policy is extracted: pure functions of (log pi_b, Q, V, beta), one of which a model's config names.

Decision: the behaviour policy's *support* bounds every score. A token outside it stays impossible whatever its Q, since
Q was never trained there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Scores = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def advantage(logp: Tensor, q: Tensor, v: Tensor, beta: float) -> Tensor:
    """log pi_b + beta (Q - V), (..., V) (Snell et al. 2022, sec. 4.3): logp and q (..., V), v (...)."""
    return logp + beta * (q - v[..., None])


def actor(logp: Tensor, q: Tensor, v: Tensor, beta: float) -> Tensor:
    """The behaviour policy itself, for algorithms without critics."""
    return logp


SCORES: dict[str, Scores] = {"advantage": advantage, "actor": actor}


def support(logp: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Which tokens the behaviour policy allows, a mask like logp (..., V).

    top_k: the k likeliest. top_p: the smallest set of likeliest tokens that holds at least this probability. Both
    given: tokens in both. The likeliest token is always allowed.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"support_top_k is {top_k}, but must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"support_top_p is {top_p}, but must be in (0, 1]")
    allowed = torch.isfinite(logp)
    if top_k is not None and top_k < logp.shape[-1]:
        allowed &= logp >= logp.topk(top_k, dim=-1).values[..., -1:]
    if top_p is not None and top_p < 1:
        ordered, order = logp.sort(dim=-1, descending=True)
        mass = ordered.exp().cumsum(-1)
        inside = mass - ordered.exp() < top_p  # mass before the token
        allowed &= torch.zeros_like(allowed).scatter(-1, order, inside)
    return allowed
