"""Files of a dataset are what their manifest says, inside of their folder, uncompressed, and whole in every buffer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ilql import schema, verified
from ilql.columns import Writer, read
from ilql.rows import Rows
from ilql.types import InputError
from tests.test_schema import ROW, train_reads, write

READERS = pytest.mark.parametrize("check", [schema.validate, train_reads])
FILE = "train/data-00000.arrow"


def reseal(folder: Path, **changes: Any) -> None:
    """As somebody would who knows how."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    for name, entry in manifest["files"].items():
        if (folder / name).is_file():
            entry["sha256"] = schema.sha256(folder / name)
    (folder / "manifest.json").write_text(schema.sealed(manifest))


@READERS
def test_a_file_that_was_changed_after_it_was_read_is_refused(tmp_path: Path, check: Any) -> None:
    folder = write(tmp_path / "d", [ROW])
    check(folder)
    data = bytearray((folder / FILE).read_bytes())
    data[-30] ^= 1
    (folder / FILE).write_bytes(data)
    with pytest.raises(InputError, match="differs from its digest"):
        check(folder)


@READERS
def test_every_bit_of_a_manifest_is_under_its_digest(tmp_path: Path, check: Any) -> None:
    folder = write(tmp_path / "d", [ROW], corpus="a \u263a")
    path = folder / "manifest.json"
    text = path.read_bytes()
    changed = [
        text + b" ",
        text.replace(b'"corpus"', b'"corpse"'),
        text.replace(b'  "step"', b'\t "step"'),
        text.replace(b"\xe2\x98\xba", b"\\u263a"),
        text.replace(b'"digest"', b'"digesT"'),
        text.replace(b'"schema_version": 2', b'"schema_version": 1'),
    ]
    for data in changed:
        assert data != text
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"manifest\.json"):
            check(folder)
    path.write_bytes(text)
    check(folder)


@READERS
def test_a_manifest_of_the_first_version_is_read(tmp_path: Path, check: Any) -> None:
    folder = write(tmp_path / "d", [ROW])
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 1}))
    check(folder)
    assert schema.read_manifest(folder)["schema_version"] == schema.VERSION


@READERS
@pytest.mark.parametrize("name", ["../x/data.arrow", "train/../../x.arrow", "/etc/x.arrow", "train/.x", "train//x", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, check: Any, name: str) -> None:
    folder = write(tmp_path / "d", [ROW])
    files = json.loads((folder / "manifest.json").read_text())["files"]
    reseal(folder, files=files | {name: files[FILE]})
    with pytest.raises(InputError, match="is no name of a file inside"):
        check(folder)


@READERS
@pytest.mark.parametrize("linked", [FILE, "train"])
def test_a_link_is_refused(tmp_path: Path, check: Any, linked: str) -> None:
    folder = write(tmp_path / "d", [ROW])
    (folder / linked).rename(tmp_path / "elsewhere")
    (folder / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        check(folder)


@READERS
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_file_is_refused_before_it_is_unpacked(
    tmp_path: Path, check: Any, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "d", [ROW])
    bomb = ROW | {"meta": "x" * 10**8}
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(str(folder / FILE), schema.SCHEMA, options=options) as stream:
        stream.write_table(pa.Table.from_pylist([bomb], schema=schema.SCHEMA))
    reseal(folder)

    def unpack(*_: Any) -> None:
        raise AssertionError("it is opened")

    monkeypatch.setattr(pa.ipc, "open_stream", unpack)
    with pytest.raises(InputError, match="is compressed"):
        check(folder)


@READERS
def test_offsets_that_point_anywhere_are_refused(tmp_path: Path, check: Any) -> None:
    """Written with the right digests; larger ones would make numpy read behind the file."""
    folder = write(tmp_path / "d", [ROW, ROW, ROW])
    data = (folder / FILE).read_bytes()
    offsets = np.array([0, 9, 18, 27], np.int32).tobytes()  # of `tokens`, three rows of nine
    assert data.count(offsets) == 1
    (folder / FILE).write_bytes(data.replace(offsets, np.array([0, 20, 18, 27], np.int32).tobytes()))
    reseal(folder)
    with pytest.raises(InputError, match=r"data-00000\.arrow cannot be read"):
        check(folder)


def test_a_file_is_gone_over_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "d", [ROW])
    Rows(folder)
    monkeypatch.setattr(verified, "sha256", lambda path: pytest.fail("read again"))
    monkeypatch.setattr(verified, "_refuse_compressed", lambda *_: pytest.fail("looked at again"))
    assert len(Rows(folder)) == 1


def test_columns_of_a_cache_are_uncompressed_too(tmp_path: Path) -> None:
    kinds = {"a": ("float32", 1)}
    with Writer(tmp_path / "c.arrow", kinds) as to:
        to.add(a=np.zeros(10, np.float32))
    with pa.ipc.open_stream(str(tmp_path / "c.arrow")) as stream:
        table = stream.read_all()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(str(tmp_path / "d.arrow"), table.schema, options=options) as again:
        again.write_table(table)
    assert len(read(tmp_path / "c.arrow", kinds)["a"]) == 10
    with pytest.raises(InputError, match="is compressed"):
        read(tmp_path / "d.arrow", kinds)
