"""JSON lists are split into their records, whatever stands in one of them."""

import gzip
import json
from pathlib import Path

import msgspec
import pytest

from datasets_prep import elements as elements_module
from datasets_prep import limits
from datasets_prep.elements import Element, elements
from datasets_prep.records import parse
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


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_where_the_file_is_cut_while_reading_changes_nothing(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers, words, escapes and characters of several bytes that a piece ends inside of, lines and faults alike."""
    records = [{"a": "x\\u00e9\u263a\ud83d\ude00"}, 1234567, True, None, -1.5e10, '\\"', [[], {}], 12]
    texts = [
        json.dumps(records, ensure_ascii=False),
        json.dumps(records, indent=1),
        "[1,\n 2\n,tru]",
        "[12 3]",
        "[1, 2",
    ]
    whole = [outcome(tmp_path, text) for text in texts]
    assert [json.loads(element.data) for element in whole[0]] == records  # type: ignore[union-attr]
    monkeypatch.setattr(elements_module, "PIECE", size)
    assert [outcome(tmp_path, text) for text in texts] == whole


def outcome(tmp_path: Path, text: str) -> list[Element] | str:
    try:
        return read(tmp_path, text.encode("utf-8", "surrogatepass"))
    except InputError as error:
        return str(error)


def test_a_record_beyond_the_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINE", 1000)
    monkeypatch.setattr(elements_module, "PIECE", 64)
    assert len(read(tmp_path, json.dumps(["x" * 900] * 9).encode())) == 9
    with pytest.raises(InputError, match=r"record 1 is longer than"):
        read(tmp_path, json.dumps(["x", "x" * 5000, 3]).encode())
    with pytest.raises(InputError, match=r"line 2, column 5: not JSON"):
        read(tmp_path, b'["x",\n [1 2' + b", 3" * 5000 + b"]]")


def test_a_list_that_is_far_larger_than_its_packed_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unpacks to more than 200 times its .* bytes"):
        read(tmp_path, gzip.compress(b"[1," + b" " * 2**27))
