"""Records of other trainers, and tables: what becomes of each field, and faults that name it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet.encryption import CryptoFactory, EncryptionConfiguration, KmsClient, KmsConnectionConfig

from datasets_prep import chat, split
from datasets_prep.encode import Encoder
from datasets_prep.layout import called
from datasets_prep.records import NOT_UTF8
from datasets_prep.rejects import Reject
from datasets_prep.work import Source
from ilql.types import Episode, InputError, Turn
from tests.prep import tokenizers_for_tests as others

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": 5}}}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def read(tmp_path: Path, *lines: Any, **options: Any) -> list[Episode | Reject]:
    path = tmp_path / "log.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return list(chat.episodes([path], seed=0, **options))


def one(tmp_path: Path, line: Any, **options: Any) -> Episode:
    (found,) = read(tmp_path, line, **options)
    assert isinstance(found, Episode), found
    return found


# ---- TRL -------------------------------------------------------------------------------------------------------------


def test_a_prompt_and_its_completion(tmp_path: Path) -> None:
    found = one(tmp_path, {"prompt": "The sky is", "completion": " blue."})
    assert list(found.turns) == [Turn("user", "The sky is"), Turn("assistant", " blue.")]
    assert (found.id, found.terminated, found.meta, found.tools) == ("log-1", True, {}, None)
    line = {"prompt": "a", "completion": "b", "reward": -2, "id": 7, "terminated": False, "meta": {"k": 1}}
    found = one(tmp_path, line | {"tools": TOOLS})
    assert found.turns[1] == Turn("assistant", "b", -2.0)
    assert (found.id, found.terminated, found.meta, found.tools) == ("7", False, {"k": 1}, TOOLS)
    assert [one(tmp_path, {"prompt": "a", "completion": "b", "label": x}).total_reward for x in (True, False)] == [1, 0]
    assert [t.role for t in one(tmp_path, {"prompt": "a", "completion": "b"}, agent_role="user").turns] == [
        "user",
        "assistant",
    ]


def test_only_the_completion_of_a_conversation_is_learned_from(tmp_path: Path) -> None:
    u, a = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    tool = {"role": "tool", "content": "a map", "name": "look", "tool_call_id": "c1"}
    calls = {"role": "assistant", "tool_calls": [CALL]}
    found = one(tmp_path, {"prompt": [u, a, u], "completion": [calls, tool, a], "reward": 2, "tools": TOOLS})
    assert list(found.turns) == [
        Turn("user", "hi"),
        Turn("assistant", "yo", act=False),
        Turn("user", "hi"),
        Turn("assistant", "", tool_calls=[CALL]),
        Turn("tool", "a map", name="look", tool_call_id="c1"),
        Turn("assistant", "yo", 2.0),
    ]
    kept = one(tmp_path, {"prompt": [u, {**a, "loss_mask": 1, "reward": 3}, u], "completion": "x"})
    assert [turn.reward for turn in kept.turns if turn.is_action] == [3, 0]
    assert [t.role for t in one(tmp_path, {"prompt": [a], "completion": "x"}, agent_role="bot").turns] == [
        "user",
        "assistant",
    ]


# ---- trlx ------------------------------------------------------------------------------------------------------------


def test_samples_and_rewards(tmp_path: Path) -> None:
    line = {"samples": [["Q", "A", "Q2", "A2"], "alone"], "rewards": [1, -0.5], "meta": {"k": 1}}
    first, second = read(tmp_path, line)
    assert isinstance(first, Episode)
    assert isinstance(second, Episode)
    assert list(first.turns) == [
        *(Turn("user", "Q"), Turn("assistant", "A"), Turn("user", "Q2"), Turn("assistant", "A2", 1.0))
    ]
    assert list(second.turns) == [Turn("assistant", "alone", -0.5)]
    assert [(e.id, e.terminated, e.meta) for e in (first, second)] == [
        ("log-1.0", True, {"k": 1}),
        ("log-1.1", True, {"k": 1}),
    ]
    assert [e.id for e in read(tmp_path, line | {"id": "x"}) if isinstance(e, Episode)] == ["x.0", "x.1"]


def test_samples_of_a_line_without_an_id_are_no_dialogues_of_another_file(tmp_path: Path) -> None:
    paths = [tmp_path / "log.jsonl", tmp_path / "held" / "log.jsonl"]
    paths[1].parent.mkdir()
    for path in paths:
        path.write_text('{"samples": ["a", "b"], "rewards": [1, 0]}\n')
    source, splitter = Source("chat", 0, {}), split.Splitter(chat, paths[:1], paths[1], 0)
    found: list[tuple[str | Reject, str]] = []
    for name, work in splitter.read(source.parts):
        talks = source.read(work).talks
        found += zip(splitter.place(name, split.look(talks, splitter.grouped)), talks.id, strict=True)
    assert found == [
        *(("train", "log-1.0"), ("train", "log-1.1"), ("validation", "log-1.0"), ("validation", "log-1.1"))
    ]


# ---- faults ----------------------------------------------------------------------------------------------------------

TRL = {"prompt": "a", "completion": "b"}
U = {"role": "user", "content": "hi"}
TRLX = {"samples": ["a", ["b", "c"]], "rewards": [1, 2]}


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ({**TRL, "reward": "1"}, "reward", "`str`"),
        ({**TRL, "reward": 1e308}, "reward", "32-bit"),
        (json.dumps({**TRL, "reward": float("nan")}), "reward", "NaN is no finite number"),
        ({**TRL, "label": 1}, "label", "`int`"),
        ({**TRL, "label": True, "reward": 1}, "label", "given beside reward"),
        ({**TRL, "rewrd": 1}, "rewrd", "did you mean 'reward'?"),
        ({**TRL, "messages": []}, "prompt", "unknown field 'prompt'"),
        ({"completion": "b"}, "", "missing required field `prompt`"),
        ({"prompt": "a"}, "", "missing required field `completion`"),
        ({**TRL, "prompt": None}, "prompt", "`null`"),
        ({**TRL, "completion": [U, 5]}, "completion[1]", "`int`"),
        ({**TRL, "completion": [{"role": "asistant", "content": "x"}]}, "completion[0].role", "'assistant'?"),
        ({**TRL, "prompt": [U, {"role": "user"}]}, "prompt[1].content", "missing or null"),
        ({**TRL, "completion": [U], "reward": 1}, "reward", "no message of the agent"),
        ({**TRL, "tools": "[5]"}, "tools.[0]", "`object`"),
        ({**TRL, "tools": "look"}, "tools", "JSON"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', "prompt", "given twice"),
        ({"samples": ["a"], "rewards": [1, 2]}, "rewards", "2 rewards for 1 samples"),
        ({"samples": ["a"]}, "", "missing required field `rewards`"),
        ({"samples": "a", "rewards": [1]}, "samples", "Expected `array`"),
        ({"samples": ["a"], "rewards": ["1"]}, "rewards[0]", "`str`"),
        ({"samples": ["a"], "rewards": [True]}, "rewards[0]", "`bool`"),
        ({"samples": ["a"], "rewards": [1e300]}, "rewards[0]", "32-bit"),
        ({"samples": [["a"]], "rewards": [1]}, "samples[0]", "1 texts, not prompt, output"),
        ({"samples": [[]], "rewards": [1]}, "samples[0]", "0 texts"),
        ({"samples": [["a", 5]], "rewards": [1]}, "samples[0][1]", "`int`"),
        ('{"samples": ["a"], "rewards": [1], "completion"', "", "JSON"),
    ],
)
def test_a_fault_costs_one_line(tmp_path: Path, line: Any, field: str, reason: str) -> None:
    before, fault, after = read(tmp_path, TRL, line, TRL)
    assert isinstance(before, Episode)
    assert isinstance(after, Episode)
    assert isinstance(fault, Reject)
    assert (fault.file, fault.line, fault.field) == ("log.jsonl", 2, field)
    assert reason in fault.reason


def test_a_faulty_sample_costs_that_sample(tmp_path: Path) -> None:
    found = read(tmp_path, {"samples": ["a", ["b", "c", "d"], "e"], "rewards": [1, 2, 3]})
    assert [item.total_reward if isinstance(item, Episode) else item.field for item in found] == [1, "samples[1]", 3]


# ---- tools -----------------------------------------------------------------------------------------------------------


def test_texts_that_hold_json_become_objects(tmp_path: Path) -> None:
    said = {"type": "function", "function": {"name": "look", "arguments": '{"at": 5}'}}
    message = {"role": "assistant", "tool_calls": [CALL, said]}
    found = one(tmp_path, {"messages": [message], "tools": json.dumps(TOOLS)})
    assert found.turns[0].tool_calls == [CALL, CALL]
    assert found.tools == TOOLS
    assert called([{"name": "look", "arguments": 5}]) == [{"name": "look", "arguments": 5}]
    assert called([]) is None
    for text in ("{", "5", "", '"x"'):
        broken = {"function": {"name": "look", "arguments": text}}
        (fault,) = read(tmp_path, {"messages": [U, {"role": "assistant", "tool_calls": [CALL, broken]}]})
        assert isinstance(fault, Reject)
        assert fault.field == "messages[1].tool_calls[1].function.arguments"
        assert fault.reason == "a text that is no JSON object"


NEEDY = others.CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'tool' %}{% if m.tool_call_id is not defined %}{{ raise_exception('which call?') }}{% endif %}"
    "{{ m.name + '/' + m.tool_call_id + ': ' }}{% endif %}{{ m.content }}",
).replace("{% for m in messages %}", "{% if tools %}{{ tools | tojson + '\\n' }}{% endif %}{% for m in messages %}", 1)


def test_a_chat_template_gets_tools_calls_and_whose_answer_it_is(tmp_path: Path) -> None:
    said = {"function": {"name": "look", "arguments": '{"at": 5}'}}
    calls = {"role": "assistant", "content": "", "tool_calls": [said]}
    answer = {"role": "tool", "content": "a map", "name": "look", "tool_call_id": "c1"}
    end = {"role": "assistant", "content": "yo", "reward": 1}
    encoder = Encoder(others.chatml(NEEDY))
    row = encoder.encode(one(tmp_path, {"messages": [U, calls, answer, end], "tools": TOOLS}), "utterance")
    assert encoder.tokenizer.decode(row["tokens"]) == (
        f"<|im_end|>{json.dumps(TOOLS)}\n<|im_start|>user\nhi<|im_end|>\n"
        '<|im_start|>assistant\n<call>[{"function": {"name": "look", "arguments": {"at": 5}}}]<|im_end|>\n'
        "<|im_start|>tool\nlook/c1: a map<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>"
    )
    actions = [encoder.tokenizer.decode(row["tokens"][s:e]) for s, e in zip(row["start"], row["end"], strict=True)]
    assert actions == ['<call>[{"function": {"name": "look", "arguments": {"at": 5}}}]<|im_end|>', "yo<|im_end|>"]
    assert row["reward"] == [0, 1]
    del answer["tool_call_id"]
    with pytest.raises(Reject, match="which call"):
        encoder.encode(one(tmp_path, {"messages": [U, calls, answer, end]}), "token")
    answer["tool_call_id"] = "<|im_end|>"
    with pytest.raises(Reject, match=r"messages\[2\].tool_call_id: holds the tokenizer's special token"):
        encoder.encode(one(tmp_path, {"messages": [U, calls, answer, end]}), "token")


# In the manner of templates that wrap calls one by one and fold the tools' answers into one turn of the user.
FOLDING = (
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\\n<answer>' + m.content + '</answer>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + c.function.arguments | tojson + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_a_template_that_folds_answers_together(tmp_path: Path) -> None:
    said = {"function": {"name": "look", "arguments": '{"at": 5}'}}
    calls = {"role": "assistant", "content": "", "tool_calls": [said, CALL], "reward": 0.5}
    answers = [{"role": "tool", "content": "a map"}, {"role": "tool", "content": "a key"}]
    end = {"role": "assistant", "content": "yo", "reward": 1}
    encoder = Encoder(others.chatml(FOLDING))
    row = encoder.encode(one(tmp_path, {"messages": [U, calls, *answers, end]}), "utterance")
    begin = encoder.tokenizer.decode([encoder.bos_id])
    assert encoder.tokenizer.decode(row["tokens"]) == begin + (
        "<|im_start|>user\nhi<|im_end|>\n"
        '<|im_start|>assistant\n<call>look {"at": 5}</call><call>look {"at": 5}</call><|im_end|>\n'
        "<|im_start|>user\n<answer>a map</answer>\n<answer>a key</answer><|im_end|>\n"
        "<|im_start|>assistant\nyo<|im_end|>"
    )
    actions = [encoder.tokenizer.decode(row["tokens"][s:e]) for s, e in zip(row["start"], row["end"], strict=True)]
    assert actions == ['<call>look {"at": 5}</call><call>look {"at": 5}</call><|im_end|>', "yo<|im_end|>"]
    assert row["reward"] == [0.5, 1]
    assert len(row["turn"]) == 4  # the two answers are one


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def table(tmp_path: Path, name: str = "log.parquet", **columns: Any) -> Path:
    path = tmp_path / name
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path


def test_a_table_is_read_as_its_lines(tmp_path: Path) -> None:
    """Structs of a table have every field in every row; what is null is not there."""
    rows: list[dict[str, Any]] = [
        {"messages": [U, {"role": "assistant", "content": f"yo {k}", "reward": k / 4}], "id": f"d{k}"}
        for k in range(700)
    ]
    rows[3]["messages"][1] = {"role": "assistant", "tool_calls": [CALL], "logp": [-1.0, None]}
    rows[4] |= {"terminated": False, "reward": 2.0, "meta": {"group": "g"}, "tools": json.dumps(TOOLS)}
    rows[5]["id"] = None
    names = list(dict.fromkeys(name for row in rows for name in row))
    path = table(tmp_path, "log.jsonl", **{name: [row.get(name) for row in rows] for name in names})
    lines = [{key: value for key, value in row.items() if value is not None} for row in rows]
    (tmp_path / "plain").mkdir()
    expected = [e for e in read(tmp_path / "plain", *lines) if isinstance(e, Episode)]
    found = list(chat.episodes([path]))
    assert found == expected
    assert len(found) == 700
    assert found[5].id == "log-6"


def test_tables_of_other_trainers(tmp_path: Path) -> None:
    path = table(tmp_path, prompt=["a", "b"], completion=["c", "d"], label=[True, False])
    assert [e.total_reward for e in chat.episodes([path]) if isinstance(e, Episode)] == [1, 0]
    path = table(tmp_path, samples=[[["a", "b"]], [["c", "d"], ["e", "f"]]], rewards=[[1.0], [2.0, 3.0]])
    assert [e.total_reward for e in chat.episodes([path]) if isinstance(e, Episode)] == [1, 2, 3]


def test_faults_of_rows_are_rejects(tmp_path: Path) -> None:
    rewards = [1.0, float("nan"), None, float("inf")]
    path = table(tmp_path, prompt=["a"] * 4, completion=["b", "b", None, "b"], reward=rewards)
    found = list(chat.episodes([path]))
    assert isinstance(found[0], Episode)
    assert [(x.line, x.field, x.file) for x in found[1:] if isinstance(x, Reject)] == [
        *((2, "reward", "log.parquet"), (3, "", "log.parquet"), (4, "reward", "log.parquet"))
    ]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (
            {"text": ["a"], "stars": [1]},
            r"log\.parquet has the columns text, stars, but a log has messages, or prompt and",
        ),
        ({"prompt": ["a"], "chosen": ["b"]}, "has the columns prompt, chosen, but"),
        (
            {"prompt": ["a"], "completion": ["b"], "rewards": [1.0]},
            r"unknown column 'rewards'; did you mean 'reward'\?",
        ),
        (
            {"prompt": ["a"], "completion": ["b"], "source": ["x"]},
            "unknown column 'source'; leave it out, or put it into",
        ),
        ({"prompt": ["a"], "completion": [b"b"]}, "the column completion is binary; cast it"),
        (
            {"prompt": ["a"], "completion": ["b"], "meta": pa.array([{"at": 5}], pa.struct({"at": pa.timestamp("s")}))},
            r"the column meta\.at is timestamp",
        ),
        (
            {"samples": [["a"]], "rewards": pa.array([[5]], pa.list_(pa.duration("s")))},
            r"the column rewards\[\] is duration",
        ),
        (
            {"prompt": ["a"], "completion": ["b"], "meta": pa.StructArray.from_arrays([pa.array([1])] * 2, ["k", "k"])},
            r"the column meta\.k is there twice",
        ),
        (
            {"prompt": pa.array([], pa.string()), "completion": pa.array([], pa.string())},
            "is empty: it holds no dialogue",
        ),
    ],
)
def test_a_table_without_the_columns_is_an_error(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    path = table(tmp_path, **columns)
    with pytest.raises(InputError, match=reason):
        list(chat.episodes([path]))


def test_a_table_cut_short_is_an_error(tmp_path: Path) -> None:
    path = table(tmp_path, prompt=["a"] * 300, completion=[str(k) for k in range(300)])
    data = path.read_bytes()
    for broken in (data[:-3], data[: len(data) // 2], data[:6], data[:200] + bytes(400) + data[600:]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"log\.parquet is no whole Parquet file"):
            list(chat.episodes([path]))


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    texts, rewards = pa.array(["a"]), pa.array([1.0])
    names = ["prompt", "completion", "reward", "reward"]
    pq.write_table(pa.Table.from_arrays([texts, texts, rewards, rewards], names), tmp_path / "log")
    with pytest.raises(InputError, match="the column reward is there twice"):
        list(chat.episodes([tmp_path / "log"]))


def test_a_row_that_is_no_utf8_costs_itself(tmp_path: Path) -> None:
    offsets, data = np.array([0, 1, 3, 4], np.int32), b"a\xff\xfeb"
    texts = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)])
    found = list(chat.episodes([table(tmp_path, prompt=texts, completion=["x"] * 3)]))
    assert [x.turns[0].text if isinstance(x, Episode) else (x.line, x.reason) for x in found] == [
        "a",
        (2, NOT_UTF8),
        "b",
    ]


def test_an_encrypted_table_is_an_error(tmp_path: Path) -> None:
    """One with a footer to be read: PyArrow ends the process where it is asked how large its columns are."""

    class Keys(KmsClient):
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return key

    factory = CryptoFactory(lambda _: Keys())
    columns = {"k": ["prompt", "completion"]}
    found = pa.table({"prompt": ["a"], "completion": ["b"]})
    for plain in (True, False):
        how = EncryptionConfiguration("k", column_keys=columns, plaintext_footer=plain, double_wrapping=False)
        keys = factory.file_encryption_properties(KmsConnectionConfig(), how)
        with pq.ParquetWriter(tmp_path / "log", found.schema, encryption_properties=keys) as to:
            to.write_table(found)
        with pytest.raises(InputError, match="encrypted"):
            list(chat.episodes([tmp_path / "log"]))
