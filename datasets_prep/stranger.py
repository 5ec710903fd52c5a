"""A stranger's `tokenizer.json`, looked at before the tokenizers library reads it. Decision: that library takes all
memory, or ends the process, where an id, a pattern or a table in the file asks for it; so what these may ask for is a
number that is written down, far above any tokenizer that is in use.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ilql.types import InputError

LARGEST, LONGEST = 2**28, 5000  # bytes of the file, and characters of a pattern in it
IDS, ADDED, GROWTH = 2**24, 2**15, 1000  # ids, added tokens, and characters that a normaliser makes of one
PADDED = 2**20  # tokens that a text is filled up to


def check(path: Path) -> None:
    """InputError for a tokenizer.json that asks for too much, or is none; nothing where there is no such file."""
    if not path.is_file():
        return
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path} has more than {LARGEST:,} bytes, as no tokenizer has")
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=_once)
        faults = list(_faults(found))
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no tokenizer ({str(error)[:200]}); copy it again") from None
    if faults:
        raise InputError(f"{path} {faults[0]}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two fields of one name we would look at one, and the library at the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice in one object")
    return found


def _numbers(strategy: Any) -> list[Any]:
    return [*strategy.values()] if isinstance(strategy, dict) else []


def _faults(found: dict[str, Any]) -> Iterator[str]:
    words = (found.get("model") or {}).get("vocab") or {}
    if isinstance(words, dict) and not all(0 <= number < IDS for number in words.values()):
        yield f"has an id outside of 0 to {IDS:,}"
    if len(found.get("added_tokens") or ()) > ADDED:
        yield f"has more than {ADDED:,} added tokens"
    padding = found.get("padding") or {}
    sizes = [padding.get("pad_to_multiple_of"), *_numbers(padding.get("strategy"))]
    if any(size > PADDED for size in sizes if size):
        yield f"fills texts up to more than {PADDED:,} tokens"
    growth, waiting = 1, [found.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    while waiting:
        part = waiting.pop()
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if not isinstance(part, dict):
            continue
        pattern, table = part.get("Regex"), part.get("precompiled_charsmap")
        if isinstance(pattern, str) and len(pattern) > LONGEST:
            yield f"has a pattern of {len(pattern):,} characters, but at most {LONGEST:,} are read"
        for name in ("content", "prepend"):
            growth *= max(1, len(part[name])) if isinstance(part.get(name), str) else 1
        if isinstance(table, str):
            data = base64.b64decode(table)
            if len(data) < 4 or int.from_bytes(data[:4], "little") > len(data) - 4:
                yield "has a precompiled_charsmap that breaks off"
    if growth > GROWTH:
        yield f"makes up to {growth:,} characters of one, but at most {GROWTH:,} are read"
