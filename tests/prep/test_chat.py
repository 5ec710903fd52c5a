"""The general log format: what a line may say, and that a fault costs one line."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from datasets_prep import chat
from datasets_prep.rejects import Reject
from ilql.types import Episode, InputError, Turn

U, A = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
GOOD = {"messages": [U, A]}


def read(tmp_path: Path, *lines: Any, **options: Any) -> list[Episode | Reject]:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n")
    return list(chat.episodes([path], seed=0, **options))


def one(tmp_path: Path, line: Any, **options: Any) -> Episode:
    (found,) = read(tmp_path, line, **options)
    assert isinstance(found, Episode), found
    return found


def test_all_fields(tmp_path: Path) -> None:
    line = {
        "id": "d",
        "messages": [
            {"role": "system", "content": "be kind"},
            U,
            {"role": "assistant", "content": None, "tool_calls": [{"a": 1}], "reward": 1, "logp": [-0.5, None]},
            {"role": "tool", "content": "ok", "name": "look", "tool_call_id": "1"},
            {"role": "assistant", "content": "no", "loss_mask": 0},
            {"role": "assistant", "content": "yo", "loss_mask": 1, "reward": 0.5, "logp": -1},
            U,
        ],
        "tools": [{"name": "look"}],
        "reward": 2,
        "terminated": False,
        "meta": {"k": [1, None]},
    }
    found = one(tmp_path, line)
    assert (found.id, found.terminated, found.meta) == ("d", False, {"k": [1, None]})
    assert found.tools == [{"name": "look"}]
    assert list(found.turns) == [
        Turn("system", "be kind"),
        Turn("user", "hi"),
        Turn("assistant", "", 1.0, [-0.5, None], True, [{"a": 1}]),
        Turn("tool", "ok", name="look", tool_call_id="1"),
        Turn("assistant", "no", act=False),
        Turn("assistant", "yo", 2.5, -1.0),
        Turn("user", "hi"),
    ]


def test_defaults(tmp_path: Path) -> None:
    found = one(tmp_path, GOOD)
    assert (found.id, found.terminated, found.meta, found.tools) == ("log-1", True, {}, None)
    assert one(tmp_path, GOOD | {"id": 7}).id == "7"


def test_agent_role(tmp_path: Path) -> None:
    customer = {"role": "customer", "content": "c", "reward": 1}
    found = one(tmp_path, {"messages": [U, customer, A]}, agent_role="customer")
    assert [(t.role, t.text) for t in found.turns] == [("user", "hi"), ("assistant", "c"), ("user", "yo")]
    found = one(tmp_path, GOOD | {"reward": 3}, agent_role="user")
    assert list(found.turns) == [Turn("assistant", "hi", 3.0), Turn("user", "yo")]


def test_blank_lines_and_a_byte_order_mark_are_no_dialogues(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    found = read(tmp_path, b"\xef\xbb\xbf" + good, b"", b"  \r", good + b"\r")
    assert [e.id for e in found] == ["log-1", "log-4"]


def message(**changes: Any) -> dict[str, Any]:
    return {"messages": [U, {**A, **changes}]}


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b"{", "", "JSON"),
        (b'"text"', "", "Expected `object`"),
        (b"[]", "", "Expected `object`"),
        (b"{}", "", "messages"),
        (b'{"messages": [{"role": "assistant", "content": "\xff"}]}', "", "UTF-8"),
        (b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "messages[0].content", "surrogate"),
        (b'{"messages": [], "meta": {"\\udc00": 1}}', "meta", "surrogate"),
        (b'{"messages": [{"role": "assistant", "content": "a\x00b"}]}', "", "JSON"),
        (b'{"messages": [], "meta": ' + b'{"a":' * 20000 + b"1" + b"}" * 20000 + b"}", "", "nested"),
        (b'{"messages": ' + b"[" * 100000, "", "nested"),
        (b'{"messages": [], "reward": NaN}', "reward", "NaN is no finite number"),
        (
            b'{"messages": [{"role": "user"}, {"role": "assistant", "reward": -Infinity}]}',
            "messages[1].reward",
            "-Infinity is no",
        ),
        (b'{"messages": [], "reward": NaN', "", "JSON"),
        (b'{"messages": [], "meta": {"a": [0, NaN]}}', "meta.a[1]", "NaN is no finite number"),
        (b'{"messages": [], "reward": 1, "reward": 2}', "reward", "given twice"),
        (b'{"messages": [{"role": "assistant", "content": "a", "content": "b"}]}', "content", "given twice"),
        (b'{"messages": [], "meta": {"a": {"x": 1, "y": 1, "x": 1}}}', "x", "given twice"),
        (b'{"messages": [], "reward": 1e999}', "reward", "out of range"),
        ({"messages": "hi"}, "messages", "array"),
        ({"messages": [U, "yo"]}, "messages[1]", "object"),
        (message(reward="1"), "messages[1].reward", "`str`"),
        (message(reward=True), "messages[1].reward", "`bool`"),
        (GOOD | {"reward": "1"}, "reward", "`str`"),
        (GOOD | {"terminated": 1}, "terminated", "bool"),
        (GOOD | {"terminated": "true"}, "terminated", "bool"),
        (GOOD | {"meta": []}, "meta", "object"),
        (GOOD | {"rewards": 1}, "rewards", "did you mean 'reward'"),
        (GOOD | {"zzz": 1}, "zzz", "'meta'"),
        (message(rewrd=1), "messages[1].rewrd", "did you mean 'reward'"),
        (message(content=5), "messages[1].content", "`int`"),
        (message(content=[{"type": "text", "text": "a"}]), "messages[1].content", "a list of parts"),
        (message(content=None), "messages[1].content", "null"),
        (message(loss_mask=2), "messages[1].loss_mask", "2"),
        (message(logp="x"), "messages[1].logp", "`str`"),
        (message(role="asistant"), "messages[1].role", "did you mean 'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{**U, "loss_mask": 1}, A]}, "messages[0].loss_mask", "not the agent's"),
        ({"messages": [A, {**U, "reward": -1}]}, "messages[1].reward", "on a message of 'user'"),
        ({"messages": [{**U, "logp": -1}, A]}, "messages[0].logp", "not the agent's"),
        ({"messages": [{**U, "tool_calls": [{}]}, A]}, "messages[0].tool_calls", "not the agent's"),
        ({"messages": [U, A], "reward": 1e308}, "reward", "32-bit"),
        ({"messages": [U, A, {**A, "loss_mask": 0}], "reward": 1}, "reward", "loss_mask 0"),
        ({"messages": [U], "reward": 1}, "reward", "no message of the agent"),
    ],
    ids=lambda value: "" if isinstance(value, bytes | dict) else None,
)
def test_a_fault_costs_one_line(tmp_path: Path, line: Any, field: str, reason: str) -> None:
    before, fault, after = read(tmp_path, GOOD, line, GOOD)
    assert isinstance(before, Episode)
    assert isinstance(after, Episode)
    assert isinstance(fault, Reject)
    assert (fault.file, fault.line, fault.field) == ("log.jsonl", 2, field)
    assert reason in fault.reason


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    """Other separators of Unicode stand in what people write; Windows' line ends are white space of JSON."""
    path = tmp_path / "log.jsonl"
    text = "a\u2028b\u2029c\x85d\x7fe"
    line = json.dumps({"messages": [{**U, "content": text}, A]}, ensure_ascii=False)
    path.write_bytes(f"{line}\r\n\r\n{line}\r\n".encode())
    found = [e.turns[0].text for e in chat.episodes([path]) if isinstance(e, Episode)]
    assert found == [text, text]


def test_files_of_the_same_name_have_lines_of_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / day / "log.jsonl" for day in ("monday", "tuesday")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps(GOOD))
    found = [e.id for e in chat.episodes(paths) if isinstance(e, Episode)]
    assert found == ["log.1-1", "log.2-1"]


@pytest.mark.parametrize("text", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"empty\.jsonl is empty"):
        list(chat.episodes([path]))


def test_no_file_a_folder_and_another_form_are_errors(tmp_path: Path) -> None:
    packed, wide, other = tmp_path / "a.jsonl.xz", tmp_path / "c.jsonl", tmp_path / "casino.json"
    packed.write_bytes(lzma.compress(json.dumps(GOOD).encode()))
    wide.write_text(json.dumps(GOOD), encoding="utf-16")
    other.write_text('[{"dialogue_id": 1, "chat_logs": []}]')
    cases: list[tuple[list[Path], str]] = [
        ([], "give --input FILE"),
        ([tmp_path], f"{tmp_path} is a folder"),
        ([packed], r"a\.jsonl\.xz is compressed"),
        ([wide], r"c\.jsonl is UTF-16"),
        ([other], r"casino\.json does not look like a file of chat, but like one of casino"),
    ]
    for inputs, reason in cases:
        with pytest.raises(InputError, match=reason):
            list(chat.episodes(inputs))


def test_a_compressed_log_is_read_as_what_is_inside(tmp_path: Path) -> None:
    plain, packed, cut = tmp_path / "log.jsonl", tmp_path / "z" / "log.jsonl.gz", tmp_path / "cut.jsonl.gz"
    packed.parent.mkdir()
    data = b"\n".join(json.dumps(GOOD | {"meta": {"n": n}}).encode() for n in range(300))
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    cut.write_bytes(gzip.compress(data)[:-20])
    assert [(e.id, e.meta) for e in chat.episodes([packed]) if isinstance(e, Episode)] == [
        (e.id, e.meta) for e in chat.episodes([plain]) if isinstance(e, Episode)
    ]
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz is cut short"):
        list(chat.episodes([cut]))
