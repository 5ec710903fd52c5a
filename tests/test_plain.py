"""YAML of strangers: plain values, or a YAMLError that says where."""

from typing import Any

import pytest
import yaml

from ilql.plain import Loader


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [x, {c: 1.5, d: null}]", {"a": 1, "b": ["x", {"c": 1.5, "d": None}]}),
        ("a: {b: 1}\nc: {b: 2}", {"a": {"b": 1}, "c": {"b": 2}}),  # one name in two objects
        ("a: &x 1", {"a": 1}),  # an anchor that nothing refers to
        ("'*a': '&b'", {"*a": "&b"}),
        ("", None),
    ],
)
def test_plain_values_are_read(text: str, value: Any) -> None:
    assert yaml.load(text, Loader) == value


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: &x [1]\nb: *x", 1, "an alias"),
        ("a: &x {b: 1}\nc:\n  <<: *x", 2, "an alias"),
        ("a: 1\nb: 2\na: 3", 2, "'a' stands twice"),
        ("x: {a: 1, b: {c: 1, c: 2}}", 0, "'c' stands twice"),
        ("a: !!python/object/apply:os.getcwd []", 0, "python/object"),
        ("a: !include other.yaml", 0, "!include"),
        ("? [a]\n: 1", 0, "unhashable"),
    ],
)
def test_whatever_else_is_refused(text: str, line: int, says: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError) as raised:
        yaml.load(text, Loader)
    assert says in str(raised.value)
    assert raised.value.problem_mark is not None
    assert raised.value.problem_mark.line == line
