"""The column `proposals`: read as it was written, and refused where a batch could not hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilql import proposals, schema
from ilql.rows import Mix, Rows
from ilql.types import InputError

COLUMNS = schema.SCHEMA.append(pa.field(proposals.NAME, proposals.TYPE))
# BOS, two tokens and a mark, an action of two, two tokens and a mark, an action of two; the dialogue ended
ENDED: dict[str, Any] = {
    "id": "w",
    "tokens": [0, 7, 8, 5, 9, 2, 7, 6, 5, 3, 2],
    "turn": [1, 3, 6, 8],
    "start": [4, 9],
    "end": [6, 11],
    "reward": [0.0, 1.0],
    "logp": [None, None],
    "terminated": True,
    "meta": "{}",
    "proposals": [[[9, 2], [4, 4, 2]], [[2]]],
}
CUT = ENDED | {"terminated": False}  # nothing was logged behind the last action
OPEN = CUT | {"tokens": [*ENDED["tokens"], 7, 5], "turn": [1, 3, 6, 8, 11, 12]}
OPEN = OPEN | {"proposals": [[], [[1, 2], [3, 2]], [[1, 2]]]}


def write(folder: Path, rows: list[dict[str, Any]], columns: pa.Schema = COLUMNS, chunk: int = 2) -> Path:
    path = folder / "train" / "data-00000.arrow"
    path.parent.mkdir(parents=True)
    with pa.ipc.new_stream(str(path), columns) as stream:
        stream.write_table(pa.Table.from_pylist(rows, schema=columns), max_chunksize=chunk)
    files = {"train/data-00000.arrow": {"rows": len(rows), "sha256": schema.sha256(path)}}
    manifest = {"schema_version": schema.VERSION, "step": "utterance", "files": files}
    manifest["tokenizer"] = {"vocab_size": 10, "sha256": "x"}
    (folder / "manifest.json").write_text(schema.sealed(manifest))
    return folder


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.Table.from_pylist(rows, schema=COLUMNS).combine_chunks().to_batches()[0]


def test_proposals_are_read_back_as_written(tmp_path):
    made = [ENDED, OPEN, CUT, ENDED | {"proposals": [[], []]}, OPEN]
    folder = write(tmp_path / "d", made)
    assert schema.validate(folder)["step"] == "utterance"
    rows = Rows(folder)
    rows.check(10)
    assert rows.has_proposals
    for got, want in zip(rows, made, strict=True):
        assert [[c.tolist() for c in state] for state in got["proposals"]] == want["proposals"]
    both = Mix([rows, rows])
    assert len(both[6]["proposals"]) == 3
    assert not both[0]["proposals"][0][0].flags.owndata, "views into the file"
    with pytest.raises(IndexError):
        rows[0]["proposals"][2]


def test_a_dataset_without_them_has_none(tmp_path):
    rows = Rows(write(tmp_path / "d", [ENDED], schema.SCHEMA))
    assert not rows.has_proposals
    assert proposals.NAME not in rows[0]


def test_rows_that_stand_in_the_middle_of_a_batch():
    part = batch([ENDED, OPEN, CUT, OPEN]).slice(1, 2)
    assert schema.sound(schema.views(part), 10)
    column = schema.views(part)[proposals.NAME]
    assert [[c.tolist() for c in state] for state in column[0]] == OPEN["proposals"]
    assert [[c.tolist() for c in state] for state in column[1]] == CUT["proposals"]


@pytest.mark.parametrize(
    ("row", "given", "reason"),
    [
        (ENDED, [[[2]]], "has 1 entries for 2 states"),
        (ENDED, [[[2]], [[2]], [[2]]], "has 3 entries for 2 states"),
        (CUT, [[[2]], [[2]], [[2]]], "has 3 entries for 2 states"),
        (OPEN, [[[2]], [[2]]], "has 2 entries for 3 states"),
        (ENDED, [[[2]], [[3], []]], "has an empty candidate at state 1"),
        (ENDED, [[[2]], [[3, 10]]], "has token id 10, outside the vocabulary of 10"),
        (ENDED, [[[-1]], [[3, 1]]], "has token id -1"),
        (ENDED, [[[2]], [[3, None]]], "a null in column 'proposals'"),
        (ENDED, [[[2]], [None]], "a null in column 'proposals'"),
        (ENDED, [[[2]], None], "a null in column 'proposals'"),
        (ENDED, None, "a null in column 'proposals'"),
    ],
)
@pytest.mark.parametrize("check", [schema.validate, lambda folder: Rows(folder).check(10)], ids=["check", "train"])
def test_what_no_batch_could_hold_is_refused(tmp_path, check, row, given, reason):
    with pytest.raises(InputError, match=reason):
        check(write(tmp_path / "d", [ENDED, OPEN, row | {"proposals": given}, ENDED], chunk=9))


@settings(max_examples=300)
@given(st.data())
def test_a_batch_is_sound_exactly_where_no_row_has_a_fault(data):
    rows = []
    for _ in range(data.draw(st.integers(1, 4))):
        row = dict(data.draw(st.sampled_from([ENDED, OPEN, CUT])))
        if data.draw(st.booleans()):
            candidate = st.lists(st.one_of(st.integers(-1, 10), st.none()), max_size=2)
            state = st.lists(st.one_of(candidate, st.none()), max_size=2)
            row["proposals"] = data.draw(st.one_of(st.lists(st.one_of(state, st.none()), max_size=3), st.none()))
        rows.append(row)
    faults = [schema.fault(row, 10) for row in batch(rows).to_pylist()]
    assert schema.sound(schema.views(batch(rows)), 10) == (set(faults) == {None})


def test_states_are_those_of_the_transitions_and_the_one_behind():
    assert proposals.states(2, 11, 11, True) == 2
    assert proposals.states(2, 11, 11, False) == 2
    assert proposals.states(2, 11, 13, False) == 3
