"""Work in a thread: what it returns and what it raises, neither before it is waited for."""

from threading import Event

import pytest

from datasets_prep.beside import beside
from ilql.types import InputError


def test_it_goes_on_while_others_work() -> None:
    go = Event()

    def work() -> int:
        assert go.wait(60)
        return 3

    wait = beside(work)
    go.set()
    assert wait() == wait() == 3


def test_an_error_reaches_the_one_who_waits() -> None:
    def work() -> None:
        raise InputError("log.jsonl has vanished")

    wait = beside(work)
    with pytest.raises(InputError, match="vanished"):
        wait()
