"""What the actor proposes to say: n distinct utterances a state, for critics to choose among. Decision: a stochastic
beam search (Kool et al. 2019) samples whole utterances *without replacement*, exactly as if the actor answered again
and again and answers that it gave before were passed over; it takes as many steps as the longest utterance, on a prompt
that is computed and stored once. Without a temperature it is a plain beam search, which draws nothing.

How it draws: give every utterance a time of arrival, exponential with its probability as rate; the first n to arrive
are such a sample. The first arrival among all that begin alike is exponential with the sum of their probabilities, and
what the others take beyond the first of them is again exponential with their own. So a beam whose first arrival is
known needs fresh times for its next tokens only, shifted such that their first is that one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ilql.generation import NO_NUMBERS, Generator, Laid, staying
from ilql.kv import LeanTree, TrunkTree
from ilql.scores import largest
from ilql.types import InputError

OPEN, LAST, DONE = 2, 1, 0  # of a beam: goes on; its last token is still to be read; needs nothing more


@dataclass(frozen=True)
class Proposal:
    """An utterance that the actor may say. tokens: with the end token, where it has one. logp: of all of them under the
    actor at temperature 1. ended: False where its room was used up first. q: the critics' value, where asked for: the
    smallest of `ILQLModel.judges`, in units of the model's own, scaled rewards."""

    tokens: list[int]
    logp: float
    ended: bool
    q: float | None = None


class Speaker(Protocol):
    """What is asked of an actor; `ilql.decode.LMPolicy` is one. batch_size: utterances at a time."""

    generator: Generator
    batch_size: int

    def room(self, prompt: Sequence[int]) -> int:
        """Tokens that an answer may have."""
        ...


@torch.no_grad()
def propose(
    policy: Speaker,
    prompts: Sequence[Sequence[int]],
    n: int,
    *,
    temperature: float | None = 1.0,
    judged: bool = False,
) -> list[list[Proposal]]:
    """At most n distinct proposals a prompt, the likeliest first; fewer where the actor has fewer to say.

    temperature: of each token, sampled without replacement; None: the n best of a beam search. The draws come from
    torch's global generator, a number a prompt, so that proposals do not depend on which prompts share a batch (but
    for the rounding of matrix products). judged: fill in `q`, for critics that read the actor's own trunk.
    A proposal that does not end within its room is cut off there; a warning says so once.
    """
    if n < 1:
        raise InputError(f"candidates is {n}, but must be at least 1")
    if temperature is not None and not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}, but must be above 0")
    keys = [tuple(p) for p in prompts]
    todo = list(dict.fromkeys(keys)) if temperature is None else keys
    seeds = None if temperature is None else torch.randint(2**62, (len(todo),)).tolist()
    order = sorted(range(len(todo)), key=lambda i: len(todo[i]))
    size = max(1, policy.batch_size // n)
    found: list[list[Proposal]] = [[] for _ in todo]
    for part in (order[i : i + size] for i in range(0, len(order), size)):
        drawn = None if seeds is None else [seeds[i] for i in part]
        rooms = [policy.room(todo[i]) for i in part]
        some = _search(policy.generator, [todo[i] for i in part], rooms, n, temperature, drawn, judged)
        for i, proposals in zip(part, some, strict=True):
            found[i] = proposals
    if not all(p.ended for some in found for p in some):
        warnings.warn("a proposal did not end its turn within its room and is cut off there", stacklevel=3)
    if temperature is not None:
        return found
    of = dict(zip(todo, found, strict=True))
    return [of[key] for key in keys]


class _Beams:
    """The beams of P prompts, (P, n) each; those that the trunk has to read stand first. A value of -inf is no beam."""

    def __init__(self, rooms: Sequence[int], n: int) -> None:
        shape = len(rooms), n
        self.of = np.arange(shape[0])  # (P), the prompt
        self.rooms = np.array(rooms)  # (P)
        self.said = np.zeros((*shape, max(rooms)), np.int64)
        self.size = np.zeros(shape, np.int64)
        self.state = np.full(shape, DONE)
        self.ended = np.zeros(shape, bool)
        self.value = np.full(shape, -np.inf)  # -log of the first arrival; of a beam search the log-probability
        self.mass = np.zeros(shape)  # log-probability, at the temperature
        self.logp = np.zeros(shape)  # and at temperature 1
        self.q = np.full(shape, np.nan)
        self.state[:, 0], self.value[:, 0] = OPEN, 0.0

    @property
    def width(self) -> int:
        """How many beams of a prompt the trunk has to read, at most."""
        return int((self.state > DONE).sum(1).max())

    def keep(self, stay: np.ndarray) -> None:
        """Let the prompts be those of these numbers."""
        for name, each in vars(self).items():
            setattr(self, name, each[stay])

    def proposals(self, row: int, judged: bool) -> list[Proposal]:
        """Of a prompt whose beams are done."""
        there = np.flatnonzero(self.value[row] > -np.inf)
        best = there[np.argsort(-self.logp[row, there], kind="stable")]
        return [
            Proposal(
                self.said[row, i, : self.size[row, i]].tolist(),
                float(self.logp[row, i]),
                bool(self.ended[row, i]),
                float(self.q[row, i]) if judged else None,
            )
            for i in best
        ]


def _search(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    rooms: Sequence[int],
    n: int,
    temperature: float | None,
    seeds: Sequence[int] | None,
    judged: bool,
) -> list[list[Proposal]]:
    """The proposals of prompts that share a batch."""
    model, laid = generator.model, generator.ready()
    device, longest = model.device, max(rooms)
    tree: LeanTree | TrunkTree
    if laid.lean is not None:
        tree = LeanTree(laid.lean, prompts, n * longest, model.dtype, device)
    else:
        tree = TrunkTree(model.lm, prompts, generator.pad)
    luck = None if seeds is None else [torch.Generator(device).manual_seed(seed) for seed in seeds]
    ending = generator.ends.tolist()
    ends = np.zeros(max([laid.vocabulary, *(token + 1 for token in ending)]), bool)
    ends[ending] = True
    beams, grow = _Beams(rooms, n), _Growth(laid, ends, temperature, luck, judged)
    found: list[list[Proposal]] = [[] for _ in prompts]
    # Of what is no beam, or can never come, numbers are infinite.
    infinite = np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore")
    with torch.inference_mode(laid.lean is not None), torch.no_grad(), laid.trunk, infinite:
        hidden = tree.prefill()
        for t in range(longest + 1):
            parent = grow(beams, hidden, t)
            done = ~(beams.state > DONE).any(1)
            for row in np.flatnonzero(done).tolist():
                found[beams.of[row]] = beams.proposals(row, judged)
            if done.all():
                break
            stay = None
            if done.any():
                stay = staying(torch.from_numpy(done))
                beams.keep(stay.numpy())
                parent, stay = parent[stay.numpy()], stay.to(device)
            width = beams.width
            tree.branch(stay, torch.from_numpy(parent[:, :width]).to(device))
            hidden = tree.step(torch.from_numpy(beams.said[:, :width, t]).to(device))
    return found


@dataclass(frozen=True)
class _Growth:
    """A step of the search. ends (V): whether a token ends an utterance. luck: where each prompt's draws come from,
    None for a beam search. judged: whether to read the critics' values."""

    laid: Laid
    ends: np.ndarray
    temperature: float | None
    luck: list[torch.Generator] | None
    judged: bool

    def __call__(self, beams: _Beams, hidden: Tensor, t: int) -> np.ndarray:
        """Let the beams be the n best of themselves and their continuations by one token, said at t; hidden: h of those
        that the trunk has read, (P * width, D). -> which of these each beam comes from, (P, n)."""
        prompts, n = beams.size.shape
        width, row = len(hidden) // prompts, np.arange(prompts)[:, None]
        scalar = self.laid.model.config.critic == "scalar"
        closing = beams.state[:, :width] == LAST
        if closing.any():
            beams.q[:, :width][closing] = self._q(hidden, np.flatnonzero(closing), None)
        token, grown = self._continued(beams, hidden, beams.state[:, :width] == OPEN)
        count = token.shape[1]
        rest = np.where(beams.state == OPEN, -np.inf, beams.value), beams.mass, beams.logp
        pool, mass, logp = (np.concatenate(pair, 1) for pair in zip(grown, rest, strict=True))
        place = np.argsort(-pool, 1, kind="stable")[:, :n]
        ended = self.ends[token]
        goes = np.zeros(pool.shape, bool)
        goes[:, :count] = ~ended & (t + 1 < beams.rooms[:, None])
        goes &= pool > -np.inf
        read = goes.copy()  # by the trunk, at the next step
        if self.judged and scalar:
            read[:, :count] = pool[:, :count] > -np.inf
        first = goes.astype(int) + read  # those that go on stand before those that are read once more
        place = place[row, np.argsort(-first[row, place], 1, kind="stable")]
        fresh, child = place < count, np.minimum(place, count - 1)
        parent = np.where(fresh, place // (count // width), place - count)
        beams.said, beams.q = beams.said[row, parent], beams.q[row, parent]
        beams.said[..., t : t + 1][fresh] = token[row, child][fresh][:, None]
        beams.size = beams.size[row, parent] + fresh
        beams.ended = np.where(fresh, ended[row, child], beams.ended[row, parent])
        beams.value, beams.mass, beams.logp = pool[row, place], mass[row, place], logp[row, place]
        beams.state = np.where(goes[row, place], OPEN, np.where(read[row, place], LAST, DONE))
        if self.judged and not scalar:
            over = fresh & (beams.state == DONE) & (beams.value > -np.inf)
            if over.any():
                beams.q[over] = self._q(hidden, (row * width + parent)[over], beams.said[over][:, t])
        return np.minimum(parent, width - 1)

    def _continued(self, beams: _Beams, hidden: Tensor, goes: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """The best continuations of each beam by one token: these, and their value, mass and logp, (P, width * k) each.
        goes: which beams have any, (P, width)."""
        scores = self.laid.head(hidden)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        logp = mass = scores.log_softmax(1)
        if self.temperature not in (None, 1.0):
            mass = (scores / self.temperature).log_softmax(1)
        k = min(beams.size.shape[1], scores.shape[1])
        races = mass if self.luck is None else -self._times(mass, goes, beams.of)
        best, token = largest(races, k)
        shape = (*goes.shape, k)
        race, more_mass, more_logp = (
            x.double().cpu().numpy().reshape(shape) for x in (best, mass.gather(1, token), logp.gather(1, token))
        )
        if np.isnan(more_logp[goes]).any():
            raise InputError(NO_NUMBERS)
        width = goes.shape[1]
        before = beams.value[:, :width, None]
        value = before + more_mass
        if self.luck is not None:
            first = np.exp(beams.mass[:, :width, None] - before)
            late = race[..., :1] - race  # in units of the beam's own rate
            value = np.minimum(beams.mass[:, :width, None] - np.log(late + first), before)
            value[..., 0] = before[..., 0]
        value[~goes] = -np.inf
        grown = value, beams.mass[:, :width, None] + more_mass, beams.logp[:, :width, None] + more_logp
        flat = len(goes), -1
        return token.cpu().numpy().reshape(flat), tuple(x.reshape(flat) for x in grown)

    def _times(self, mass: Tensor, goes: np.ndarray, of: np.ndarray) -> Tensor:
        """Fresh times of arrival of every next token, (P * width, V), in units of the beams' own rates."""
        width = goes.shape[1]
        noise = torch.ones(len(goes), width, mass.shape[1], dtype=mass.dtype, device=mass.device)
        assert self.luck is not None
        for each, prompt, beams in zip(noise, of.tolist(), goes.sum(1).tolist(), strict=True):
            each[:beams].exponential_(generator=self.luck[prompt])  # those that go on stand first
        return noise.flatten(0, 1).div_(mass.exp())

    def _q(self, hidden: Tensor, row: np.ndarray, token: np.ndarray | None) -> np.ndarray:
        """The critics' value at rows of `hidden`: of these tokens, or of what was said there."""
        laid = self.laid
        read = hidden[torch.from_numpy(row).to(hidden.device)]
        if token is None:
            q = torch.stack([head(read) for head in laid.judges]).amin(0)
        else:
            features, _ = laid.features(read)
            q = laid.q(features, torch.from_numpy(token)[:, None].to(hidden.device)).squeeze(1)
        return q.double().cpu().numpy()
