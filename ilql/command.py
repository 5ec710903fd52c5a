"""How a command ends. Decision: whatever a user can cause (bad input, a full disk, Ctrl-C, a closed pipe) ends in one
line on stderr or none and a status, never a traceback; a traceback always means a fault of ours.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from ilql.types import InputError

INTERRUPTED, CLOSED = 130, 141  # as shells report a process that SIGINT or SIGPIPE ended

_control = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]").sub  # what would move a terminal's cursor, or more


def printable(text: str) -> str:
    """A stranger's text for a terminal: control characters but the end of a line are written as numbers."""
    return _control(lambda letter: f"\\x{ord(letter[0]):02x}", text)


def guard(work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run a command's work; returns its status, 2 for bad input and for files that cannot be read or written.

    interrupted: what to print on Ctrl-C.
    """
    try:
        try:
            status = work() or 0
        finally:
            sys.stdout.flush()  # a reader that has gone is noticed here, not at exit
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except OSError as error:
        known = error.filename is not None and error.strerror
        said = f"{error.filename}: {error.strerror}" if known else str(error)
        print(f"error: {printable(said)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
    return status


class Parser(argparse.ArgumentParser):
    """Its errors are the one sentence that every other bad input gets."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[1], options, 1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(options)}"
            message = f"unknown option {unknown[1]!r}: {hint}"
        raise InputError(f"{message} (see --help)")
