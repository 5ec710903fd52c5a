"""JSON records, each checked against a typed schema by itself. Decision: types are strict (a reward "1" or true is a
fault, not a number), a field given twice is a fault, and a fault costs one record, never the file; readers that guess
types for a whole file (pyarrow.json, datasets) are not used, since one odd record changes all others there.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from datasets_prep import limits
from datasets_prep.limits import TOO_DEEP
from datasets_prep.rejects import Reject

T = TypeVar("T")
NOT_UTF8 = "not valid UTF-8"
LONE = "a lone surrogate, which is no Unicode text"

_encode = msgspec.json.Encoder().encode
_HALF = re.compile("[\ud800-\udfff]").search


def parse(decoder: msgspec.json.Decoder[T], data: bytes, known: Sequence[str] = ()) -> T:
    """One record. Raises Reject (field and reason alone). known: names to suggest for an unknown field."""
    record = decode(decoder, data, known)
    _refuse_twice(data)
    return record


def decode(decoder: msgspec.json.Decoder[T], data: bytes, known: Sequence[str] = ()) -> T:
    """As `parse`, but of a field that an object has twice the last counts; see `once`."""
    limits.check(data)
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise explain(str(error), known) from None
    except msgspec.DecodeError as error:
        raise _nearly(data) or Reject("", 0, "", f"not a JSON object on one line ({error})") from None
    except UnicodeDecodeError:
        raise Reject("", 0, "", NOT_UTF8) from None
    except RecursionError:
        raise Reject("", 0, "", TOO_DEEP) from None


def once(found: Sequence[T | Reject], lines: Sequence[bytes]) -> list[T | Reject]:
    """What was decoded of lines, with a Reject for each line that has a field twice."""
    kept = [k for k, record in enumerate(found) if not isinstance(record, Reject)]
    checked = list(found)
    if not surely_once([found[k] for k in kept], [lines[k] for k in kept]):
        for k in kept:
            try:
                if not surely_once([found[k]], [lines[k]]):
                    _refuse_twice(lines[k])
            except Reject as fault:
                checked[k] = fault.with_traceback(None)
    return checked


def surely_once(records: Sequence[Any], lines: Sequence[bytes]) -> bool:
    """Whether no object of any line has a field twice; False says that it has to be looked at.

    What was read is written again, without the names that were lost, and nothing is added, since what a line does not
    have is left out. Both texts have two quotes a string and those inside of strings, unless they are written as
    numbers. So where both have as many quotes, no name was lost.
    """
    text = b"".join(lines)
    if b"\\u0022" in text:  # a quote that hides from being counted
        return False
    try:
        again = _encode(records)
    except (OverflowError, ValueError, TypeError, RecursionError):
        return False
    return _quotes(text) == _quotes(again)


def _quotes(text: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord('"')))


class _Constant(NamedTuple):
    """NaN, Infinity or -Infinity where a number should stand."""

    name: str


class _Twice(Exception):
    """A field that one object has twice: JSON leaves open which of the two counts."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Twice(name)
            seen.add(name)
    return found


def _refuse_twice(data: bytes) -> None:
    try:
        json.loads(data, object_pairs_hook=_once, parse_int=str, parse_float=str)  # msgspec takes the last of two
    except _Twice as fault:
        raise Reject("", 0, str(fault), "given twice in one object; leave one out") from None
    except UnicodeDecodeError:  # in a field that the decoder skipped
        raise Reject("", 0, "", NOT_UTF8) from None
    except RecursionError:
        raise Reject("", 0, "", TOO_DEEP) from None


def _nearly(data: bytes) -> Reject | None:
    """The fault of a record that would be JSON but for NaN or Infinity, which many programs write, or for half of a
    character that JSON spells in two; None for others."""
    try:
        value = json.loads(data.decode(), parse_constant=_Constant, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    waiting = deque([("", value)])
    while waiting:
        path, value = waiting.popleft()
        if isinstance(value, _Constant):
            return Reject("", 0, path, f"{value.name} is no finite number")
        if isinstance(value, dict):
            if any(_HALF(key) for key in value):
                return Reject("", 0, path, LONE)
            waiting += [(limits.said(f"{path}.{key}".lstrip(".")), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}[{k}]", inner) for k, inner in enumerate(value)]
        elif isinstance(value, str) and _HALF(value):
            return Reject("", 0, path, LONE)
    return None


def explain(message: str, known: Sequence[str] = ()) -> Reject:
    """msgspec's "what - at `$.path`" as field and reason, with the near name for an unknown field."""
    what, _, where = message.partition(" - at `$")
    field = where.strip("`").lstrip(".")
    if field.endswith("content") and what.endswith("got `array`"):
        return Reject("", 0, field, "a list of parts, but only text can be read; join the parts to one string")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL)
    if unknown is None:
        return Reject("", 0, field, what)
    name = unknown.group(1)
    near = difflib.get_close_matches(limits.said(name), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "put facts of your own under 'meta'"
    return Reject("", 0, f"{field}.{name}".lstrip("."), f"unknown field {name!r}; {hint}")
