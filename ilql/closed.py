"""Choosing one utterance of a closed set. Decision: where the rules say all that may be said, whole utterances are
scored by the policy's own chances of their tokens, one after the other, and nothing else is said. A state's utterances
share its tokens, which the trunk reads once.

A game offers `closed(turns, utterance) -> list[str] | None`: what the seat that has heard and said `turns` may say
where it is about to say `utterance` ("" for nothing yet), or None where it may say anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ilql.generation import Choice, draw
from ilql.model import ILQLModel
from ilql.prefix import positions, share
from ilql.types import Turn

Closed = Callable[[Sequence[Turn], str], Sequence[str] | None]
Tokens = Sequence[int]

READ = 1024  # states whose chances of all words are in memory at a time


@torch.no_grad()
def log_chances(
    model: ILQLModel, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], choice: Choice
) -> list[Tensor]:
    """log of the policy's chance of each answer to each prompt, its end included: (answers) a prompt, in float64.

    The policy is the one that decodes at temperature 1: pi_b, re-weighted and bounded by `choice`, over the vocabulary.
    -inf for an answer with a token outside the support.
    """
    pieces = [
        [np.array([*prompt, *answer[:-1]], np.int32).tobytes() for answer in some]
        for prompt, some in zip(prompts, answers, strict=True)
    ]
    place = {piece: i for i, piece in enumerate(dict.fromkeys(piece for some in pieces for piece in some))}
    segments, tokens, rows = share(list(place))
    device = model.device
    ids = torch.from_numpy(np.frombuffer(tokens, np.int32).astype(np.int64)).to(device)
    run = ids, torch.from_numpy(positions(segments)).to(device), segments
    hidden = model.hidden(*run)
    judged = model.critic_hidden(hidden, *run) if choice.beta else hidden
    read: list[np.ndarray] = []
    said: list[int] = []
    sizes: list[int] = []
    for prompt, some, mine in zip(prompts, answers, pieces, strict=True):
        for answer, piece in zip(some, mine, strict=True):
            read.append(rows[place[piece]][len(prompt) - 1 :])  # each token is read at the position before it
            said += answer
            sizes.append(len(answer))
    both = hidden, judged
    logp = _log_chance(model, both, torch.from_numpy(np.concatenate(read)).to(device), ids.new_tensor(said), choice)
    whole = torch.stack([part.sum() for part in logp.double().cpu().split(sizes)])
    return list(whole.split([len(some) for some in answers]))


def _log_chance(model: ILQLModel, both: tuple[Tensor, Tensor], row: Tensor, token: Tensor, choice: Choice) -> Tensor:
    """log of the policy's chance of tokens (A) at rows (A) of what the actor and the critics read; each distinct row is
    scored once."""
    hidden, judged = both
    distinct, spread = torch.unique(row, return_inverse=True)
    logp = hidden.new_empty(len(token), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for begin in range(0, len(distinct), READ):
        rows = distinct[begin : begin + READ]
        scores: Tensor = model.get_output_embeddings()(hidden[rows])
        if choice.beta:
            scores = model.reweighted(judged[rows], scores, choice.beta, choice.support_top_k, choice.support_top_p)
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
