"""The training loop. Decision: everything that a step depends on is in `Progress`, the weights, the optimizer and the
random states; so a run that was killed goes on bit by bit as if it had not been.
"""

from __future__ import annotations

import gc
import json
import math
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from tqdm import tqdm

from ilql import atomic, checkpoint, diagnostics, faults, runfolder, warmstart
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
from ilql.signals import SIGNALS, Listener, Stopped, Unfinished
from ilql.stepper import Gradient, Stepper
from ilql.stream import Taken, divided, stream
from ilql.types import InputError


def train(cfg: TrainConfig, *, resume: bool = False, allow_inexact: bool = False) -> Path:
    """Train by a config; returns the run folder. Every process of a distributed run calls it.

    resume: continue the run in `cfg.output` from its newest valid checkpoint, or begin it where there is none.
    allow_inexact: continue even where config, versions, threads or processes make other bits than an uninterrupted run.
    Raises InputError before anything is written where the input cannot be used, TrainingError where numbers break down.
    """
    accelerator = start(cfg)
    known = runfolder.check(cfg, resume, allow_inexact)
    begins = not (known and checkpoint.begun(Path(cfg.output) / "checkpoints"))
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
    lock = runfolder.claim(Path(cfg.output), known, begins) if accelerator.is_main_process else None
    try:
        run = Run(cfg, accelerator, feed, model)
        if not begins:
            run.restore(allow_inexact)
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
        self.doubted: set[str] = set()
        self.length = 0  # of metrics.jsonl, as the checkpoint says
        self.listener = Listener()
        self.environment = runfolder.environment(cfg, accelerator.num_processes, accelerator.device.type, feed.digests)
        set_seed(cfg.seed + accelerator.process_index)  # after the model is built: processes differ in dropout only

    def say(self, text: str) -> None:
        say(self.accelerator, text)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Train to the last step, then write `model/`. Raises Stopped, after saving, where a signal asked for it."""
        cfg, progress = self.cfg, self.progress
        folder = self.folder if self.main else None
        log = RunLog(folder, length=self.length, step=progress.step, tensorboard=cfg.log.tensorboard)
        bar = tqdm(total=cfg.steps, initial=progress.step, disable=not self.main, unit="step", mininterval=1.0)
        source = stream(self.feed, progress, cfg.batch.workers)
        try:
            with self.listener:
                while True:  # a signal that comes while the last step is saved is answered too
                    if self.asked():
                        self.halt(log)
                    if progress.reported < progress.step:
                        self.conclude(log)
                        continue
                    if progress.step >= cfg.steps:
                        break
                    total = self.step([next(source) for _ in range(cfg.batch.accumulate)])
                    if total is not None:
                        bar.update()
                        bar.set_postfix(loss=f"{total:.4g}", refresh=False)
        except (RuntimeError, MemoryError) as error:  # of the optimizer's state, or of a validation
            if isinstance(error, TrainingError) or not faults.is_memory(error):
                raise
            raise TrainingError(f"step {progress.step}: {faults.elsewhere(error)}") from error
        finally:
            source.close()
            bar.close()
            log.close()
        self.finish()

    def asked(self) -> int:
        """The signal by which any process was asked to stop, 0 for none."""
        if self.accelerator.num_processes == 1:
            return self.listener.signum
        heard = self.stepper.reduce([float(self.listener.signum == number) for number in SIGNALS])
        return next((int(number) for number, count in zip(SIGNALS, heard, strict=True) if count), 0)

    def halt(self, log: RunLog) -> NoReturn:
        """Save what is done, unless it is saved, and end."""
        signum, folder = self.asked(), self.folder / "checkpoints"
        step = self.progress.step
        if self.progress.reported < step or step not in checkpoint.steps(folder):
            self.save(log)
        name = signal.Signals(signum).name
        raise Stopped(signum, f"{name}: stopped and saved after step {step}; the same command with --resume goes on")

    def conclude(self, log: RunLog) -> None:
        """The rows and the checkpoint that are due after a step."""
        step = self.progress.step
        last = step == self.cfg.steps
        try:
            improved = self.report(log, last)
        except Unfinished:
            return
        self.progress.reported = step
        if improved or last or due(step, self.cfg.log.checkpoint_every):
            self.save(log)

    def step(self, window: list[Taken]) -> float | None:
        """One optimizer step on a window of micro-batches; returns the total loss, None where the window was left out.
        Raises TrainingError before the weights move if a reward, a loss, the gradient or a weight is not finite."""
        step = self.progress.step
        batches, found = self.gradient(window)
        if found.fault is not None:
            self.refuse(batches, found, found.fault)
            return None
        self.stepper.move(step)
        self.progress.norms = found.norms
        self.progress.count(found.metrics, found.decisions, found.seen)
        counts = [found.tokens, found.decisions, *found.work]
        self.counted = [a + b for a, b in zip(self.counted, counts, strict=True)]
        return found.metrics["total"]

    def gradient(self, window: list[Taken]) -> tuple[list[Batch], Gradient]:
        """The gradient of a window and the micro-batches that it was computed in: smaller ones than were taken where
        these do not fit into memory and that is allowed."""
        step, progress = self.progress.step, self.progress
        while True:
            pieces = progress.pieces
            batches = [b for t in window for b in ([t.batch] if pieces == 1 else divided(self.feed, t, pieces))]
            try:
                return batches, self.stepper.gradient(batches, first=step == 0, norms=self.row_due(step + 1))
            except (RuntimeError, MemoryError) as error:
                if not faults.is_memory(error):
                    raise
                largest = max(window, key=lambda t: len(t.batch.tokens))
                said = faults.too_large(largest.batch, len(largest.rows), pieces)
                most = max(len(t.rows) for t in window)
                if not self.cfg.auto_micro_batch or pieces >= most or self.accelerator.num_processes > 1:
                    raise TrainingError(f"step {step}: {said}") from error
            progress.pieces = 2 * pieces
            self.stepper.forget()
            gc.collect()
            self.say(f"step {step}: {said.split(';')[0]}; from here on each is divided into {progress.pieces}")

    def refuse(self, batches: list[Batch], found: Gradient, fault: tuple[str, float]) -> None:
        """Leave a window out where that is allowed, else raise TrainingError; either way the dialogues of the
        micro-batches at fault are named and kept."""
        step, progress, (name, value) = self.progress.step, self.progress, fault
        pairs = list(zip(batches, found.terms, strict=True))
        bad = [(b, t) for b, t in pairs if not (faults.sound_rewards(b) and all(x.isfinite() for x in t.values()))]
        kept = gather_object([faults.record(b, t) for b, t in bad])
        kept = kept or gather_object([faults.record(b, t) for b, t in pairs])
        ids = [i for batch in kept for i in batch["dialogues"]]
        said = f"step {step}: {name} is {value} on dialogues {faults.names(ids)}"
        self.stepper.forget()
        if self.main:
            facts = {"step": step, "what": name, "value": value}
            said += faults.dump(self.folder, f"step-{step}-{progress.skipped}", facts, kept)
        if found.weight is not None or progress.skipped >= self.cfg.skip_nonfinite:
            raise TrainingError(
                f"{said}; the weights are as before this step: look at these dialogues' rewards, lower optim.lr or "
                "data.reward_scale, or go on without them by --skip-nonfinite N"
            )
        progress.skipped += 1
        progress.accumulated = 0
        self.say(f"{said}; left out, {progress.skipped} of at most {self.cfg.skip_nonfinite}")

    # ---- reports -----------------------------------------------------------------------------------------------------

    def report(self, log: RunLog, last: bool) -> bool:
        """Write the rows that are due after a step; returns whether the validation total is the best so far."""
        cfg, progress = self.cfg, self.progress
        row: dict[str, float | int] = {}
        improved, found = False, {}
        if cfg.log.validate_every and (last or due(progress.step, cfg.log.validate_every)):
            found = self.validate()
            total = found["validation/total"]
            improved = progress.best is None or total < progress.best["validation/total"]
            if improved:
                progress.best = {"step": progress.step, "validation/total": total}
        if found or self.row_due(progress.step):
            row = {"step": progress.step, "epoch": progress.epoch}
        if self.row_due(progress.step):
            row["lr"] = learning_rate(cfg.optim, progress.step - 1, cfg.steps)
            row |= progress.means() | progress.norms | diagnostics.metrics(progress.values, len(self.model.q))
            row |= {"skipped": progress.skipped} if progress.skipped else {}
            tokens, decisions, *work = self.counted
            log.timing(progress.step, tokens, decisions, diagnostics.shares(*work))
            progress.begin_row()
            self.counted = [0.0] * 5
        row |= found
        if row:
            log.metrics(row)
            progress.reports |= row
            self.doubt(row)
        return improved

    def row_due(self, step: int) -> bool:
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
        # Validation may take long and can be done again, so one process breaks it off; several would have to agree.
        held = (
            self.listener.heeding(self.feed.validation) if self.accelerator.num_processes == 1 else self.feed.validation
        )
        batches = (batch.to(device, self.stepper.dtype) for batch in held)
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
        weight = faults.bad_weight(self.stepper.moved)
        if weight is not None:
            raise TrainingError(
                f"step {self.progress.step}: the weight {weight} is not finite after it; the last checkpoint stands: "
                "lower optim.lr"
            )
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
                    "trainer": {"progress": progress, "metrics": log.length(), "environment": self.environment},
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

    def restore(self, allow_inexact: bool) -> None:
        """Go back to the newest valid checkpoint. Raises InputError, with nothing changed, where there is none."""
        path, skipped = checkpoint.latest(self.folder / "checkpoints")
        for bad, reason in skipped.items():
            self.say(f"skipped {bad}: {reason}")
        if path is None:
            raise InputError(
                f"no checkpoint of {self.folder} is valid; put a whole copy of one back, or choose another --output"
            )
        self.accelerator.wait_for_everyone()
        if self.main:
            checkpoint.set_aside(skipped)
        tensors, documents = checkpoint.load(path)
        trainer = documents["trainer"]
        self.progress = Progress.read(trainer, str(path))
        inexact = runfolder.check_environment(trainer["environment"], self.environment, allow_inexact)
        if inexact:
            self.say(f"not bit-identical to an uninterrupted run: {inexact}")
        checkpoint.load_model(self.model, tensors["model"])
        checkpoint.load_optimizer(self.stepper.optimizer, self.stepper.names, tensors["optimizer"])
        self.length = int(trainer["metrics"])
        states = documents["random"]
        checkpoint.set_random_states(states[self.accelerator.process_index % len(states)])
        if self.main:  # a kill may have come between the checkpoint and what follows it
            self.tidy()
        self.say(f"continues from {path}")

    def finish(self) -> None:
        """Write `model/` with the last weights, or the best."""
        if not self.main:
            return
        best = self.progress.best
        reports = dict(self.progress.reports)
        if self.cfg.log.model == "best" and best is not None:
            weights = checkpoint.best_weights(self.folder / "checkpoints", int(best["step"]))
            checkpoint.load_model(self.model, weights)
            reports = dict(best)
        runfolder.export(self.cfg, self.model, self.feed.encoder.tokenizer, self.feed.manifests, reports)
