"""How a run is asked to stop. Decision: the first SIGTERM or SIGINT (Ctrl-C) asks, and the loop answers where it can
save; a second one ends the process at once, which hurts nothing, since whatever is kept appears whole or not at all.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

SIGNALS = (signal.SIGTERM, signal.SIGINT)
T = TypeVar("T")


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and has saved. status: for the shell, 128 and the signal's number."""

    def __init__(self, signum: int, text: str) -> None:
        super().__init__(text)
        self.status = 128 + signum


class Unfinished(Exception):
    """A signal came while something was read that need not be read to its end."""


class Listener:
    """While the block runs, signals set `signum`; outside the main thread, which alone hears signals, nothing does."""

    signum: int = 0

    def __enter__(self) -> Listener:
        self.owner = os.getpid()
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.hear) for number in SIGNALS}
        return self

    def hear(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a process that was forked meanwhile ends with this one
            return
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum

    def heeding(self, items: Iterable[T]) -> Iterator[T]:
        """Items until a signal comes, which raises Unfinished."""
        for item in items:
            if self.signum:
                raise Unfinished
            yield item

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)


def deaf(*_: object) -> None:
    """For processes that collate: a signal to the whole group must not take the batches from a step that is to end.
    They end with the process that reads them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
