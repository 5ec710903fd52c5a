"""Choosing among an actor's proposals by what critics say of them. Decision: the actor decides what can be said at all
and how natural it is, the critics only which of that; so a model that was never trained on an utterance's value cannot
be led to say nonsense that it happens to overrate.

Q and log pi are of whole utterances. A candidate that did not end its turn is no utterance: it is left out, unless none
did.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ilql.closed import Tokens, log_chances, values
from ilql.generation import NO_NUMBERS, Choice, draw, uniform
from ilql.model import ILQLModel
from ilql.propose import Proposal, Speaker, propose
from ilql.types import InputError


def rerank(
    q: Tensor, logp: Tensor, beta: float, *, ended: Tensor | None = None, noise: Tensor | float | None = None
) -> int:
    """Which of a state's candidates is said: the place in q (C), values, and logp (C), log-probabilities of the actor.

    noise: a number in [0, 1) that draws from softmax(beta q + logp). None takes the best: argmax q, of equal ones the
    likeliest; at beta 0, where values do not count, the likeliest. ended (C): False for one to be left out, unless that
    leaves none. Raises InputError where there is no candidate.
    """
    if not len(q):
        raise InputError("there is no candidate to choose from; propose at least one")
    if not bool(torch.isfinite(q).all()):
        raise InputError(NO_NUMBERS)
    q, logp = q.double(), logp.double()
    admitted = torch.ones_like(q, dtype=torch.bool)
    if ended is not None and bool(ended.any()):
        admitted = ended.to(admitted)
    if noise is not None:
        scores = (beta * q + logp).masked_fill(~admitted, -torch.inf)
        return int(draw(scores[None], 1.0, torch.as_tensor(noise, dtype=torch.float64).reshape(1)))
    if beta:
        admitted = admitted & (q == q.masked_fill(~admitted, -torch.inf).max())
    return int(logp.masked_fill(~admitted, -torch.inf).argmax())


def check(model: ILQLModel, n: int, top_k: int | None = None, top_p: float | None = None) -> None:
    """Refuse to choose among n proposals without critics, or within bounds that proposals do not have."""
    if n < 1:
        raise InputError(f"candidates is {n}, but must be at least 1")
    if not model.q:
        raise InputError(f"candidates is {n}, but this model has no critics ({model.config.algo}) to choose by")
    if top_k is not None or top_p is not None:
        raise InputError("support_top_k and support_top_p bound single tokens: leave them out with candidates")


def best(
    policy: Speaker, prompts: Sequence[Sequence[int]], n: int, beta: float, temperature: float | None
) -> list[list[int]]:
    """The tokens of one of n proposals a prompt, its end included.

    temperature: of proposing, after which one is drawn; None: the best of a beam search, and the best of these. A draw
    takes a number a prompt from torch's global generator.
    """
    noise = None if temperature is None else uniform(len(prompts), 1).squeeze(1)
    apart = policy.generator.model.critic_trunk is not None  # what critics read is not at hand in proposing
    offers = propose(policy, prompts, n, temperature=temperature, judged=not apart)
    if not all(any(p.ended for p in some) for some in offers):
        warnings.warn(
            "no candidate ended its turn in some states: one that is cut off is said there; raise max_new_tokens",
            stacklevel=5,
        )
    q = judge_apart(policy, prompts, offers) if apart else [torch.tensor([p.q for p in some]) for some in offers]
    said = []
    for i, some in enumerate(offers):
        logp, ended = torch.tensor([[p.logp, p.ended] for p in some], dtype=torch.float64).T
        k = rerank(q[i], logp, beta, ended=ended.bool(), noise=None if noise is None else noise[i])
        said.append(some[k].tokens)
    return said


def pick(
    model: ILQLModel,
    prompts: Sequence[Tokens],
    answers: Sequence[Sequence[Tokens]],
    choice: Choice,
    noise: Tensor | None = None,
) -> list[int]:
    """Which of its answers each prompt gets where they are all that may be said. choice: its beta, and whether to draw,
    by noise (B); answers at any temperature are the same set."""
    draws = choice.temperature is not None and noise is not None
    q, logp = values(model, prompts, answers), log_chances(model, prompts, answers, Choice())
    return [rerank(q[i], logp[i], choice.beta, noise=noise[i] if draws else None) for i in range(len(prompts))]  # type: ignore[index]


def judge_apart(
    policy: Speaker, prompts: Sequence[Sequence[int]], offers: Sequence[Sequence[Proposal]]
) -> list[Tensor]:
    """The values of proposals, by a pass of the critics' own trunk."""
    out: list[Tensor] = []
    size = max(1, policy.batch_size // max(map(len, offers), default=1))
    for i in range(0, len(prompts), size):
        answers = [[p.tokens for p in some] for some in offers[i : i + size]]
        out += values(policy.generator.model, prompts[i : i + size], answers)
    return out
