"""Our own decoding loop. Decision: one trunk with cached keys and values, the LM head and the critics at a row's newest
position only, the critics only over the support, and rows that leave the batch when their answer is complete.

A row draws its tokens from uniform numbers of its own, made before the loop, by inverting its distribution function. So
its answer depends on its prompt, its place among the prompts and the seed, and not on who shares the batch (but for the
rounding of matrix products); `generate` of transformers draws for the whole batch at once and gives other samples of
the same distribution. Greedy answers are those of `generate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilql.heads import VocabularyHead
from ilql.kv import AnewRows, LeanRows, TrunkRows, rows_of
from ilql.lean import lean
from ilql.model import ILQLModel
from ilql.prepack import Prepacked, Product, linear, product
from ilql.scores import SCORES, extracted
from ilql.types import InputError

NO_NUMBERS = "the model's scores are not numbers: it diverged in training, or its weights are damaged"


@dataclass(frozen=True)
class Choice:
    """How a token is chosen. beta: 0 is the actor. temperature: None takes the likeliest token. support_top_k,
    support_top_p: see `ilql.scores.support`; without beta they have no effect."""

    beta: float = 0.0
    temperature: float | None = 1.0
    support_top_k: int | None = None
    support_top_p: float | None = None


class Laid:
    """The model's weights in the layout that decoding reads fastest; as they are now, so `stale` tells when they are
    others. Critics over the whole vocabulary are laid out when first asked for."""

    def __init__(self, model: ILQLModel) -> None:
        heads: Any = model.judges
        self.model, self.judges = model, heads
        self.seen = self._state()
        self.lean = None if model.beginning is not None else lean(model.lm)  # it looks up tokens by itself
        self.rows = rows_of(model.lm)  # where it is not written out
        self.trunk = Prepacked([] if self.lean is not None else model.lm.base_model.modules())
        head: Any = model.get_output_embeddings()
        self.head: Product = linear(head) if type(head) is nn.Linear else head
        self.score = SCORES[model.config.scores]
        self.vocabulary = len(head.weight)
        self.words: list[Product] = []
        self.hidden: Product | None = None
        if model.v is not None and model.q and all(type(q) is VocabularyHead for q in heads):
            self.hidden = linear(*(q.hidden for q in heads), model.v.hidden)

    def stale(self) -> bool:
        return self.seen != self._state()

    def features(self, hidden: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """What each critic's vocabulary reads, and V: (B, D) -> K of (B, H), (B)."""
        v: Any = self.model.v
        if self.hidden is None:
            return [q.features(hidden) for q in self.judges], v(hidden)
        *z, of_v = self.hidden(hidden).relu_().split(v.hidden.out_features, 1)
        return z, v.out(of_v).squeeze(1)

    def q(self, z: Sequence[Tensor], token: Tensor | None) -> Tensor:
        """The pessimistic Q of some tokens (B, C), or of all (B, V), from the critics' features."""
        if token is not None and token.numel() < self.vocabulary:
            return torch.stack([q.among(x, token) for q, x in zip(self.judges, z, strict=True)]).amin(0)
        self.words = self.words or [product(*q.words()) for q in self.judges]
        each = [q.values(words(x)) for q, words, x in zip(self.judges, self.words, z, strict=True)]
        every = torch.stack(each).amin(0)
        return every if token is None else every.gather(1, token)

    def _state(self) -> tuple[bool, list[tuple[int, int]]]:
        each = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.model.parameters()]
        return self.model.training, each


class Generator:
    """Answers prompts, batch by batch, with one model. pad: a token for padding. ends: tokens that end an answer."""

    def __init__(self, model: ILQLModel, *, pad: int, ends: Sequence[int]) -> None:
        self.model, self.pad = model, pad
        self.ends = torch.tensor(list(ends), device=model.device)
        self.laid: Laid | None = None

    def __call__(
        self, prompts: Sequence[Sequence[int]], rooms: Sequence[int], choice: Choice, noise: Tensor | None = None
    ) -> list[list[int]]:
        """Answers, ends included. rooms: tokens each may have at most; noise: (B, max of rooms), from `uniform`."""
        if choice.beta:
            self.model.check_beta(choice.beta)
        if noise is None and choice.temperature is not None:
            noise = uniform(len(prompts), max(rooms))
        laid, device = self.ready(), self.model.device
        if laid.lean is not None:
            rows: LeanRows | TrunkRows | AnewRows = LeanRows(laid.lean, prompts, max(rooms), self.model.dtype, device)
        else:
            rows = laid.rows(self.model.lm, prompts, self.pad)
        own = self.model.critic_trunk if choice.beta else None
        judged = None if own is None else laid.rows(own, prompts, self.pad)
        bounds = self.model.prior if self.model.config.prior_words is not None else None
        near = None if bounds is None else laid.rows(bounds, prompts, self.pad)
        # A trunk of transformers may keep what it computes, and a later gradient could not pass an inference tensor.
        alone = judged is None and near is None
        with torch.inference_mode(laid.lean is not None and alone), torch.no_grad(), laid.trunk:
            drawn = None if noise is None else noise.to(device)
            return self._loop(laid, rows, (judged, near), torch.tensor(rooms, device=device), choice, drawn)

    @torch.no_grad()
    def ready(self) -> Laid:
        """The weights laid out as they are now."""
        if self.laid is None or self.laid.stale():
            self.laid = Laid(self.model)
        return self.laid

    def _loop(
        self,
        laid: Laid,
        rows: LeanRows | TrunkRows | AnewRows,
        apart: tuple[TrunkRows | AnewRows | None, TrunkRows | AnewRows | None],
        rooms: Tensor,
        choice: Choice,
        noise: Tensor | None,
    ) -> list[list[int]]:
        """apart: what critics read, where that is a trunk of their own; the prior, where it bounds the words."""
        judged, near = apart
        alive = torch.arange(len(rooms), device=rooms.device)
        answers: list[list[int]] = [[] for _ in rooms]
        made: list[Tensor] = []  # tokens, and whose they are, step by step
        whose: list[Tensor] = []
        shortest, longest = int(rooms.min()), int(rooms.max())
        hidden = rows.prefill()
        read = hidden if judged is None else judged.prefill()
        prior = None if near is None else near.prefill()
        for t in range(longest):
            token = choose(laid, hidden, read, choice, None if noise is None else noise[:, t], prior)
            made.append(token)
            whose.append(alive)
            done = (token[:, None] == self.ends).any(1)
            if t + 1 >= shortest:
                done |= rooms == t + 1
            if bool(done.any()):
                index = staying(done)
                if not len(index):
                    break
                alive, rooms, token = alive[index], rooms[index], token[index]
                noise = None if noise is None else noise[index]
                rows.keep(index)
                for other in apart:
                    if other is not None:
                        other.keep(index)
            hidden = rows.step(token)
            read = hidden if judged is None else judged.step(token)
            prior = None if near is None else near.step(token)
        for row, number in zip(torch.cat(whose).tolist(), torch.cat(made).tolist(), strict=True):
            answers[row].append(number)
        return answers


def choose(
    laid: Laid, hidden: Tensor, read: Tensor, choice: Choice, noise: Tensor | None, near: Tensor | None = None
) -> Tensor:
    """One token a row: what the actor reads (B, D), what critics read (B, D), and (B) numbers in [0, 1) to sample with
    -> (B). near: what the prior reads (B, D), where it bounds the words."""
    scores, tokens = laid.head(hidden), None
    if near is not None:
        scores = laid.model.among_priors(near, scores)
    if choice.beta:
        z, v = laid.features(read)

        def q(token: Tensor | None) -> Tensor:
            return laid.q(z, token)

        top_k, top_p = choice.support_top_k, choice.support_top_p
        scores, tokens = extracted(laid.score, scores, q, v, choice.beta, top_k=top_k, top_p=top_p)
    if choice.temperature is None or noise is None:
        place = scores.argmax(1, keepdim=True)
    else:
        place = draw(scores, choice.temperature, noise)
    return (place if tokens is None else tokens.gather(1, place)).squeeze(1)


def uniform(rows: int, tokens: int) -> Tensor:
    """Numbers in [0, 1) to sample with (rows, tokens), from torch's global generator."""
    return torch.rand(rows, tokens, dtype=torch.float64) * (1 - 2**-40)  # times a sum they stay below it


def draw(scores: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """Sample from softmax(scores / temperature) (B, C) at the quantiles `noise` (B): places (B, 1)."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores if temperature == 1 else scores / temperature
    mass = scores.softmax(1).cumsum(1, dtype=torch.float64)
    if not math.isfinite(float(mass[:, -1].sum())):
        raise InputError(NO_NUMBERS)
    return torch.searchsorted(mass, noise[:, None] * mass[:, -1:], right=True)


def staying(done: Tensor) -> Tensor:
    """Which rows to keep, in an order that moves the fewest: the last of them into the places of those that left."""
    rest = (~done).nonzero().squeeze(1)
    index = torch.arange(len(rest), device=done.device)
    index[done[: len(rest)]] = rest[rest >= len(rest)]
    return index
