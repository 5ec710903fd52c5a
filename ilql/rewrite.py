"""A dataset written anew with one column replaced or added. Decision: a dataset stays as it was built, so that what was
trained on it can be told by its digest; what a model says of it makes another folder, whose manifest says which model.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ilql import atomic
from ilql.schema import SPLITS, read_manifest, sealed, sha256
from ilql.verified import check_files


def rewrite(
    dataset: Path, folder: Path, column: pa.Field, each: Mapping[str, Sequence[Any]], about: Mapping[str, Any]
) -> None:
    """Copy `dataset` to `folder`, which must be new, with a column of one value a dialogue.

    each: the values of each split, in its order. about: what the manifest says of it, by the manifest's keys.
    """
    manifest = read_manifest(dataset)
    check_files(dataset, manifest["files"], manifest["files"])
    size = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file())
    with atomic.folder(folder, 2 * size + (1 << 20)) as temporary:
        shutil.copytree(dataset / "tokenizer", temporary / "tokenizer")
        files = dict(manifest["files"])
        done = dict.fromkeys(SPLITS, 0)
        for name in sorted(files):
            to = temporary / name
            to.parent.mkdir(parents=True, exist_ok=True)
            if not name.endswith(".arrow"):
                shutil.copyfile(dataset / name, to)
                continue
            split = name.split("/")[0]
            count = _copy(dataset / name, to, column, each[split][done[split] :])
            done[split] += count
            files[name] = {"sha256": sha256(to), "rows": count}
        text = sealed({**manifest, "files": files, **about})
        (temporary / "manifest.json").write_text(text, encoding="utf-8")


def _copy(source: Path, to: Path, column: pa.Field, each: Sequence[Any]) -> int:
    """Write a file's record batches anew; returns how many dialogues they have."""
    count = 0
    with pa.memory_map(str(source)) as mapped, pa.ipc.open_stream(mapped) as reader, pa.OSFile(str(to), "wb") as sink:
        names = [*reader.schema.names, *([] if column.name in reader.schema.names else [column.name])]
        fields = [column if name == column.name else reader.schema.field(name) for name in names]
        schema = pa.schema(fields)
        with pa.ipc.new_stream(sink, schema) as stream:
            for batch in reader:
                made = pa.array(each[count : count + batch.num_rows], column.type)
                stream.write_batch(
                    pa.record_batch([made if n == column.name else batch.column(n) for n in names], schema=schema)
                )
                count += batch.num_rows
    return count
