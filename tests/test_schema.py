"""The Arrow contract: a folder that breaks it is one clear sentence, for the check and for the trainer alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep.encode import Encoder
from datasets_prep.show import inspect
from datasets_prep.tokenizer import train
from ilql import schema
from ilql.rows import Rows
from ilql.types import InputError

ROW: dict[str, Any] = {  # BOS, mark, two observed tokens, mark, an action of two tokens, mark, an action of one
    "id": "w",
    "tokens": [0, 4, 7, 8, 5, 9, 2, 5, 2],
    "turn": [1, 4, 7],
    "start": [5, 6, 8],
    "end": [6, 7, 9],
    "reward": [0.0, 1.0, 2.0],
    "logp": [-1.0, None, 0.0],
    "terminated": True,
    "meta": "{}",
}
MANIFEST: dict[str, Any] = {"schema_version": schema.VERSION, "step": "token"}
MANIFEST["tokenizer"] = {"vocab_size": 10, "sha256": "x"}


def write(
    folder: Path, rows: list[dict[str, Any]] | bytes, columns: pa.Schema = schema.SCHEMA, **manifest: Any
) -> Path:
    path = folder / "train" / "data-00000.arrow"
    path.parent.mkdir(parents=True)
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    else:
        with pa.ipc.new_stream(str(path), columns) as stream:
            stream.write_table(pa.Table.from_pylist(rows, schema=columns))
    files = {"train/data-00000.arrow": {"rows": len(rows), "sha256": schema.sha256(path)}}
    (folder / "manifest.json").write_text(schema.sealed(MANIFEST | {"files": files} | manifest))
    return folder


def train_reads(folder: Path) -> None:
    Rows(folder).check(10)


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.Table.from_pylist(rows, schema=schema.SCHEMA).combine_chunks().to_batches()[0]


OPEN = ROW | {"tokens": [*ROW["tokens"], 4, 7, 5], "turn": [1, 4, 7, 9, 11], "terminated": False}
HEADLESS = OPEN | {"turn": [1, 4, 7, 9, 12]}  # the agent's open turn begins behind the last token


def test_whole_batches_are_checked_at_once() -> None:
    """Well-formed rows beside each other are sound, so that no row is looked at alone."""
    whole = batch([ROW, OPEN, HEADLESS, ROW | {"logp": [None] * 3}, OPEN, ROW])
    assert schema.sound(schema.views(whole), 10)
    assert schema.sound(schema.views(whole.slice(1, 3)), 10)
    assert schema.sound(schema.views(whole.slice(0, 0)), 10)
    assert not schema.sound(schema.views(whole), 9)


@settings(max_examples=500)
@given(st.data())
def test_a_batch_is_sound_exactly_where_no_row_has_a_fault(data: st.DataObject) -> None:
    """Any numbers of rows changed in any way: put off by a few, cut, or emptied."""
    rows = []
    for _ in range(data.draw(st.integers(1, 4))):
        row = dict(data.draw(st.sampled_from([ROW, OPEN, HEADLESS])))
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from([*schema.INTEGERS, "reward", "logp", "terminated"]))
            if name == "terminated":
                row[name] = not row[name]
            else:
                values = list(row[name])
                i = data.draw(st.integers(0, len(values) - 1))
                odd = [np.nan, np.inf, -1.0, 1e-6, 0.1, None] if name in ("reward", "logp") else range(-2, 13)
                values[i] = data.draw(st.sampled_from(odd))
                row[name] = data.draw(st.sampled_from([values, values, values, values[:i], values[i:]]))
        rows.append(row)
    faults = [schema.fault(row, 10) for row in batch(rows).to_pylist()]
    assert schema.sound(schema.views(batch(rows)), 10) == (set(faults) == {None})


def test_a_well_formed_row_passes(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", [ROW, ROW])
    assert schema.validate(folder)["step"] == "token"
    train_reads(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokens": [0, 4, 7, 8, 5, 9, 2, 5, 10]}, "token id 10 is outside the vocabulary of 10"),
        ({"tokens": [0, 4, 7, 8, 5, 9, 2, 5, -1]}, "token id -1"),
        ({"tokens": []}, "no tokens"),
        ({"turn": []}, "no turn"),
        ({"turn": [1, 7, 4]}, "turns out of order"),
        ({"turn": [1, 4, 9]}, "a turn begins outside"),
        ({"turn": [6, 7]}, "without a state"),
        ({"start": [], "end": [], "reward": [], "logp": []}, "no transition"),
        ({"start": [0, 6, 8]}, "without a state"),
        ({"start": [0, 6, 8], "turn": [0, 4, 7]}, "without a state"),
        ({"start": [5, 5, 8]}, "overlap"),
        ({"end": [6, 6, 9]}, "an empty action"),
        ({"end": [6, 7, 10]}, "ends after the dialogue"),
        ({"end": [6, 7]}, "differ in length"),
        ({"reward": [1.0]}, "differ in length"),
        ({"reward": [0.0, 1.0, np.nan]}, "a reward is not finite"),
        ({"reward": [0.0, 1.0, None]}, "a reward is not finite"),
        ({"turn": None}, "no turn"),
        ({"reward": None}, "differ in length"),
        ({"logp": [0.0, 0.0, 0.1]}, "a log-probability"),
        ({"logp": [0.0, 0.0, -np.inf]}, "a log-probability"),
    ],
)
@pytest.mark.parametrize("check", [schema.validate, train_reads])
def test_a_malformed_row_is_refused_with_its_place(tmp_path: Path, check: Any, changes: Any, reason: str) -> None:
    open_to_nulls = pa.schema([field.with_nullable(True) for field in schema.SCHEMA])
    folder = write(tmp_path / "d", [ROW, ROW | changes], open_to_nulls)
    with pytest.raises(InputError, match=rf"row 1 \('w'\): .*{reason}"):
        check(folder)
    encoder = Encoder(train("byte", []))
    encoder.tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(InputError, match=rf"row 1 \('w'\): .*{reason}"):
        inspect([str(folder), "--row", "1"])


@pytest.mark.parametrize("name", ["tokens", "turn", "start", "end"])
@pytest.mark.parametrize("check", [schema.validate, train_reads])
def test_a_null_among_positions_is_refused(tmp_path: Path, check: Any, name: str) -> None:
    folder = write(tmp_path / "d", [ROW, ROW | {name: [*ROW[name][:-1], None]}])
    with pytest.raises(InputError, match=rf"data-00000\.arrow.*a null in column '{name}'"):
        check(folder)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (pa.schema([*schema.SCHEMA, pa.field("foo", pa.int32())]), "unknown column 'foo'"),
        (pa.schema([f for f in schema.SCHEMA if f.name != "logp"]), "column 'logp' is missing"),
        (pa.schema([f.with_type(pa.large_string()) if f.name == "id" else f for f in schema.SCHEMA]), "must be string"),
    ],
)
@pytest.mark.parametrize("check", [schema.validate, train_reads])
def test_other_columns_are_refused(tmp_path: Path, check: Any, columns: pa.Schema, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check(write(tmp_path / "d", [ROW], columns))


@pytest.mark.parametrize("content", [b"", b"junk"])
@pytest.mark.parametrize("check", [schema.validate, train_reads])
def test_a_file_that_is_no_arrow_stream_is_refused(tmp_path: Path, check: Any, content: bytes) -> None:
    with pytest.raises(InputError, match=r"data-00000\.arrow cannot be read"):
        check(write(tmp_path / "d", content))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 3}, "schema version 3"),
        ({"step": "turn"}, "step is 'turn'"),
        ({"tokenizer": "x"}, "field 'tokenizer'"),
        ({"tokenizer": {"sha256": "x"}}, "field 'tokenizer'"),
        ({"files": []}, "field 'files'"),
        ({"files": {"train/data-00000.arrow": None}}, "field 'files'"),
        ({"files": {"train/data-00000.arrow": {"sha256": "0" * 64, "rows": "1"}}}, "field 'files'"),
        ({"files": {"rejected.jsonl": {"sha256": None, "rows": 1}}}, "field 'files'"),
        ({"corpus": 5}, "field 'corpus' is 5"),
    ],
)
@pytest.mark.parametrize("check", [schema.validate, train_reads])
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, check: Any, changes: Any, reason: str) -> None:
    with pytest.raises(InputError, match=rf"manifest\.json: {reason}"):
        check(write(tmp_path / "d", [ROW], **changes))


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", [ROW])
    with (folder / "train" / "data-00000.arrow").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="differs from its digest"):
        schema.validate(folder)


def test_returns_of_rows_without_a_reward_are_0(tmp_path: Path) -> None:
    empty = ROW | {"start": [], "end": [], "reward": [], "logp": []}
    assert Rows(write(tmp_path / "d", [empty, ROW, empty, ROW, empty])).returns.tolist() == [0, 3, 0, 3, 0]
