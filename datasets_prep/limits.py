"""How large what strangers wrote may be. Decision: limits are numbers that are written down, checked before a parser or
a buffer meets the bytes, and far above any dialogue; so neither the memory of the machine nor how deep this process'
stack happens to be decides what becomes of a line, which would differ between processes and make the rows do so too.
"""

from __future__ import annotations

import re

import numpy as np

from datasets_prep.rejects import Reject
from ilql.types import InputError

LINE = 2**24  # bytes of a line, or of one record of a JSON list
WHOLE = 2**31  # bytes of a file that has to be read at once
DEPTH = 64  # lists and objects inside each other
RATIO, FREE = 200, 2**26  # what decompression may make of a byte, beyond the first bytes that it makes
SAID = 200  # characters of a stranger's text that a message repeats

TOO_DEEP = "nested too deeply"
TOO_LONG = f"longer than {LINE:,} bytes"

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_CLOSING = {ord("]"): ord("["), ord("}"): ord("{")}


def check(data: bytes) -> None:
    """Raise Reject for a record of JSON that is too long or too deep to be parsed."""
    if len(data) > LINE:
        raise Reject("", 0, "", TOO_LONG)
    if data.count(b"{") + data.count(b"[") > DEPTH and depth(data) > DEPTH:
        raise Reject("", 0, "", TOO_DEEP)


def depth(data: bytes) -> int:
    """How many lists and objects stand inside each other, of any bytes."""
    letters = np.frombuffer(_STRING.sub(b"", data), np.uint8)
    step = np.zeros(len(letters), np.int64)
    for closing, opening in _CLOSING.items():
        step[letters == opening] = 1
        step[letters == closing] = -1
    return int(np.cumsum(step).max(initial=0))


def said(text: str) -> str:
    """A stranger's text as a message repeats it."""
    return text if len(text) <= SAID else text[:SAID] + "..."


def refuse_bomb(path: object, packed: int, unpacked: int) -> None:
    """InputError where decompression makes far more of a file than dialogues could be. packed, unpacked: bytes."""
    if unpacked > FREE and unpacked > RATIO * packed:
        raise InputError(
            f"{path} unpacks to more than {RATIO} times its {packed:,} bytes, as no log of dialogues does; unpack it "
            "first, if it is one"
        )
