"""Work that goes on beside the main one. Decision: only digests and the flushing of files, which hold no lock of the
interpreter; a thread that is still at it when the build fails is left behind, so that a fault is told at once.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Start some work in a thread; what comes back waits for it, and returns what it returned or raises its error."""
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()

    def wait() -> T:
        thread.join()
        if errors:
            raise errors[0]
        return found[0]

    return wait
