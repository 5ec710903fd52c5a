"""One optimizer step. Decision: we count ourselves. The micro-batches of a step are collated first, their decisions (N)
and action tokens (M) are counted over all processes, and every loss vector's sum is divided by that global count; so
the gradient does not depend on how a step is split into micro-batches or processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ilql import diagnostics
from ilql.algos import ALGOS
from ilql.config import TrainConfig
from ilql.data import Batch
from ilql.faults import bad_weight, sound_rewards
from ilql.learner import Learner
from ilql.model import ILQLModel
from ilql.optim import adamw, learning_rate


@dataclass
class Gradient:
    """What one window gave, before the weights move. metrics: of all processes. terms: the window's mean of every
    loss by micro-batch of this process. seen: `diagnostics.sums` of `decisions`. tokens, work: for the timing. norms:
    of its parts. unsound: micro-batches of all processes whose rewards are not finite. weight: one that is not."""

    metrics: dict[str, float]
    terms: list[dict[str, Tensor]]
    seen: list[float]
    decisions: float
    tokens: float
    work: list[float]
    norms: dict[str, float]
    unsound: float
    weight: str | None

    @property
    def fault(self) -> tuple[str, float] | None:
        """What is not finite, and its value: the cause before what follows from it."""
        if self.weight is not None:
            return f"the weight {self.weight}", math.nan
        if self.unsound:
            return "a reward", math.nan
        bad = [(name, value) for name, value in self.metrics.items() if not math.isfinite(value)]
        return next((found for found in bad if found[0] != "total"), bad[0] if bad else None)


class Stepper:
    """The parts that an optimizer step moves: the model, wrapped for the processes, and its optimizer."""

    def __init__(self, cfg: TrainConfig, accelerator: Accelerator, model: ILQLModel, most: float) -> None:
        """most: the largest value that can be believed, see `ilql.diagnostics`."""
        self.cfg, self.accelerator, self.model, self.most = cfg, accelerator, model, most
        self.algo = ALGOS[cfg.algo]
        self.unwrapped = Learner(model, self.algo, cfg.hyper)
        self.learner = accelerator.prepare(self.unwrapped)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = adamw(cfg.optim, self.parameters)
        # What a step moves: the targets too.
        self.moved = {name: p for name, p in model.named_parameters() if p.requires_grad or "target" in name}
        self.names: dict[Tensor, str] = {p: name for name, p in self.parameters.items()}
        self.dtype = next(model.parameters()).dtype

    def losses(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The unreduced loss vectors of a batch."""
        with self.autocast():
            return module(batch.to(self.accelerator.device, self.dtype))  # type: ignore[no-any-return]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.cfg.bf16)

    def reduce(self, values: list[float] | Tensor) -> list[float]:
        """Sum numbers over all processes."""
        tensor = torch.as_tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(tensor, reduction="sum").tolist()  # type: ignore[no-any-return, union-attr]

    def gradient(self, window: Sequence[Batch], *, first: bool, norms: bool) -> Gradient:
        """Losses and the clipped gradient of a window of micro-batches. first: of the run's first step. norms: of the
        gradient's parts too."""
        accelerator = self.accelerator
        counts = [(b.n, b.m, b.size, *diagnostics.work(self.model, b)) for b in window]
        n, m, tokens, *work = self.reduce([float(sum(column)) for column in zip(*counts, strict=True)])
        self.learner.train()
        terms: list[dict[str, Tensor]] = []
        read: list[Tensor] = []
        for i, batch in enumerate(window):
            # Gradients travel between processes once a step, with the last micro-batch.
            quiet = accelerator.no_sync(self.learner) if i + 1 < len(window) else nullcontext()
            with quiet:
                parts = self.weighted(self.losses(self.learner, batch), n, m)
                read.append(diagnostics.sums(self.unwrapped.take(), self.most))
                # DDP averages the gradients; the counts are global, so the sum is wanted.
                accelerator.backward(torch.stack(list(parts.values())).sum() * accelerator.num_processes)
            terms.append({name: part.detach().double() for name, part in parts.items()})
        names = list(terms[0])
        sums = torch.stack([torch.stack([t[k] for k in names]) for t in terms]).sum(0)
        strange = sums.new_tensor([sum(not sound_rewards(batch) for batch in window)])
        unsound, *both = self.reduce(torch.cat([strange, sums, torch.stack(read).sum(0)]))
        values, seen = both[: len(names)], both[len(names) :]
        metrics = dict(zip(names, values, strict=True))
        metrics["total"] = math.fsum(values)
        parts_norms = diagnostics.gradient_norms(self.parameters) if norms else {}
        metrics["grad_norm"] = self.clip(first)
        return Gradient(metrics, terms, seen, n, tokens, work, parts_norms, unsound, bad_weight(self.moved))

    def weighted(self, vectors: Mapping[str, Tensor], n: float, m: float) -> dict[str, Tensor]:
        """Each vector's share in the window's mean: its sum over the global count of tokens or decisions."""
        return {k: x.sum() / max(1.0, m if k in self.algo.PER_TOKEN else n) for k, x in vectors.items()}

    def clip(self, first: bool) -> float:
        """Clip the gradient; returns its norm before that."""
        if self.accelerator.num_processes > 1 and first:
            unused = [name for name, p in self.parameters.items() if p.grad is None]
            if unused:  # DDP would leave the first step's gradients unaveraged without a word
                raise RuntimeError(f"{self.cfg.algo} does not train {unused[0]}; freeze it")
        most = math.inf if self.cfg.optim.clip is None else self.cfg.optim.clip
        return float(self.accelerator.clip_grad_norm_(self.parameters.values(), most))  # type: ignore[arg-type]

    def move(self, step: int) -> None:
        """Move the weights by the gradient, at the rate of this step (from 0), and the targets after them."""
        rate = learning_rate(self.cfg.optim, step, self.cfg.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.forget()
        if self.model.q_target or self.model.target_actor is not None:
            self.model.update_targets(self.cfg.hyper.polyak)

    def forget(self) -> None:
        """Drop the gradient."""
        self.optimizer.zero_grad(set_to_none=True)
