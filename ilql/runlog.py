"""What a run writes while it trains. Decision: two JSONL files. `metrics.jsonl` holds only what the same config and
seed always give again, so that two runs can be compared byte by byte; whatever depends on the machine's mood (seconds,
rates) goes to `timing.jsonl`, outside of every digest. Both are cut back on resume, so that no row ever appears twice:
the one to the length that the checkpoint recorded, the other to the checkpoint's step.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from ilql import atomic
from ilql.types import InputError

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
MEND = f"{atomic.FREE}, then use --resume"


@dataclass(frozen=True)
class LogConfig:
    """What is reported and kept, and how often, in optimizer steps (0 for never).

    every: a row of metrics, means since the last one. validate_every: the same losses on the validation split, on a
    fixed set of at most validation_batches micro-batches. checkpoint_every: and at the end; the newest `keep` stay, and
    the one with the lowest validation total always. model: which weights `model/` gets. tensorboard: the rows too.
    """

    every: int = 10
    validate_every: int = 0
    validation_batches: int = 50
    checkpoint_every: int = 1000
    keep: int = 2
    model: Literal["last", "best"] = "last"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"log.every is {self.every}, but must be at least 1")
        if min(self.validate_every, self.checkpoint_every) < 0 or self.validation_batches < 1:
            raise InputError(
                "log.validate_every and log.checkpoint_every must be at least 0, log.validation_batches at least 1"
            )
        if self.keep < 2:
            raise InputError(f"log.keep is {self.keep}, but at least 2 checkpoints are kept: the newest may be damaged")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise InputError("log.tensorboard needs the tensorboard package: pip install tensorboard")
        if self.model == "best" and not self.validate_every:
            raise InputError("log.model is best, which needs log.validate_every above 0")


class RunLog:
    """The two files, TensorBoard, and their positions. On processes other than the first, `folder` is None: no-ops."""

    def __init__(self, folder: Path | None, *, length: int = 0, step: int = 0, tensorboard: bool = False) -> None:
        """length: bytes to cut metrics.jsonl back to. step: the last one whose rates timing.jsonl keeps."""
        self.files: dict[str, IO[bytes]] = {}
        self.board: Any = None
        self.since = time.perf_counter()
        if folder is None:
            return
        for name in (METRICS, TIMING):
            path = folder / name
            path.touch()
            at = length if name == METRICS else _up_to(path, step)
            if not _ends_a_line(path, at):
                raise InputError(
                    f"{path} lacks the {at} bytes of whole rows of its checkpoint; put it back, or start a new run"
                )
            os.truncate(path, at)
            self.files[name] = path.open("ab", buffering=0)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # only where it is asked for

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def length(self) -> int:
        """Bytes of metrics.jsonl after flushing everything to the disk: what a checkpoint records."""
        for file in self.files.values():
            os.fsync(file.fileno())
        return os.fstat(self.files[METRICS].fileno()).st_size

    def metrics(self, row: dict[str, float | int]) -> None:
        """One row. Every value is finite: the trainer stops before it would report another."""
        self._write(METRICS, row)
        if self.board is not None:
            try:
                for name, value in row.items():
                    self.board.add_scalar(name, value, row["step"])
            except OSError as error:  # of its thread, at an earlier row
                raise atomic.failed(Path(self.board.log_dir), error, len(json.dumps(row)), MEND) from error

    def timing(self, step: int, tokens: float, decisions: float, shares: Mapping[str, float]) -> None:
        """The rates since the last call (tokens and decisions are the totals of all processes), and how much of the
        work was for nothing or saved, which depends on how a step is split."""
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        self.since = now
        rates = {"tokens_per_second": tokens / seconds, "decisions_per_second": decisions / seconds}
        self._write(TIMING, {"step": step, "seconds": seconds, **rates, **shares})

    def _write(self, name: str, row: dict[str, float | int]) -> None:
        if name not in self.files:
            return
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        file, left = self.files[name], memoryview(line)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:  # half a line is cut off when the run goes on
            raise atomic.failed(Path(file.name), error, len(line), MEND) from error

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        if self.board is not None:
            with suppress(OSError):  # nobody reads its last rows where the disk is full, and the reason is said already
                self.board.close()


def _ends_a_line(path: Path, at: int) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, at - 1))
        return not at or file.read(1) == b"\n"


def _up_to(path: Path, step: int) -> int:
    """Bytes of the whole lines of timing.jsonl up to a step."""
    at = 0
    with path.open("rb") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            at += len(line)
    return at
