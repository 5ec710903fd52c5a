"""Worker processes that have work even where there is little of it."""

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import pytest

from datasets_prep import work


def punctual(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> list[Any]:
    """From now on workers are started whatever there is to do, and do all but the first `after` pieces of it; returns
    a list that will hold what they are given."""
    given: list[Any] = []

    class Punctual(ProcessPoolExecutor):
        def submit(self, do: Callable[..., Any], /, *what: Any, **more: Any) -> Future[Any]:
            future = super().submit(do, *what, **more)
            if do is work._begun:
                future.result()
                answers = iter([False] * after)
                monkeypatch.setattr(future, "done", lambda: next(answers, True))
            else:
                given.append(what)
            return future

    monkeypatch.setattr(work, "LITTLE", 0)
    monkeypatch.setattr(work, "ProcessPoolExecutor", Punctual)
    return given
