"""How a policy is extracted: pure functions of (log pi_b, Q, V, beta), one of which a model's config names.

Decision: the behaviour policy's *support* bounds every score. A token outside it stays impossible whatever its Q, since
Q was never trained there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 64  # tokens of a long vocabulary whose maximum is taken first

Scores = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def advantage(logp: Tensor, q: Tensor, v: Tensor, beta: float) -> Tensor:
    """log pi_b + beta (Q - V), (..., V) (Snell et al. 2022, sec. 4.3): logp and q (..., V), v (...)."""
    return logp + beta * (q - v[..., None])


def actor(logp: Tensor, q: Tensor, v: Tensor, beta: float) -> Tensor:
    """The behaviour policy itself, for algorithms without critics."""
    return logp


SCORES: dict[str, Scores] = {"advantage": advantage, "actor": actor}


def extracted(
    score: Scores,
    logits: Tensor,
    q: Callable[[Tensor | None], Tensor],
    v: Tensor,
    beta: float,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What there is to choose from, in float32 or wider: scores (N, C) of tokens (N, C), which ascend; -inf outside the
    support. Without bounds C is V and the tokens are None: all of them.

    logits: the actor's (N, V). q: gives Q of the tokens that it is called with, (N, C) -> (N, C), or of all for None,
    so that nothing is computed of tokens that are out of the question. v: (N).
    """
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    if top_k is None and top_p is None:
        every = score(logp, q(None).to(logp), v.to(logp), beta)
        return every.masked_fill(~torch.isfinite(logp), -torch.inf), None
    token, inside = candidates(logp, top_k, top_p)
    some = score(logp.gather(-1, token), q(token).to(logp), v.to(logp), beta)
    return some if inside is None else some.masked_fill(~inside, -torch.inf), token


def support(logp: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Which tokens the behaviour policy allows, a mask like logp (..., V).

    top_k: the k likeliest, and any as likely as the last of them. top_p: the smallest set of likeliest tokens that
    holds at least this probability, equal ones by their number. Both given: tokens in both. The likeliest token is
    always allowed.
    """
    token, inside = candidates(logp, top_k, top_p)
    inside = torch.ones_like(token, dtype=torch.bool) if inside is None else inside
    return torch.zeros_like(logp, dtype=torch.bool).scatter(-1, token, inside) & torch.isfinite(logp)


def candidates(logp: Tensor, top_k: int | None = None, top_p: float | None = None) -> tuple[Tensor, Tensor | None]:
    """The support as a list: token numbers (..., C), ascending, and which of them are inside (..., C), None for all.
    Among them may be tokens whose logp is -inf.

    C is as large as the largest support of the batch, or more. Nothing is sorted but these C tokens.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"support_top_k is {top_k}, but must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"support_top_p is {top_p}, but must be in (0, 1]")
    size = logp.shape[-1]
    inside: Tensor | None = None
    if top_k is not None and top_k < size:
        token, inside = _top_k(logp, top_k)
    elif top_p is not None and top_p < 1:
        token = _top_p(logp, top_p)
    else:
        token = torch.arange(size, device=logp.device).expand(logp.shape)
    if top_p is not None and top_p < 1:
        ordered, order = logp.gather(-1, token).sort(dim=-1, descending=True, stable=True)
        prob = ordered.exp()
        likely = torch.empty_like(token, dtype=torch.bool)
        likely.scatter_(-1, order, prob.cumsum(-1) - prob < top_p)  # the mass before the token
        inside = likely if inside is None else inside & likely
    return token, inside


def _top_k(logp: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
    """The k likeliest tokens, and all that equal the last of them; low precision makes many equal."""
    size, asked = logp.shape[-1], k + 16
    while True:
        values, token = largest(logp, min(asked, size))
        least = values[..., k - 1 : k].clamp(min=torch.finfo(logp.dtype).min)  # what is impossible is no candidate
        count = int((values >= least).sum(-1).max())
        if count < asked or asked >= size:
            break
        asked *= 4
    token = token[..., :count].sort(-1).values
    return token, None if count == k else logp.gather(-1, token) >= least


def _top_p(logp: Tensor, p: float) -> Tensor:
    """Tokens that hold the smallest set of mass p, and all that equal its last one."""
    size, count = logp.shape[-1], 64
    while count < size:
        values, token = largest(logp, count)
        prob = values.exp()
        outside = prob.cumsum(-1) - prob >= p
        last = torch.where(outside, torch.inf, values).amin(-1, keepdim=True)  # the least likely token inside
        if bool((values[..., -1:] < last).all()):
            return token.sort(-1).values
        count *= 4
    return torch.arange(size, device=logp.device).expand(logp.shape)


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and places (..., count) of the largest, in descending order; of a long row by the largest of its blocks,
    which takes less time: the `count` blocks with the largest maxima hold them."""
    whole = x.shape[-1] // BLOCK * BLOCK
    if 4 * count * BLOCK > whole:
        return x.topk(count, dim=-1)  # type: ignore[return-value]
    block = x[..., :whole].unflatten(-1, (-1, BLOCK)).amax(-1).topk(count, dim=-1, sorted=False).indices
    inside = (block[..., None] * BLOCK + torch.arange(BLOCK, device=x.device)).flatten(-2)
    rest = torch.arange(whole, x.shape[-1], device=x.device).expand(*x.shape[:-1], -1)
    place = torch.cat([inside, rest], -1)
    values, order = x.gather(-1, place).topk(count, dim=-1)
    return values, place.gather(-1, order)
