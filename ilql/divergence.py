"""How far the actor has gone from its prior, exactly: KL(pi || p) over the whole vocabulary at each state. Decision: as
in `ilql.heads`, a table over the vocabulary lives for a few rows at a time; backward makes it again, chunk by chunk.

    d KL / d logits_a = pi_a (log pi_a - log p_a - KL)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ilql import heads

Embedding = tuple[Tensor, Tensor | None]  # weights (V, D), biases (V)


def _log_softmax(z: Tensor, to: Embedding) -> Tensor:
    weight, bias = to
    logits = F.linear(z, weight.to(z.dtype), None if bias is None else bias.to(z.dtype))
    return logits.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1)


def _parts(rows: int, words: int, wide: torch.dtype) -> list[slice]:
    """Rows whose tables, of pi, of p and of what is made of them, stay together within the size of a chunk."""
    size = max(1, heads.CHUNK // (4 * words * wide.itemsize))
    return [slice(i, i + size) for i in range(0, rows, size)]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor | None, z0: Tensor, weight0: Tensor, bias0: Tensor | None
    ) -> Tensor:
        out = torch.empty(len(z), dtype=torch.promote_types(z.dtype, torch.float32), device=z.device)
        for part in _parts(len(z), len(weight), out.dtype):
            logp = _log_softmax(z[part], (weight, bias))
            ratio = logp - _log_softmax(z0[part], (weight0, bias0))
            out[part] = _mean(logp.exp(), ratio)
        ctx.save_for_backward(z, weight, bias, z0, weight0, bias0, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, bias, z0, weight0, bias0, divergence = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wide = divergence.dtype
        dz = torch.empty_like(z) if needs[0] else None
        dweight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
        dbias = torch.zeros_like(bias, dtype=wide) if needs[2] else None
        for part in _parts(len(z), len(weight), wide):
            logp = _log_softmax(z[part], (weight, bias))
            ratio = logp - _log_softmax(z0[part], (weight0, bias0))
            p = logp.exp()
            table = torch.where(p > 0, p * (ratio - divergence[part, None]), 0.0).mul_(gradient[part, None])
            if dz is not None:
                dz[part] = (table.to(z.dtype) @ weight.to(z.dtype)).to(dz.dtype)
            if dweight is not None:
                dweight += (table.to(z.dtype).T @ z[part]).to(wide)
            if dbias is not None:
                dbias += table.sum(0)
        return (
            dz,
            None if dweight is None else dweight.to(weight.dtype),
            None if dbias is None else dbias.to(bias.dtype),
            None,
            None,
            None,
        )


def _mean(p: Tensor, ratio: Tensor) -> Tensor:
    """The mean of `ratio` under p; what p rules out does not count, whatever its ratio."""
    return torch.where(p > 0, p * ratio, 0.0).sum(-1)


def divergence(z: Tensor, actor: Any, z0: Tensor, prior: Any) -> Tensor:
    """KL(pi || p) of each row in nats: what the output embeddings `actor` and `prior` (with `weight` (V, D) and perhaps
    `bias` (V)) read, (N, D) each, -> (N), in float32 or wider.

    Exact, and differentiable once in z and in the actor's embedding; z0 and the prior's are constants.
    """
    if torch.is_autocast_enabled(z.device.type):
        low = torch.get_autocast_dtype(z.device.type)
        z, z0 = z.to(low), z0.to(low)
    own = actor.weight, getattr(actor, "bias", None)
    theirs = prior.weight, getattr(prior, "bias", None)
    return _Divergence.apply(z, *own, z0, *theirs)  # type: ignore[no-any-return]
