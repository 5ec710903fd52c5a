"""JSON records, each checked against a typed schema by itself. Decision: types are strict (a reward "1" or true is a
fault, not a number), a field given twice is a fault, and a fault costs one record, never the file; readers that guess
types for a whole file (pyarrow.json, datasets) are not used, since one odd record changes all others there.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from datasets_prep.files import whole
from datasets_prep.rejects import Reject
from ilql.types import InputError

T = TypeVar("T")
NOT_UTF8, TOO_DEEP = "not valid UTF-8", "nested too deeply"

_encode = msgspec.json.Encoder().encode
_gap = re.compile(rb'"[ \t\r\n]+:').search  # between a name and its colon


@dataclass(frozen=True, slots=True)
class Element:
    """One record of a JSON list. line: where it begins in the file, from 1; index: its place in the list, from 0."""

    line: int
    index: int
    data: bytes

    def at(self, file: str, fault: Reject, id: str | None = None) -> Reject:
        """A fault inside the record, placed in the file."""
        field = f"[{self.index}].{fault.field}".rstrip(".")
        return Reject(file, self.line, field, fault.reason, fault.id or id)


def parse(decoder: msgspec.json.Decoder[T], data: bytes, known: Sequence[str] = ()) -> T:
    """One record. Raises Reject (field and reason alone). known: names to suggest for an unknown field."""
    record = decode(decoder, data, known)
    _refuse_twice(data)
    return record


def decode(decoder: msgspec.json.Decoder[T], data: bytes, known: Sequence[str] = ()) -> T:
    """As `parse`, but of a field that an object has twice the last counts; see `once`."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise explain(str(error), known) from None
    except msgspec.DecodeError as error:
        raise _not_finite(data) or Reject("", 0, "", f"not a JSON object on one line ({error})") from None
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

    What was read is written again, without the names that were lost. Both texts have as many quotes with a colon behind
    them as they have names, and strings that begin with a colon; what else there may be inside of strings, a quote with
    a backslash before it, only the first text may have. So where the numbers are equal, no name was lost.
    """
    text = b"".join(lines)
    if _gap(text) or b"\\u003a" in text or b"\\u003A" in text:  # a colon that hides from being counted
        return False
    try:
        again = _encode(records)
    except (OverflowError, ValueError, TypeError, RecursionError):
        return False
    return b'\\":' not in again and text.count(b'":') == again.count(b'":')


def elements(path: Path, what: str) -> Iterator[Element]:
    """The records of a file that is one JSON list; what: the records' name in the plural, for messages.

    InputError where it is no list or breaks off: behind a fault of its commas and brackets nobody knows where a record
    begins. A NaN or a text that is not UTF-8 costs its record only.
    """
    text = whole(path).decode("utf-8", "surrogateescape")
    decoder, blank = json.JSONDecoder(parse_int=str, parse_float=str), re.compile(r"\s*")
    position = _skip(blank, text, 0)
    if text[position] != "[":
        raise InputError(f"{path} is no JSON list of {what}; give the file as it was published")
    position = _skip(blank, text, position + 1)
    line, counted, index = 1, 0, 0
    after = ""
    while after == "," or text[position : position + 1] != "]":
        try:
            end = decoder.raw_decode(text, position)[1]
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(_broken(path, text, error, index)) from None
        line += text.count("\n", counted, position)
        counted = position
        yield Element(line, index, text[position:end].encode("utf-8", "surrogateescape"))
        position, index = _skip(blank, text, end), index + 1
        after = text[position : position + 1]
        if after == ",":
            position = _skip(blank, text, position + 1)
        elif after != "]":
            missing = json.JSONDecodeError("expected a comma or the end of the list", text, position)
            raise InputError(_broken(path, text, missing, index))
    if text[position + 1 :].strip():
        raise InputError(f"{path} goes on behind the end of its list of {what}")
    if not index:
        raise InputError(f"{path} is empty: it holds no dialogue")


def _skip(blank: re.Pattern[str], text: str, position: int) -> int:
    match = blank.match(text, position)
    return match.end() if match else position


def _broken(path: Path, text: str, error: Exception, index: int) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"{path}: record {index} is nested too deeply"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"{path} is cut short: it ends inside of record {index}; fetch it again"
    return f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"


class _Twice(Exception):
    """A field that one object has twice: JSON leaves open which of the two counts."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for k, name in enumerate(names) if name in names[:k]))
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


def _not_finite(data: bytes) -> Reject | None:
    """The fault of a record that would be JSON but for NaN or Infinity, which many programs write; None for others."""
    try:
        value = json.loads(data.decode(), parse_constant=_Constant, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    waiting = [("", value)]
    while waiting:
        path, value = waiting.pop(0)
        if isinstance(value, _Constant):
            return Reject("", 0, path, f"{value.name} is no finite number")
        if isinstance(value, dict):
            waiting += [(f"{path}.{key}".lstrip("."), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}[{k}]", inner) for k, inner in enumerate(value)]
    return None


@dataclass(frozen=True)
class _Constant:
    """NaN, Infinity or -Infinity where a number should stand."""

    name: str


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
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "put facts of your own under 'meta'"
    return Reject("", 0, f"{field}.{name}".lstrip("."), f"unknown field {name!r}; {hint}")
