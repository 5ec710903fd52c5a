"""A field that one object of a record has twice is found, however the line is written."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep import forms, records
from datasets_prep.rejects import Reject


class Object(list[tuple[str, str, Any]]):
    """An object of JSON with its fields as they are written: name, colon, value; it may have one twice."""


# What could make two names look like one: quotes, colons and backslashes, in every spelling.
WORDS = ["a", ":", ":x", 'x":', '"', "\\", '\\":', "{", ",", "id", "é", "\u2028"]


def string(text: str, escaped: str) -> str:
    """As JSON; escaped: the characters that are written as numbers."""
    parts = (f"\\u{ord(c):04x}" if c in escaped else json.dumps(c, ensure_ascii=False)[1:-1] for c in text)
    return '"' + "".join(parts) + '"'


strings = st.builds(string, st.lists(st.sampled_from(WORDS), max_size=2).map("".join), st.sampled_from(["", '"', ":a"]))
colons = st.sampled_from([":", ": ", " : ", "\t:"])


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Object]:
    return st.lists(st.tuples(strings, colons, values), max_size=3).map(Object)


values = st.recursive(strings, lambda inner: st.lists(inner, max_size=2) | objects(inner), max_leaves=5)


def written(value: Any) -> str:
    if isinstance(value, Object):
        return "{" + ", ".join(name + colon + written(inner) for name, colon, inner in value) + "}"
    return "[" + ",".join(map(written, value)) + "]" if isinstance(value, list) else str(value)


def twice(value: Any) -> bool:
    if isinstance(value, Object):
        names = {json.loads(name) for name, _, _ in value}
        return len(names) < len(value) or any(twice(inner) for _, _, inner in value)
    return isinstance(value, list) and any(map(twice, value))


def decoded(line: bytes) -> forms.Dialogue:
    return records.decode(forms.FORMS[forms.Dialogue][0], line)


@settings(max_examples=300)
@given(metas=st.lists(objects(values), min_size=1, max_size=3))
def test_a_field_given_twice_is_always_found(metas: list[Object]) -> None:
    lines = [f'{{"messages": [], "meta": {written(meta)}}}'.encode() for meta in metas]
    for meta, line, record in zip(metas, lines, forms.read(lines), strict=True):
        if twice(meta):
            assert isinstance(record, Reject)
            assert "given twice" in record.reason
        else:
            assert isinstance(record, forms.Dialogue)
            assert record.meta == json.loads(line)["meta"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"messages": [], "id": "\\u0022\\u0022", "id": "\\u0022\\u0022\\u0022\\u0022"}',  # of the second: 4, lost: 4
        b'{"messages": [], "id": "\\u0022:", "id": "\\u0022:"}',
        b'{"messages": [], "id" : "a", "id": "a"}',
    ],
)
def test_lines_that_cannot_be_counted_are_looked_at(line: bytes) -> None:
    assert not records.surely_once([decoded(line)], [line])


def test_plain_lines_are_only_counted() -> None:
    line = b'{"id": "1", "messages": [{"role": "user", "content": ":) {x}: y"}], "meta": {"a": {"b": ":"}}}'
    assert records.surely_once([decoded(line)] * 3, [line] * 3)
