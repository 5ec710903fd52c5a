"""Generated dialogues as a dataset folder, for what reads its data from disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets_prep import tokenizer
from datasets_prep.encode import Encoder
from ilql.schema import SCHEMA, VERSION, folder_sha256, sealed, sha256

BATCH = 500  # rows of a record batch


def byte_encoder() -> Encoder:
    return Encoder(tokenizer.train("byte", []))


def write(folder: Path, rows: Sequence[dict[str, Any]], vocabulary: int) -> int:
    """A new dataset folder of these rows, with the tokenizer of bytes whatever the vocabulary is: nobody reads text.

    Returns its Arrow file's bytes.
    """
    folder.mkdir(parents=True)
    byte_encoder().tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "train").mkdir()
    path = folder / "train" / "data-00000.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        for begin in range(0, len(rows), BATCH):
            part = [{**row, "logp": [None] * len(row["start"])} for row in rows[begin : begin + BATCH]]
            writer.write_batch(pa.record_batch({name: [row[name] for row in part] for name in SCHEMA.names}, SCHEMA))
    manifest = {
        "schema_version": VERSION,
        "step": "token",
        "tokenizer": {"name": "byte", "sha256": folder_sha256(folder / "tokenizer"), "vocab_size": vocabulary},
        "corpus": "generated",
        "arguments": {},
        "files": {"train/data-00000.arrow": {"sha256": sha256(path), "rows": len(rows)}},
    }
    (folder / "manifest.json").write_text(sealed(manifest))
    return path.stat().st_size
