"""Numbers for the column `prefix`: the files that they are read from, and what becomes of faulty ones in a dataset."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from datasets_prep.build import Options, build
from datasets_prep.features import Features
from datasets_prep.rejects import Reject
from datasets_prep.visdial import episodes
from ilql import schema
from ilql.rows import Rows
from ilql.types import InputError
from tests.prep.test_visdial import BUS, CAT

TABLE = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]], np.float32)
IDS = np.array([8, 7])


def structured() -> np.ndarray:
    found = np.empty(2, [("image_id", "<i8"), ("features", "<f4", (3,))])
    found["image_id"], found["features"] = IDS, TABLE
    return found


def written(folder: Path, form: str) -> Path:
    path = folder / ("x.npy" if form == "npy" else "x.safetensors")
    if form == "npy":
        np.save(path, structured())
    elif form == "table":
        save_file({"image_id": IDS, "features": TABLE}, path)
    else:
        save_file({str(name): row for name, row in zip(IDS.tolist(), TABLE, strict=True)}, path)
    return path


@pytest.mark.parametrize("form", ["npy", "table", "names"])
def test_every_form_gives_the_answerer_its_pictures(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, form)
    (tmp_path / "v.json").write_text(json.dumps([BUS, CAT, {**CAT, "image_id": 9}]))
    found = list(episodes([tmp_path / "v.json"], seed=0, agent_role="answerer", features=path))
    assert [None if isinstance(one, Reject) else one.prefix for one in found] == [
        TABLE[1].tolist(),
        TABLE[0].tolist(),
        None,
    ]
    fault = found[2]
    assert isinstance(fault, Reject)
    assert (fault.id, fault.field, fault.reason) == ("9:answerer", "[2].image_id", "--features has no row for 9")
    options: dict[str, Any] = {"agent_role": "answerer", "features": path}
    build(Options("visdial", tmp_path / "data", [tmp_path / "v.json"], "utterance", "byte", corpus_options=options,
                  max_reject_rate=0.5))  # fmt: skip
    manifest = schema.validate(tmp_path / "data")
    assert manifest["prefix"] == 3
    assert [source["name"] for source in manifest["sources"]] == ["v.json", path.name]
    rows = Rows(tmp_path / "data")
    assert [rows[i]["prefix"].tolist() for i in range(2)] == TABLE[::-1].tolist()


@pytest.mark.parametrize("role", ["both", "questioner"])
def test_a_questioner_sees_no_picture(tmp_path: Path, role: Any) -> None:
    with pytest.raises(InputError, match="give --agent-role answerer"):
        episodes([tmp_path / "v.json"], seed=0, agent_role=role, features=written(tmp_path, "npy"))


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    npy, tensors = tmp_path / "x.npy", tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        Features(npy, "f")
    np.save(npy, np.array([{"image_id": 7}], object), allow_pickle=True)
    with pytest.raises(InputError, match="Python objects"):
        Features(npy, "f")
    npy.write_bytes(pickle.dumps(TABLE))
    with pytest.raises(InputError, match="cannot be read"):
        Features(npy, "f")
    np.save(npy, TABLE)
    with pytest.raises(InputError, match="no array of fields 'image_id' and 'features'"):
        Features(npy, "f")
    for ids, table in ((IDS[:1], TABLE), (IDS.astype(np.float32), TABLE), (IDS, TABLE[0])):
        save_file({"image_id": ids, "features": table}, tensors)
        with pytest.raises(InputError, match="must be N integers and 'features' N rows"):
            Features(tensors, "f")
    save_file({"image_id": IDS * 0, "features": TABLE}, tensors)
    with pytest.raises(InputError, match="given twice"):
        Features(tensors, "f")
    tensors.write_bytes(tensors.read_bytes()[:-3])
    with pytest.raises(InputError, match="cannot be read"):
        Features(tensors, "f")
    save_file({"7": TABLE}, tensors)
    with pytest.raises(Reject, match="no row of numbers for 7"):
        Features(tensors, "f")["7"]


def log(prefix: Any, name: str) -> str:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    return json.dumps({"id": name, "messages": messages} | ({} if prefix is None else {"prefix": prefix}))


def test_a_prefix_of_a_log_and_its_faults(tmp_path: Path) -> None:
    given = [[1, 2.5], [1], None, [], [1e39, 0], [0, -1], ["1", 2]]
    (tmp_path / "x.jsonl").write_text("\n".join(log(p, f"d{i}") for i, p in enumerate(given)))
    for workers in (1, 2):
        output = tmp_path / f"data-{workers}"
        build(Options("chat", output, [tmp_path / "x.jsonl"], tokenizer="byte", max_reject_rate=0.9, workers=workers))
        assert schema.validate(output)["prefix"] == 2
        rows = Rows(output)
        assert [rows[i]["prefix"].tolist() for i in range(len(rows))] == [[1, 2.5], [0, -1]]
        rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
        fewer = "numbers, but the dialogues before have 2: all of a dataset have as many"
        assert [(r["id"], r["line"], r["field"], r["reason"]) for r in rejected if r["id"]] == [
            ("d1", 2, "prefix", f"1 {fewer}"),
            ("d2", 3, "prefix", f"0 {fewer}"),
            ("d3", 4, "prefix", "no list of numbers"),
            ("d4", 5, "prefix", "a number is NaN, infinite or too large for 32 bits"),
        ]
        assert len(rejected) == 5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0, 2.0], [0.0]], r"prefixes of \[1, 2\] numbers, but the manifest says 2"),
        ([[1.0], [0.0]], r"prefixes of \[1\] numbers, but the manifest says 2"),
        ([[1.0, float("nan")], [0.0, 1.0]], "no prefix, or a number of it is not finite"),
        ([[1.0, None], [0.0, 1.0]], "no prefix, or a number of it is not finite"),
        ([None, [0.0, 1.0]], r"prefixes of \[0, 2\] numbers"),
        (None, r"prefixes of \[0\] numbers, but the manifest says 2"),
    ],
)
def test_a_dataset_whose_prefixes_were_tampered_with(tmp_path: Path, value: Any, message: str) -> None:
    (tmp_path / "x.jsonl").write_text("\n".join(log(p, str(p)) for p in ([1, 2], [0, -1])))
    data = tmp_path / "data"
    build(Options("chat", data, [tmp_path / "x.jsonl"], tokenizer="byte"))
    (name,) = (data / "train").iterdir()
    with pa.memory_map(str(name)) as source:
        table = pa.ipc.open_stream(source).read_all().drop_columns("prefix")
    if value is not None:
        table = table.append_column("prefix", pa.array(value, schema.OPTIONAL["prefix"]))
    name.unlink()
    with pa.OSFile(str(name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["files"]["train/data-00000.arrow"]["sha256"] = schema.sha256(name)
    (data / "manifest.json").write_text(schema.sealed(manifest))
    with pytest.raises(InputError, match=message):
        schema.validate(data)
    with pytest.raises(InputError, match=message):
        Rows(data).check(300)
    (data / "manifest.json").write_text(schema.sealed(manifest | {"prefix": 0}))
    with pytest.raises(InputError, match="field 'prefix' is 0, but must be at least 1"):
        Rows(data)
