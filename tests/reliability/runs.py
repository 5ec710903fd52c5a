"""Runs that can be killed. Decision: each is a fork of this process, which has imported the libraries, and goes through
the command line's own function, so that a kill meets what a user's run would be doing and costs no start of Python.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ilql import checkpoint
from ilql.cli import train_main
from ilql.config import TrainConfig, dump
from ilql.feed import read
from ilql.initial import make_model
from ilql.schema import sha256
from tests.tiny import config, dataset

OPTIONS: dict[str, Any] = {
    "steps": 24,
    "model": {"dropout": 0.1},
    "optim": {"schedule": "cosine", "warmup": 2},
    "batch": {"dialogues": 4, "accumulate": 2},
    "log": {"every": 3, "validate_every": 4, "checkpoint_every": 2, "keep": 3},
}
ALGORITHMS = {"ilql": "token", "ilql_utterance": "utterance"}  # and the time step of its dataset


def fork(work: Callable[[], int], log: Path) -> int:
    """Start `work` in a process of its own; returns its id. What it prints goes to `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        status = work()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(pid: int, seconds: float | None = None) -> int | None:
    """The exit status of a process (a signal's is negative), or None where it still runs after so many seconds."""
    if seconds is None:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    until = time.perf_counter() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.perf_counter() >= until:
            return None
        time.sleep(0.002)


@dataclass
class Bench:
    """A dataset and a config for runs of an algorithm, below `folder`."""

    folder: Path
    algo: str
    processes: int = 1

    def __post_init__(self) -> None:
        self.data = dataset(self.folder / "data", step=ALGORITHMS[self.algo])
        cfg = self.config("warm")
        make_model(cfg, read(cfg))  # whatever the libraries import late

    def config(self, name: str, **options: Any) -> TrainConfig:
        return config(self.data, self.folder / name, self.algo, **{**OPTIONS, **options})

    def start(self, name: str, **options: Any) -> int:
        """Begin or go on with a run in a process of its own; returns its id."""
        path = self.folder / f"{name}.yaml"
        if not path.exists():
            path.write_text(dump(self.config(name, **options)))
        words = ["--config", str(path), "--resume"]
        work = partial(train_main, words) if self.processes == 1 else partial(self.together, words)
        return fork(work, self.folder / f"{name}.log")

    def together(self, words: list[str]) -> int:
        """This process and further ones as torchrun starts them, in a process group of their own."""
        os.setpgid(0, 0)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1])}

        def one(rank: int) -> int:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.processes, "LOCAL_WORLD_SIZE": self.processes}
            os.environ.update(address, **{name: str(number) for name, number in place.items()})
            return train_main(words)

        others = [fork(partial(one, rank), self.folder / "others.log") for rank in range(1, self.processes)]
        return max([one(0), *(abs(wait(pid) or 0) for pid in others)])

    def kill(self, pid: int, signum: signal.Signals) -> None:
        """Send a signal to a run, to all of its processes."""
        try:
            (os.kill if self.processes == 1 else os.killpg)(pid, signum)
        except ProcessLookupError:  # it is still one
            os.kill(pid, signum)

    def said(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""


def digests(run: Path) -> dict[str, str]:
    """Of all that a finished run leaves, but for the seconds: the last checkpoint (weights, targets, optimizer, random
    states, progress), the log, the best step and the model."""
    found, _ = checkpoint.latest(run / "checkpoints")
    assert found is not None, f"{run} has no checkpoint"
    paths = [*found.iterdir(), run / "metrics.jsonl", run / "best.json", run / "model" / "model.safetensors"]
    return {path.relative_to(run).as_posix(): sha256(path) for path in sorted(paths)}
