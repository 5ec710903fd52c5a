"""Judging utterances that are given, and choosing one of a closed set. Decision: where the rules say all that may be
said, whole utterances are scored by the policy's own chances of their tokens, one after the other, and nothing else is
said. A state's utterances share its tokens, which the trunk reads once.

A game offers `closed(turns, utterance) -> list[str] | None`: what the seat that has heard and said `turns` may say
where it is about to say `utterance` ("" for nothing yet), or None where it may say anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ilql.copies import prior_hidden
from ilql.generation import Choice, draw
from ilql.model import ILQLModel
from ilql.prefix import Segments, positions, share
from ilql.types import Turn

Closed = Callable[[Sequence[Turn], str], Sequence[str] | None]
Tokens = Sequence[int]

READ = 1024  # states whose chances of all words are in memory at a time


class _Read(NamedTuple):
    """Answers to prompts as the trunk has read them. run: tokens, positions and segments of what they share; hidden:
    (T, D). rows: of each answer in turn, the rows of its prompt's last token and of its own."""

    run: tuple[Tensor, Tensor, Segments]
    hidden: Tensor
    rows: list[np.ndarray]


def _read(model: ILQLModel, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], ends: int) -> _Read:
    """Every prompt with each of its answers, less the answers' last tokens but for `ends` of them (0 or 1)."""
    pieces = [
        (np.array([*prompt, *answer][: len(prompt) + len(answer) - 1 + ends], np.int32).tobytes(), len(prompt) - 1)
        for prompt, some in zip(prompts, answers, strict=True)
        for answer in some
    ]
    place = {piece: i for i, piece in enumerate(dict.fromkeys(piece for piece, _ in pieces))}
    segments, tokens, rows = share(list(place))
    ids = torch.from_numpy(np.frombuffer(tokens, np.int32).astype(np.int64)).to(model.device)
    run = ids, torch.from_numpy(positions(segments)).to(model.device), segments
    return _Read(run, model.hidden(*run), [rows[place[piece]][begin:] for piece, begin in pieces])


@torch.no_grad()
def log_chances(
    model: ILQLModel, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], choice: Choice
) -> list[Tensor]:
    """log of the policy's chance of each answer to each prompt, its end included: (answers) a prompt, in float64.

    The policy is the one that decodes at temperature 1: pi_b, re-weighted and bounded by `choice`, over the vocabulary.
    -inf for an answer with a token outside the support.
    """
    run, hidden, rows = _read(model, prompts, answers, 0)
    judged = model.critic_hidden(hidden, *run) if choice.beta else hidden
    near = None if model.config.prior_words is None else prior_hidden(model, hidden, run)
    said = [answer for some in answers for answer in some]
    at = torch.from_numpy(np.concatenate(rows)).to(hidden.device)  # each token is read at the position before it
    logp = _log_chance(
        model, (hidden, judged, near), at, run[0].new_tensor([t for answer in said for t in answer]), choice
    )
    whole = torch.stack([part.sum() for part in logp.double().cpu().split([len(answer) for answer in said])])
    return list(whole.split([len(some) for some in answers]))


@torch.no_grad()
def values(model: ILQLModel, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> list[Tensor]:
    """The pessimistic Q of each answer to each prompt, the smallest of the `judges`: (answers) a prompt, in float64, in
    units of the model's own, scaled rewards.

    Of critics of utterances it is read at the answer's last token; of critics over the vocabulary it is that of the
    last token, given the rest.
    """
    scalar = model.config.critic == "scalar"
    run, hidden, rows = _read(model, prompts, answers, 1 if scalar else 0)
    judged = model.critic_hidden(hidden, *run)
    at = judged[torch.tensor([own[-1] for own in rows], device=hidden.device)]
    if scalar:
        q = torch.stack([head(at) for head in model.judges]).amin(0)
    else:
        last = run[0].new_tensor([[answer[-1]] for some in answers for answer in some])
        q = model.q_values(at, last).squeeze(1)
    return list(q.double().cpu().split([len(some) for some in answers]))


def _log_chance(
    model: ILQLModel, read: tuple[Tensor, Tensor, Tensor | None], row: Tensor, token: Tensor, choice: Choice
) -> Tensor:
    """log of the policy's chance of tokens (A) at rows (A) of what the actor, the critics and a prior that bounds the
    words read; each distinct row is scored once."""
    hidden, judged, near = read
    distinct, spread = torch.unique(row, return_inverse=True)
    logp = hidden.new_empty(len(token), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for begin in range(0, len(distinct), READ):
        rows = distinct[begin : begin + READ]
        scores: Tensor = model.get_output_embeddings()(hidden[rows])
        if choice.beta:
            scores = model.reweighted(judged[rows], scores, choice.beta, choice.support_top_k, choice.support_top_p)
        if near is not None:
            scores = model.among_priors(near[rows], scores)
        mine = ((spread >= begin) & (spread < begin + READ)).nonzero().squeeze(1)
        logp[mine] = scores.to(logp.dtype).log_softmax(-1)[spread[mine] - begin, token[mine]]
    return logp


def choose(
    model: ILQLModel,
    prompts: Sequence[Tokens],
    answers: Sequence[Sequence[Tokens]],
    choice: Choice,
    noise: Tensor | None = None,
) -> list[int]:
    """Which answer is given to each prompt: the likeliest, or with `choice.temperature` and noise (B) in [0, 1) a draw
    from chances ** (1 / temperature) over the set.

    Where no answer is inside the support, the actor alone chooses.
    """
    chosen = []
    for i, logp in enumerate(log_chances(model, prompts, answers, choice)):
        if not bool(torch.isfinite(logp).any()):
            (logp,) = log_chances(model, [prompts[i]], [answers[i]], Choice())
        if choice.temperature is None or noise is None:
            chosen.append(int(logp.argmax()))
        else:
            chosen.append(int(draw(logp[None], choice.temperature, noise[i : i + 1].cpu())))
    return chosen
