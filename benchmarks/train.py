"""Training steps: ours against the plain trainers, on the same rows and weights, in alternation.

A step is collation, the losses, backward, AdamW and the targets' update; all trainers move one model with one
optimizer. The losses agree to 1e-4 and the gradients' norms to 1e-3 in float32 before anything is timed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import flop, machine
from benchmarks.cache import Cached, gradient_norms
from benchmarks.pairs import Measured, agree, say, speedup, spread, times
from benchmarks.plain_train import Padded, Snell, trlx
from benchmarks.report import Section
from benchmarks.shapes import BOS, LARGE, MIDDLE, SMALL, TINY, Shape, dialogues, make
from ilql.algos import ilql
from ilql.data import Batch, collate
from ilql.learner import Learner
from ilql.optim import OptimConfig, adamw

FP32, BF16, TRLX, SNELL = "ours, fp32", "ours, bf16", "trlx style", "Snell style"
TOLERANCE = {FP32: (1e-4, 1e-3), BF16: (0.05, 0.1)}  # of losses and of gradients' norms, relative


class Trainers:
    """The ways to take a step on the dialogues of a shape."""

    def __init__(self, shape: Shape, kinds: Sequence[str], rows: list[dict[str, Any]] | None = None) -> None:
        self.shape, self.kinds = shape, kinds
        self.rows = dialogues(shape) if rows is None else rows
        self.cfg = ilql.Config(cql_weight=0.1)
        self.model = make(shape)
        self.learner = Learner(self.model, ilql, self.cfg)
        self.optimizer = adamw(OptimConfig(), dict(self.model.named_parameters()))
        self.extra: torch.optim.Optimizer | None = None
        self.warm: dict[str, float] = {}  # seconds of the first pass of each
        self.found: dict[str, tuple[dict[str, float], dict[str, float]]] = {}  # its losses and norms of gradients
        if SNELL in kinds:
            self.snell = Snell(self.model)
            self.extra = adamw(OptimConfig(), dict(self.snell.policy.named_parameters()))

    def batch(self) -> Batch:
        """The dialogues as training collates them."""
        batch = collate(self.rows, gamma=self.cfg.gamma, bos=BOS, acted=ilql.CRITIC == "scalar")
        return batch.to("cpu", torch.float32)

    def losses(self, kind: str) -> dict[str, Tensor]:
        """The mean of each of the losses, collation included."""
        if kind in (TRLX, SNELL):
            padded = Padded(self.rows)
            return trlx(self.model, padded, self.cfg) if kind == TRLX else self.snell(padded, self.cfg)
        batch = self.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == BF16):
            return {name: x.mean() for name, x in self.learner(batch).items()}

    def backward(self, kind: str) -> dict[str, float]:
        """Losses and their gradients; returns the losses."""
        losses = self.losses(kind)
        torch.stack(list(losses.values())).sum().backward()
        return {name: float(x.detach()) for name, x in losses.items()}

    def step(self, kind: str) -> None:
        self.backward(kind)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if kind == SNELL and self.extra is not None:
            self.extra.step()
            self.extra.zero_grad(set_to_none=True)
        self.model.update_targets(self.cfg.polyak)

    def check(self) -> None:
        """Raise Disagreement unless all trainers compute the same; warms them up too."""
        for kind in self.kinds:
            begin = time.perf_counter()
            losses = self.backward(kind)
            self.warm[kind] = time.perf_counter() - begin
            self.found[kind] = losses, gradient_norms(self.model)
            self.optimizer.zero_grad(set_to_none=True)
            if self.extra is not None:
                self.extra.zero_grad(set_to_none=True)
        for kind in self.kinds:
            reference = TRLX if kind != TRLX else FP32
            if reference not in self.found:
                continue
            losses, norms = self.found[kind]
            loose, looser = TOLERANCE.get(kind, TOLERANCE[FP32])
            what = f"{self.shape.name}, {kind} and {reference}"
            agree(what, losses, self.found[reference][0], loose)
            # Snell style's actor has a trunk of its own, so the values' trunk has another gradient.
            skip = "the norm of the gradient of lm" if kind == SNELL else None
            agree(what, {n: x for n, x in norms.items() if n != skip}, self.found[reference][1], looser)


def compare(trainers: Trainers, pairs: int, cached: Cached | None = None) -> dict[str, list[float]]:
    """Seconds a step of each kind; every one is checked against the others, and the optimizer's state in place."""
    trainers.check()
    trainers.step(trainers.kinds[0])
    steps: dict[str, Callable[[], object]] = {kind: partial(trainers.step, kind) for kind in trainers.kinds}
    if cached is not None:
        cached.check(*trainers.found[TRLX])
        steps |= cached.steps()
    return times(steps, pairs, trainers.warm | (cached.warm if cached else {}))


def shapes(quick: bool) -> dict[str, Shape]:
    return {"first": TINY} if quick else {"first": LARGE, "second": MIDDLE, "third": SMALL}


def measure(parts: Sequence[str], pairs: int, only: str = "", quick: bool = False) -> list[Section]:
    """The tables of training steps and of steps from a cache, whichever `parts` names; both share trlx style's runs.

    Snell style, whose three trunks only add to what trlx style does, is timed on the smallest shape.
    """
    sections = {"train": Section("train", "Training steps"), "cache": Section("cache", "Heads on stored hidden states")}
    for place, shape in shapes(quick).items():
        if only not in shape.name or (parts == ("cache",) and place == "second"):
            continue
        say(f"{' and '.join(parts)}: {shape.name}")
        kinds = [FP32, BF16, TRLX] + ([SNELL] if shape in (SMALL, TINY) else [])
        trainers = Trainers(shape, kinds if "train" in parts else [TRLX])
        with tempfile.TemporaryDirectory() as folder:
            cached = Cached(shape, Path(folder)) if "cache" in parts and place != "second" else None
            seconds = compare(trainers, pairs, cached)
            if "train" in parts:
                sections["train"].rows += lines(sections["train"].figures, place, trainers, seconds, quick)
            if cached is not None:
                cache_lines(sections["cache"], place, cached, seconds)
    return [sections[part] for part in parts]


def lines(
    figures: dict[str, Measured], place: str, trainers: Trainers, seconds: dict[str, list[float]], quick: bool
) -> list[dict[str, str]]:
    """A row of the table for each trainer; notes the figures that goals are judged by."""
    batch = trainers.batch()
    work = flop.step(trainers.model, batch)
    tokens = sum(len(row["tokens"]) for row in trainers.rows)
    out = []
    for kind, each in ((kind, seconds[kind]) for kind in trainers.kinds):
        low = kind == BF16
        peak = machine.gemm_peak(torch.bfloat16 if low else torch.float32, quick)
        share = spread([work / s / peak for s in each])
        line = {"training": trainers.shape.name, "by": kind, "seconds a step": f"{spread(each).value:.3g}"}
        line["real tokens a second"] = f"{tokens / spread(each).value:,.0f}"
        line["useful GFLOP a step"] = f"{work / 1e9:,.1f}"
        line["share of the GEMM peak"] = f"{100 * share.value:.0f} % of {peak / 1e9:,.0f} {'bf16' if low else 'fp32'}"
        if kind in (FP32, BF16):
            figures[f"train/{place}/{'bf16' if low else 'fp32'}/share"] = share
            for peer in (TRLX, SNELL):
                if peer in seconds:
                    gain = speedup(each, seconds[peer])
                    line[f"times {peer}'s speed"] = f"{gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
                    if peer == TRLX:
                        figures[f"train/{place}/{'bf16' if low else 'fp32'}"] = gain
        out.append(line)
    return out


def cache_lines(section: Section, place: str, cached: Cached, seconds: dict[str, list[float]]) -> None:
    """Rows of the table of steps from a cache; notes the figures that goals are judged by."""
    for kind in (*cached.warm, TRLX):
        each = spread(seconds[kind])
        line = {"heads of": cached.shape.name, "by": kind, "seconds a step": f"{each.value:.3g}"}
        line["decisions a second"] = f"{cached.count / each.value:,.0f}"
        if kind != TRLX:
            gain = speedup(seconds[kind], seconds[TRLX])
            line["times trlx style's speed"] = f"{gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
            line["stored bytes a token"] = f"{cached.bytes_a_token:,.0f}"
            section.figures[f"cache/{place}/{kind[-4:]}"] = gain
        section.rows.append(line)
