"""How commands end: one line and a status, whatever the user did, and no traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from ilql.command import Parser, guard
from ilql.types import InputError

ROOT = Path(__file__).resolve().parents[1]


def raises(error: BaseException) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (InputError("x.yaml: no such key"), 2, "error: x.yaml: no such key"),
        (NotADirectoryError(20, "Not a directory", "a/b"), 2, "error: a/b: Not a directory"),
        (OSError("no space"), 2, "error: no space"),
        (
            InputError("log.jsonl: unknown field '\x1b[2J\x9b'\ngive it"),
            2,
            "error: log.jsonl: unknown field '\\x1b[2J\\x9b'\ngive it",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_cause_is_one_line(
    error: BaseException, status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard(raises(error)) == status
    assert capsys.readouterr().err.strip() == says


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        guard(raises(KeyError("x")))
    assert guard(lambda: None) == 0
    assert guard(lambda: 1) == 1


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_a_parser_suggests_the_near_option() -> None:
    parser = Parser(prog="x", allow_abbrev=False)
    parser.add_argument("--episodes", type=int)
    with pytest.raises(InputError, match=r"unknown option '--episode': did you mean '--episodes'\?"):
        parser.parse_args(["--episode", "3"])
    with pytest.raises(InputError, match="invalid int value: 'x'"):
        parser.parse_args(["--episodes", "x"])
