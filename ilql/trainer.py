"""The training loop. Decision: everything that a step depends on is in `Progress`, the weights, the optimizer and the
random states; so a run that was killed goes on bit by bit as if it had not been.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm

from ilql import atomic, checkpoint, diagnostics, runfolder, warmstart
from ilql.compiled import compile_blocks
from ilql.config import TrainConfig
from ilql.data import Batch
from ilql.feed import Feed, read
from ilql.initial import make_model
from ilql.launch import say, start
from ilql.model import ILQLModel
from ilql.optim import learning_rate
from ilql.progress import Progress, TrainingError, due
from ilql.runlog import RunLog
from ilql.stepper import Gradient, Stepper


def train(cfg: TrainConfig, *, resume: bool = False, allow_inexact: bool = False) -> Path:
    """Train by a config; returns the run folder. Every process of a distributed run calls it.

    resume: continue the run in `cfg.output` from its newest valid checkpoint, or begin it where there is none.
    allow_inexact: continue even where config, versions, threads or processes make other bits than an uninterrupted run.
    Raises InputError before anything is written where the input cannot be used, TrainingError where numbers break down.
    """
    accelerator = start(cfg)
    known = runfolder.check(cfg, resume, allow_inexact)
    begins = not (known and checkpoint.steps(Path(cfg.output) / "checkpoints"))
    feed = read(cfg, accelerator.process_index, accelerator.num_processes)
    if feed.advice:
        say(accelerator, f"warning: {feed.advice}")
    if feed.mixture:
        say(accelerator, feed.mixture)
    set_seed(cfg.seed)
    model = make_model(cfg, feed)
    if cfg.init_from and begins:
        say(accelerator, warmstart.load(model, Path(cfg.init_from)))
        feed.check_actor(model, cfg)
    if begins:
        feed.check_trunk(model, cfg)
    accelerator.wait_for_everyone()  # nobody makes the folder before all have looked for it
    lock = runfolder.claim(Path(cfg.output), known) if accelerator.is_main_process else None
    try:
        run = Run(cfg, accelerator, feed, model)
        if not begins:
            if not run.restore(allow_inexact) and cfg.init_from:
                run.say(warmstart.load(model, Path(cfg.init_from)))
            feed.check_trunk(model, cfg)
        if accelerator.is_main_process:
            runfolder.describe(cfg, feed.manifests)
        run.go()
    finally:
        if lock is not None:
            lock.close()
    return Path(cfg.output)


class Run:
    """One training run: the parts, and what happens to them at every step."""

    def __init__(self, cfg: TrainConfig, accelerator: Accelerator, feed: Feed, model: ILQLModel) -> None:
        self.cfg, self.accelerator, self.feed, self.model = cfg, accelerator, feed, model
        self.folder = Path(cfg.output)
        self.main = accelerator.is_main_process
        if cfg.compile:
            compile_blocks(model)
        self.stepper = Stepper(cfg, accelerator, model, feed.most)
        self.progress = Progress()
        self.counted = [0.0] * 5  # tokens, decisions, `diagnostics.work` since the last row, for the timing only
        self.norms: dict[str, float] = {}  # of the gradient's parts, where a row is due
        self.doubted: set[str] = set()
        self.positions: dict[str, int] | None = None
        self.environment = runfolder.environment(accelerator.num_processes, accelerator.device.type, feed.digests)
        set_seed(cfg.seed + accelerator.process_index)  # after the model is built: processes differ in dropout only

    def say(self, text: str) -> None:
        say(self.accelerator, text)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Train to the last step, then write `model/`."""
        cfg, progress = self.cfg, self.progress
        log = RunLog(self.folder if self.main else None, positions=self.positions, tensorboard=cfg.log.tensorboard)
        bar = tqdm(total=cfg.steps, initial=progress.step, disable=not self.main, unit="step", mininterval=1.0)
        stream = self.micro_batches()
        try:
            while progress.step < cfg.steps:
                window = [next(stream) for _ in range(cfg.batch.accumulate)]
                total = self.step(window)
                bar.update()
                bar.set_postfix(loss=f"{total:.4g}", refresh=False)
                last = progress.step == cfg.steps
                improved = self.report(log, last)
                if improved or last or due(progress.step, cfg.log.checkpoint_every):
                    self.save(log)
        finally:
            stream.close()
            bar.close()
            log.close()
        self.finish()

    def micro_batches(self) -> Generator[Batch]:
        """Micro-batches from where `progress` stands, without end; `progress` moves as they are taken."""
        progress = self.progress
        while True:
            rows = self.feed.order.batches(progress.epoch)[progress.batch :]
            # A loader draws from the global random state unless it has a generator of its own.
            loader: DataLoader[Any] = DataLoader(
                self.feed.rows,  # type: ignore[arg-type]
                batch_sampler=rows,  # type: ignore[arg-type]
                collate_fn=self.feed.collate,
                num_workers=self.cfg.batch.workers,
                generator=torch.Generator(),
            )
            for batch in loader:
                progress.batch += 1
                yield batch
            progress.epoch, progress.batch = progress.epoch + 1, 0

    def step(self, window: list[Batch]) -> float:
        """One optimizer step on a window of micro-batches; returns the total loss. Raises TrainingError before the
        weights move if a loss or the gradient is not finite."""
        step = self.progress.step
        found = self.stepper.gradient(window, first=step == 0, norms=self.rowdue(step + 1))
        if not found.finite:
            self.stop(window, found)
        self.stepper.move(step)
        self.norms = found.norms
        self.progress.count(found.metrics, found.decisions, found.seen)
        counts = [found.tokens, found.decisions, *found.work]
        self.counted = [a + b for a, b in zip(self.counted, counts, strict=True)]
        return found.metrics["total"]

    def stop(self, window: list[Batch], found: Gradient) -> None:
        """Raise TrainingError that names the dialogues of the micro-batches at fault."""
        bad = [b.ids for b, t in zip(window, found.terms, strict=True) if not all(x.isfinite() for x in t.values())]
        named = gather_object([i for ids in bad for i in ids])
        ids = named or gather_object([i for b in window for i in b.ids])
        self.stepper.forget()
        name = next(k for k, v in found.metrics.items() if k != "total" and not math.isfinite(v))
        more = f" and {len(ids) - 20} more" if len(ids) > 20 else ""
        raise TrainingError(
            f"step {self.progress.step}: {name} is {found.metrics[name]} on dialogues {', '.join(ids[:20])}{more}; the "
            "weights are as before this step: look at these dialogues' rewards, or lower optim.lr or data.reward_scale"
        )

    # ---- reports -----------------------------------------------------------------------------------------------------

    def report(self, log: RunLog, last: bool) -> bool:
        """Write the rows that are due after a step; returns whether the validation total is the best so far."""
        cfg, progress = self.cfg, self.progress
        row: dict[str, float | int] = {}
        if self.rowdue(progress.step):
            row = {"step": progress.step, "epoch": progress.epoch}
            row["lr"] = learning_rate(cfg.optim, progress.step - 1, cfg.steps)
            row |= progress.means()
            row |= self.norms | diagnostics.metrics(progress.values, len(self.model.q))
            tokens, decisions, *work = self.counted
            log.timing(progress.step, tokens, decisions, diagnostics.shares(*work))
            progress.begin_row()
            self.counted = [0.0] * 5
        improved = False
        if cfg.log.validate_every and (last or due(progress.step, cfg.log.validate_every)):
            found = self.validate()
            row = {"step": progress.step, "epoch": progress.epoch} | row | found
            total = found["validation/total"]
            improved = progress.best is None or total < progress.best["validation/total"]
            if improved:
                progress.best = {"step": progress.step, "validation/total": total}
        if row:
            log.metrics(row)
            progress.reports |= row
            self.doubt(row)
        return improved

    def rowdue(self, step: int) -> bool:
        return step == self.cfg.steps or due(step, self.cfg.log.every)

    def doubt(self, row: Mapping[str, float]) -> None:
        """Say once what a row gives cause to doubt; not in the first fifth of the steps, when values are fresh."""
        if 5 * self.progress.step >= self.cfg.steps:
            for name, sentence in diagnostics.doubts(row).items():
                if name not in self.doubted:
                    self.doubted.add(name)
                    self.say(f"warning, step {self.progress.step}, {name}: {sentence}")

    def validate(self) -> dict[str, float]:
        """The means of the loss vectors over the fixed validation set, and what `diagnostics` says of the values."""
        device = self.accelerator.device
        batches = (batch.to(device, self.stepper.dtype) for batch in self.feed.validation)
        found = diagnostics.survey(self.stepper.unwrapped, batches, self.stepper.autocast)
        *values, n, m = self.stepper.reduce([*found.sums.values(), float(found.n), float(found.m)])
        whole = diagnostics.Survey(dict(zip(found.sums, values, strict=True)), int(n), int(m))
        means = whole.means(self.stepper.algo.PER_TOKEN)
        columns = diagnostics.join(gather_object([found.columns]))
        out = means | {"total": math.fsum(means.values())}
        if not math.isfinite(out["total"]):
            name = next(k for k, v in out.items() if not math.isfinite(v))
            raise TrainingError(
                f"step {self.progress.step}: validation/{name} is {out[name]}; the last checkpoint stands"
            )
        return {f"validation/{name}": value for name, value in (out | diagnostics.judged(columns)).items()}

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, log: RunLog) -> None:
        """Write checkpoints/step-N, note the best, drop the oldest."""
        states = gather_object([checkpoint.random_states()])  # one for each process
        if self.main:
            progress = asdict(self.progress)
            checkpoint.save(
                self.folder / "checkpoints" / f"step-{self.progress.step}",
                {
                    "model": checkpoint.model_tensors(self.model),
                    "optimizer": checkpoint.optimizer_tensors(self.stepper.optimizer, self.stepper.names),
                },
                {
                    "trainer": {"progress": progress, "logs": log.positions(), "environment": self.environment},
                    "random": states,
                },
            )
            self.tidy()
        self.accelerator.wait_for_everyone()

    def tidy(self) -> None:
        """best.json, and only the checkpoints that are to be kept."""
        best = self.progress.best
        if best is not None:
            atomic.write_text(self.folder / "best.json", json.dumps(best) + "\n")
        checkpoint.prune(self.folder / "checkpoints", self.cfg.log.keep, None if best is None else int(best["step"]))

    def restore(self, allow_inexact: bool) -> bool:
        """Go back to the newest valid checkpoint; False where there is none, and the run begins anew."""
        path, skipped = checkpoint.latest(self.folder / "checkpoints")
        for bad, reason in skipped.items():
            self.say(f"skipped {bad}: {reason}")
        self.accelerator.wait_for_everyone()
        if self.main:
            checkpoint.set_aside(skipped)
        if path is None:
            self.say(f"{self.folder} has no valid checkpoint; it begins anew")
            return False
        tensors, documents = checkpoint.load(path)
        trainer = documents["trainer"]
        inexact = runfolder.check_environment(trainer["environment"], self.environment, allow_inexact)
        if inexact:
            self.say(f"not bit-identical to an uninterrupted run: {inexact}")
        checkpoint.load_model(self.model, tensors["model"])
        checkpoint.load_optimizer(self.stepper.optimizer, self.stepper.names, tensors["optimizer"])
        self.progress = Progress(**trainer["progress"])
        self.positions = trainer["logs"]
        states = documents["random"]
        checkpoint.set_random_states(states[self.accelerator.process_index % len(states)])
        self.say(f"continues from {path}")
        return True

    def finish(self) -> None:
        """Write `model/` with the last weights, or the best."""
        if not self.main:
            return
        best = self.progress.best
        reports = dict(self.progress.reports)
        if self.cfg.log.model == "best" and best is not None:
            tensors, _ = checkpoint.load(self.folder / "checkpoints" / f"step-{int(best['step'])}")
            checkpoint.load_model(self.model, tensors["model"])
            reports = dict(best)
        runfolder.export(self.cfg, self.model, self.feed.encoder.tokenizer, self.feed.manifests, reports)
