"""What is too long, too deep or too much is refused before it is parsed, in time that grows no faster than its size."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_prep import chat, deal_or_no_deal, limits, lines, pages, parquet, reddit
from datasets_prep.records import parse
from datasets_prep.rejects import SAID, Reject
from ilql.types import Episode, InputError
from tests.prep import test_deal_or_no_deal, test_reddit
from tests.prep.test_files import PACKERS

GOOD = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}'
TOKENS = st.lists(st.sampled_from(["[", "]", "{", "}", '"', "a", "\\\\", '\\"']))


@given(TOKENS)
def test_depth_is_that_of_brackets_outside_of_strings(tokens: list[str]) -> None:
    text = "".join(tokens)
    deepest = now = k = 0
    while k < len(text):
        if text[k] == '"':
            end = k + 1
            while end < len(text) and text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            if end < len(text):  # one that never ends is none, and its line no JSON
                k = end
        now += (text[k] in "[{") - (text[k] in "]}")
        deepest = max(deepest, now)
        k += 1
    assert limits.depth(text.encode()) == deepest


@pytest.mark.parametrize("form", ["[", '{"a":'])
def test_nothing_is_parsed_that_is_nested_deeper_than_the_limit(form: str) -> None:
    closing = "]" if form == "[" else "}"
    for depth in (limits.DEPTH, limits.DEPTH + 1, 500, 2000, 100_000):
        data = (form * depth + ("1" if form != "[" else "") + closing * depth).encode()
        if depth <= limits.DEPTH:
            parse(msgspec.json.Decoder(), data)
            continue
        with pytest.raises(Reject, match=limits.TOO_DEEP):
            parse(msgspec.json.Decoder(), data)


def read(path: Path, data: bytes) -> list[Episode | Reject]:
    path.write_bytes(data)
    return list(chat.episodes([path]))


@pytest.mark.parametrize("pack", [bytes, *PACKERS.values()], ids=["plain", *PACKERS])
@pytest.mark.parametrize("line", [b'{"messages": "' + b"x" * 5000, b" " * 5000], ids=["text", "blank"])
def test_a_line_beyond_the_limit_costs_itself(
    tmp_path: Path, pack: Any, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First, in the middle, twice in a row, last without an end; whatever the parts."""
    monkeypatch.setattr(limits, "LINE", 1000)
    monkeypatch.setattr(lines.bounded, "__defaults__", (1000,))
    data = [line, GOOD, GOOD, line, line, b"", GOOD, line]
    found = read(tmp_path / "log", pack(b"\n".join(data)))
    assert [isinstance(item, Reject) for item in found] == [True, False, False, True, True, False, True]
    rejects = [item for item in found if isinstance(item, Reject)]
    assert [(item.file, item.line, item.reason) for item in rejects] == [
        ("log", k, limits.TOO_LONG) for k in (1, 4, 5, 8)
    ]
    assert [item.id for item in found if not isinstance(item, Reject)] == ["log-2", "log-3", "log-7"]


def test_no_more_than_the_limit_of_a_line_is_held(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\n" + b"x" * 3000 + b"\n\nb")
    with path.open("rb") as file:
        assert list(lines.bounded(file, 10)) == [(b"a\n", 2), (b"x" * 11, 3001), (b"\n", 1), (b"b", 1)]
    path.write_bytes(b"x" * 9 + b"\n" + b"x" * 10 + b"\n" + b"x" * 11)
    with path.open("rb") as file:
        assert [len(text) for text, _ in lines.bounded(file, 10)] == [10, 11, 11]


def test_a_log_that_is_far_larger_than_its_packed_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log unpacks to more than 200 times its .* bytes"):
        read(tmp_path / "log", gzip.compress(GOOD + b"\n" + b"x" * 2**27, 1))
    assert len(read(tmp_path / "log", gzip.compress(GOOD + b" " * 2**20, 9))) == 1  # little, however well packed


def test_a_parquet_bomb_is_refused(tmp_path: Path) -> None:
    texts = pa.array(["x" * 2**20] * 100)
    pq.write_table(
        pa.table({"prompt": texts, "completion": texts}), tmp_path / "log", use_dictionary=False, compression="zstd"
    )
    with pytest.raises(InputError, match="unpacks to more than 200 times"):
        list(chat.episodes([tmp_path / "log"]))


def test_a_parquet_bomb_whose_footer_belittles_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what its pages say, which is what they are unpacked to."""
    path, texts = tmp_path / "log", pa.array(["x" * 2**20] * 100)
    table = pa.table({"prompt": texts, "completion": texts})
    pq.write_table(table, path, use_dictionary=False, compression="zstd", write_statistics=False)
    group, data = pq.read_metadata(path).row_group(0), path.read_bytes()
    for size in {group.total_byte_size, *(group.column(k).total_uncompressed_size for k in range(2))}:
        old = _varint(2 * size)
        assert old in data
        data = data.replace(old, bytes([*(b | 128 for b in _varint(2 * 1000)), *[128] * (len(old) - 3), 0]))
    path.write_bytes(data)
    group = pq.read_metadata(path).row_group(0)
    assert group.total_byte_size == group.column(0).total_uncompressed_size == 1000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_: pytest.fail("it is unpacked"))
    with pytest.raises(InputError, match="log unpacks to more than 200 times"):
        list(chat.episodes([path]))


def _varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + _varint(number >> 7) if number > 127 else bytes([number])


def test_rows_of_nothing_are_no_file_of_their_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FREE", 2**20)
    pq.write_table(pa.table({"prompt": ["x" * 200] * 20_000, "completion": [None] * 20_000}), tmp_path / "log")
    with pytest.raises(InputError, match="log unpacks to more than 200 times"):
        list(chat.episodes([tmp_path / "log"]))


def test_what_is_said_to_be_unpacked_is(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(5000)), "b": [[str(k % 9), None] for k in range(5000)], "c": [{"d": 0.5}] * 5000})
    options: list[dict[str, Any]] = [
        {},
        {"compression": "zstd", "row_group_size": 999, "write_page_checksum": True},
        {"use_dictionary": False, "data_page_size": 500, "compression": "none"},
        {"data_page_version": "2.0", "write_page_index": True},
    ]
    for how in options:
        pq.write_table(table, tmp_path / "log", **how)
        about = pq.read_metadata(tmp_path / "log")
        columns = [about.row_group(g).column(k) for g in range(about.num_row_groups) for k in range(3)]
        assert (tmp_path / "log").stat().st_size > 0
        found = pages.unpacked(tmp_path / "log")
        assert len(found) == len(columns)
        for size, column in zip(found, columns, strict=True):  # these sizes count the pages' headers too
            assert 0.8 * column.total_uncompressed_size - 100 < size < column.total_uncompressed_size


def test_one_text_for_every_row_of_a_table_is_read_in_small_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a column's dictionary a file holds little, and its rows make much."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), ["x" * 2**18])
    table = pa.table({"prompt": text, "completion": text})
    pq.write_table(table, tmp_path / "log", compression="none", store_schema=False)
    assert (tmp_path / "log").stat().st_size < 2**20
    monkeypatch.setattr(parquet, "HOLD", 2**20)
    assert 1 <= parquet._rows(tmp_path / "log", (tmp_path / "log").stat().st_size) <= 4
    assert len(list(chat.episodes([tmp_path / "log"]))) == 100
    monkeypatch.setattr(parquet, "HOLD", 1)
    monkeypatch.setattr(parquet, "LINE", 1000)
    monkeypatch.setattr(limits, "LINE", 1000)
    found = list(chat.episodes([tmp_path / "log"]))
    assert [(item.line, item.reason) for item in found if isinstance(item, Reject)] == [
        (k, limits.TOO_LONG) for k in range(1, 101)
    ]


def test_what_strangers_wrote_is_repeated_in_part_only() -> None:
    with pytest.raises(Reject) as caught:
        parse(msgspec.json.Decoder(chat.Message), b'{"role": "user", "' + b"x" * 10**6 + b'": 1}', chat.FIELDS)
    assert len(caught.value.reason) == len(caught.value.field) == SAID


MANY = 200_000
OBJECT = ", ".join(f'"key{k}": {k}' for k in range(MANY))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (f"{{{OBJECT}}}", None),
        (f'{{{OBJECT}, "key{MANY - 1}": 1}}', "given twice"),
        (f'{{{OBJECT}, "x": NaN}}', "no finite number"),
        (f"[{'0, ' * MANY}NaN]", "no finite number"),
        (f'{{"{"x" * 10**6}": [{"0, " * 10**5}NaN]}}', "no finite number"),
    ],
    ids=["well-formed", "twice", "NaN", "NaN in a list", "NaN below a long name"],
)
def test_an_object_of_many_keys_takes_no_more_than_its_size(data: str, reason: str | None) -> None:
    before = time.process_time()
    if reason is None:
        assert len(parse(msgspec.json.Decoder(), data.encode())) == MANY
    else:
        with pytest.raises(Reject, match=reason):
            parse(msgspec.json.Decoder(), data.encode())
    assert time.process_time() - before < 20  # by pairs of keys it would be hours


def test_a_long_thread_is_refused_and_a_wide_one_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def comments(parent: Any) -> str:
        post, first = test_reddit.GOOD, test_reddit.GOOD["comments"][0]
        many = [{**first, "id": f"t1_b{k}", "parent_id": parent(k)} for k in range(100)]
        return json.dumps({**post, "comments": many})

    monkeypatch.setattr(reddit, "WAYS", 1000)
    path = tmp_path / "log"
    path.write_text(comments(lambda k: f"t1_b{k - 1}" if k else test_reddit.GOOD["id"]))
    (fault,) = reddit.episodes([path], seed=0)
    assert isinstance(fault, Reject)
    assert "too many below each other" in fault.reason
    path.write_text(comments(lambda k: test_reddit.GOOD["id"]))
    assert len(list(reddit.episodes([path], seed=0))) == 100
    path.write_text(comments(lambda k: f"t1_b{(k + 1) % 100}"))
    (fault,) = reddit.episodes([path], seed=0)
    assert isinstance(fault, Reject)
    assert "circle" in fault.reason


def test_a_line_that_a_pattern_would_go_over_again_and_again_is_too_long(tmp_path: Path) -> None:
    begin = "1 0 4 2 1 2 " + "YOU: <selection> item0=0 <eos> reward=" * 10**5
    (tmp_path / "data").write_text(f"{begin}\n{test_deal_or_no_deal.DEAL}\n")
    fault, episode = deal_or_no_deal.episodes([tmp_path / "data"], seed=0)
    assert isinstance(fault, Reject)
    assert "longer than" in fault.reason
    assert isinstance(episode, Episode)
