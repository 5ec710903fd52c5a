"""JSON lists are split into their records, whatever stands in one of them."""

import json
from pathlib import Path

import msgspec
import pytest

from datasets_prep.records import Element, elements, parse
from datasets_prep.rejects import Reject
from ilql.types import InputError


def read(tmp_path: Path, data: bytes) -> list[Element]:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    return list(elements(path, "dialogues"))


@pytest.mark.parametrize("indent", [None, 0, 4])
def test_the_records_of_a_list_and_their_lines(tmp_path: Path, indent: int | None) -> None:
    records = [{"a": [1, {"b": "x,]}\n"}]}, {}, "text ☺", 5, None, [[]], {"a": 1e3}]
    data = json.dumps(records, indent=indent, ensure_ascii=False).encode()
    found = read(tmp_path, b"\xef\xbb\xbf \n" + data + b"\n\n")
    assert [json.loads(element.data) for element in found] == records
    assert [element.index for element in found] == list(range(7))
    if indent is None:
        assert {element.line for element in found} == {2}
    else:
        for element in found:
            begins = element.data.splitlines()[0]
            assert (b" \n" + data).splitlines()[element.line - 1].strip().startswith(begins)


def test_what_is_wrong_in_a_record_costs_that_record(tmp_path: Path) -> None:
    decoder = msgspec.json.Decoder(dict[str, int])
    digits = b"9" * 5000
    data = b'[{"a": 1}, {"a": NaN}, {"\xff": 1}, {"a": 1, "a": 2}, {"a": "1"}, {"a": ' + digits + b'}, {"a": 2}]'
    faults = []
    for element in read(tmp_path, data):
        try:
            faults.append(str(parse(decoder, element.data)))
        except Reject as fault:
            placed = element.at("f", fault, "id")
            assert (placed.file, placed.line, placed.id) == ("f", 1, "id")
            faults.append(f"{placed.field}: {placed.reason}")
    assert faults[0] == "{'a': 1}"
    assert faults[1] == "[1].a: NaN is no finite number"
    assert faults[2] == "[2]: not valid UTF-8"
    assert faults[3].startswith("[3].a: given twice")
    assert faults[4].startswith("[4].[...]: Expected `int`, got `str`")
    assert faults[5].startswith("[5]")
    assert faults[6] == "{'a': 2}"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": 1}\n{"a": 2}\n', "is no JSON list of dialogues; give the file as it was published"),
        (b"hello", "is no JSON list of dialogues"),
        (b"", "is empty: it holds no dialogue"),
        (b" []\n", "is empty: it holds no dialogue"),
        (b"[", "is cut short: it ends inside of record 0"),
        (b'[{"a": 1},', "is cut short: it ends inside of record 1"),
        (b'[{"a": 1}\n', "is cut short: it ends inside of record 1"),
        (b'[{"a": 1}, {"a": "bc', "is cut short: it ends inside of record 1"),
        (b'[{"a": 1}, {"a": 12', "is cut short: it ends inside of record 1"),
        (b'[{"a": 1}, {"a', "is cut short: it ends inside of record 1"),
        (b'[{"a": 1},\n {"a": tru}]', r"x\.json, line 2, column 8: not JSON \(Expecting value\)"),
        (b'[{"a": 1}\n {"a": 2}]', r"line 2, column 2: not JSON \(expected a comma or the end of the list\)"),
        (b'[{"a": 1}, ]', r"line 1, column 12: not JSON"),
        (b'[{"a": 1}] [2]', "goes on behind the end of its list of dialogues"),
        (b"[" + b"[" * 200000, "record 0 is nested too deeply"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_a_list_that_breaks_off_is_an_error(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read(tmp_path, data)
