"""The simulators that come with the package. Decision: a dict literal of modules is the whole registry; an environment
is one file, and its line here is what makes it known to `eval.py`.

Every module offers `SEATS` (1: an `Env`; 2: a `Game`), `make(**arguments) -> factory` whose typed parameters are the
environment's options, and `summary(results) -> {column: values}` with one number a result, or None where the column
has no meaning for it (the points of a deal where there was none). A result is an Episode, or for a game the pair
(ours, partner's).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, get_type_hints

from ilql.envs import deal_or_no_deal, door, guess, haggle, maze, randomwalks, recall, wordle
from ilql.types import InputError

ENVS: dict[str, ModuleType] = {
    "deal_or_no_deal": deal_or_no_deal,
    "door": door,
    "guess": guess,
    "haggle": haggle,
    "maze": maze,
    "randomwalks": randomwalks,
    "recall": recall,
    "wordle": wordle,
}


def find(name: str) -> ModuleType:
    """The module of an environment. InputError suggests the near name."""
    if name not in ENVS:
        raise InputError(unknown("environment", name, ENVS))
    return ENVS[name]


def arguments(name: str, recorded: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of an environment's `make`: those that its dataset was built with, then those given as text.

    Recorded arguments that the environment does not have (a number of dialogues), and those that were not given (None),
    are left aside; a given one that it does not have is an error.
    """
    types = {option: kind for option, kind in get_type_hints(find(name).make).items() if option != "return"}
    values = {option: value for option, value in recorded.items() if option in types and value is not None}
    for option, text in given.items():
        if option not in types:
            raise InputError(unknown(f"argument of {name}", option, types))
        values[option] = _parse(option, text, types[option])
    return values


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence that refuses a name and suggests the near one."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
    return f"unknown {what} {name!r}: {hint}"


def _parse(option: str, text: str, kind: type) -> str | int | float | bool:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{option}={text}: it must be true or false")
        return text.lower() == "true"
    try:
        value: str | int | float = kind(text)
    except ValueError:
        raise InputError(f"{option}={text}: it must be of type {kind.__name__}") from None
    return value
