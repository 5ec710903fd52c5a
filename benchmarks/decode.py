"""Decoding: ours against the plain decoders, on the same prompts and weights, in alternation.

Prompts of some 64 tokens, answers of 64 new ones that no end token cuts short, so that all do the same work. Greedy
answers in float32 must agree before anything is timed; sampled ones are timed. Critics are drawn large enough that
Q - V decides which token is the best.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import flop, machine
from benchmarks.pairs import Disagreement, clock, say, speedup, spread, times
from benchmarks.plain_decode import Answers, Snell, Trlx
from benchmarks.report import Section
from benchmarks.shapes import BOS, LARGE, SMALL, TINY, Shape, make
from benchmarks.train import BF16, FP32, SNELL, TRLX
from ilql.decode import LMPolicy
from ilql.model import ILQLModel

BETA, TOP_K, ROWS, NEW = 1.0, 20, 8, 64
CHECKED = 16  # tokens of each greedy answer that must agree
CLOSE = 1e-4  # the best two scores of a greedy choice: nearer, rounding may choose


class Tokens:
    """What decoding asks of an encoder, where prompts are tokens already. No token of the vocabulary is an end."""

    def __init__(self, vocabulary: int) -> None:
        self.bos_id, self.pad_id, self.end_ids, self.vocab_size = BOS, BOS, [vocabulary], vocabulary


def prompts(shape: Shape, mean: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    lengths = rng.integers(mean * 7 // 8, mean * 9 // 8 + 1, ROWS)
    return [[BOS, *rng.integers(1, shape.vocabulary, n - 1).tolist()] for n in lengths]


class Decoders:
    """The ways to answer the same prompts."""

    def __init__(self, shape: Shape, new: int) -> None:
        self.shape, self.new = shape, new
        self.prompts = prompts(shape, new)
        self.model = make(replace(shape, most=max(shape.most, 4 * new))).eval()  # a context of prompt and answer
        with torch.no_grad():
            for head in (*self.model.q, *self.model.q_target):
                head.out.weight.normal_(std=shape.width**-0.5)  # type: ignore[union-attr, operator]
        self.low = copy.deepcopy(self.model).to(torch.bfloat16)
        self.trlx, self.snell = Trlx(self.model, BETA, TOP_K), Snell(self.model, BETA, TOP_K)
        self.game = 0
        self.warm: dict[str, float] = {}  # seconds that each takes
        self.first: dict[str, float] = {}  # and the first time takes longer

    def policy(self, model: ILQLModel, greedy: bool = False) -> LMPolicy:
        """Ours, as evaluation makes it: once, for all that it is going to answer."""
        encoder: Any = Tokens(self.shape.vocabulary)
        return LMPolicy(
            model,
            encoder,
            beta=BETA,
            support_top_k=TOP_K,
            greedy=greedy,
            max_new_tokens=self.new,
            batch_size=len(self.prompts),
        )

    def one_game(self) -> None:
        """Snell style's next game; they follow each other, so that all take as many times as long as one."""
        self.snell.complete([self.prompts[self.game % len(self.prompts)]], self.new)
        self.game += 1

    def check(self) -> None:
        """Raise Disagreement unless greedy answers agree; warms the plain decoders up."""
        ours = self.policy(self.model, greedy=True).complete(self.prompts)
        count = min(self.new, CHECKED)
        begin = time.perf_counter()
        theirs = self.trlx.complete(self.prompts, count, greedy=True)
        self.warm[TRLX] = (time.perf_counter() - begin) * self.new / count
        same(f"{self.shape.name}, decoding", [row[:count] for row in ours], theirs)
        begin = time.perf_counter()
        one = self.snell.complete(self.prompts[:1], count, greedy=True)
        self.warm[SNELL] = (time.perf_counter() - begin) * self.new / count
        same(f"{self.shape.name}, decoding Snell style", [row[:count] for row in ours[:1]], one)
        low = self.policy(self.low, greedy=True).complete(self.prompts)
        alike(f"{self.shape.name}, decoding in bf16", low, ours)
        if any(len(row) != self.new for row in (*ours, *low)):
            raise Disagreement(f"{self.shape.name}, decoding: an answer of ours is cut short; nothing was timed")

    def runs(self) -> dict[str, Callable[[], object]]:
        """What is timed, ours warmed up; what the first answers took more than the second stands in `first`."""
        out: dict[str, Callable[[], object]] = {}
        for kind, model in ((FP32, self.model), (BF16, self.low)):
            out[kind] = partial(self.policy(model).complete, self.prompts)
            first = clock(out[kind])
            self.warm[kind] = clock(out[kind])
            self.first[kind] = max(0.0, first - self.warm[kind])
        out[TRLX] = partial(self.trlx.complete, self.prompts, self.new)
        out[SNELL] = self.one_game
        return out


def alike(what: str, low: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]) -> None:
    """Raise Disagreement unless at least half of the first tokens survive bf16: later ones follow from those."""
    equal = sum(a[0] == b[0] and len(a) == len(b) for a, b in zip(low, ours, strict=True))
    if 2 * equal < len(ours):
        raise Disagreement(f"{what}: only {equal} of {len(ours)} greedy answers begin as in fp32; nothing was timed")


def same(what: str, ours: Sequence[Sequence[int]], theirs: Answers) -> None:
    """Raise Disagreement where greedy answers part at a token that was clearly the best."""
    for row, (mine, tokens, margins) in enumerate(zip(ours, *theirs, strict=True)):
        parts = next((i for i, (a, b) in enumerate(zip(mine, tokens, strict=False)) if a != b), None)
        if len(mine) != len(tokens) or (parts is not None and margins[parts] > CLOSE):
            where = f"token {parts}" if parts is not None else f"{len(mine)} of {len(tokens)} tokens"
            raise Disagreement(f"{what}: greedy answers differ in row {row} at {where}; nothing was timed")


def shapes(quick: bool) -> dict[str, tuple[Shape, int]]:
    """Each with its number of new tokens."""
    return {"first": (TINY, 8)} if quick else {"first": (LARGE, NEW), "third": (SMALL, NEW)}


def measure(pairs: int, only: str = "", quick: bool = False) -> Section:
    section = Section("decode", "Decoding")
    for place, (shape, new) in shapes(quick).items():
        if only not in shape.name:
            continue
        say(f"decode: {shape.name}")
        decoders = Decoders(shape, new)
        decoders.check()
        seconds = times(decoders.runs(), pairs, decoders.warm)
        seconds[SNELL] = [len(decoders.prompts) * s for s in seconds[SNELL]]
        section.rows += lines(section, place, decoders, seconds, quick)
    section.notes.append(
        "Once: what the first answers take longer than the next, for weights that are laid out anew. "
        f"{ROWS} prompts at once; Snell style answers one of them in each pair, its seconds are {ROWS} times that."
    )
    return section


def lines(
    section: Section, place: str, decoders: Decoders, seconds: dict[str, list[float]], quick: bool
) -> list[dict[str, str]]:
    """A row of the table for each decoder; notes the figures that goals are judged by."""
    tokens = len(decoders.prompts) * decoders.new
    limit = machine.bandwidth(quick)
    out = []
    for kind, each in seconds.items():
        width = f"{decoders.shape.layers} x {decoders.shape.width}, V {decoders.shape.vocabulary:,}"
        line = {"decoding": width, "by": kind, "seconds": f"{spread(each).value:.3g}"}
        line["tokens a second"] = f"{tokens / spread(each).value:,.0f}"
        if kind in (FP32, BF16):
            name = f"decode/{place}/{'bf16' if kind == BF16 else 'fp32'}"
            read = flop.decoding_bytes(decoders.low if kind == BF16 else decoders.model, len(decoders.prompts), TOP_K)
            share = spread([read * decoders.new / s / limit for s in each])
            section.figures[f"{name}/bandwidth"] = share
            line["once, seconds"] = f"{decoders.first.get(kind, 0.0):.2f}"
            line["weights read, GB a second"] = f"{share.value * limit / 1e9:.3g}"
            line["share of the memory bandwidth"] = f"{100 * share.value:.0f} % of {limit / 1e9:.3g} GB/s"
            for peer in (TRLX, SNELL):
                gain = speedup(each, seconds[peer])
                line[f"times {peer}'s speed"] = f"{gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
                section.figures[f"{name}/{peer}"] = gain
        out.append(line)
    return out
