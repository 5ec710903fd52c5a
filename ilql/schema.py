"""The Arrow contract: what a dataset folder holds, its version, and the check that a folder keeps to it.

Decision: one row is one dialogue and transitions are *index columns* into its tokens, facts only. Discounts, returns,
scales and history windows are derived at training, so that one file serves every algorithm. `manifest.json` is the
authority, because `datasets` drops the metadata of an Arrow schema.

Layout: `manifest.json`, `tokenizer/`, `rejected.jsonl`, `train/data-*.arrow`, `validation/data-*.arrow`; the Arrow
files are uncompressed IPC streams, so that `datasets.Dataset.from_file` and `pyarrow.ipc.open_stream` both read them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from ilql.types import InputError

VERSION = 1
STEPS = ("token", "utterance")
SPLITS = ("train", "validation")

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("turn", pa.list_(pa.int32()), nullable=False),
        pa.field("start", pa.list_(pa.int32()), nullable=False),
        pa.field("end", pa.list_(pa.int32()), nullable=False),
        pa.field("reward", pa.list_(pa.float32()), nullable=False),
        pa.field("logp", pa.list_(pa.float32()), nullable=False),
        pa.field("terminated", pa.bool_(), nullable=False),
        pa.field("meta", pa.string(), nullable=False),
    ]
)
OPTIONAL = {
    "pair": pa.string(),
    "proposals": pa.list_(pa.list_(pa.list_(pa.int32()))),
    "prefix": pa.list_(pa.float32()),
}


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Digest of the names and bytes of a folder's files, in sorted order: the identity of a tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a dataset folder, checked for version and shape.

    Raises InputError where the folder is not a dataset, or was made by a newer version.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a dataset: it has no manifest.json; make one with `python -m datasets_prep`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); build the dataset again") from None
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: not a JSON object; build the dataset again")
    for name in ("schema_version", "step", "tokenizer", "files"):
        if name not in manifest:
            raise InputError(f"{path}: field {name!r} is missing; build the dataset again")
    if manifest["step"] not in STEPS:
        raise InputError(f"{path}: step is {manifest['step']!r}, not one of {', '.join(STEPS)}")
    return migrate(manifest, path)


def migrate(manifest: dict[str, Any], path: Path) -> dict[str, Any]:
    """Bring an older manifest to VERSION. Version 1 is the first, so today there is only the refusal of others."""
    if manifest["schema_version"] != VERSION:
        raise InputError(
            f"{path}: schema version {manifest['schema_version']!r}, but this package reads version {VERSION}; "
            "build the dataset again or install the matching package"
        )
    return manifest


def check_columns(schema: pa.Schema, where: str) -> None:
    """Refuse an Arrow schema with a column missing, of another type, or unknown."""
    for field in SCHEMA:
        if field.name not in schema.names:
            raise InputError(f"{where}: column {field.name!r} is missing; build the dataset again")
    known = {field.name: field.type for field in SCHEMA} | OPTIONAL
    for field in schema:
        if field.name not in known:
            raise InputError(f"{where}: unknown column {field.name!r}; the columns are {', '.join(known)}")
        if field.type != known[field.name]:
            raise InputError(f"{where}: column {field.name!r} is {field.type}, but must be {known[field.name]}")


def check_row(row: Mapping[str, Any], vocab_size: int, where: str) -> None:
    """Raise InputError unless one row (a mapping of column to Python or numpy sequence) is a well-formed dialogue."""

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise InputError(f"{where}, dialogue {row['id']!r}: {what}; build the dataset again")

    tokens, turn, start, end = row["tokens"], row["turn"], row["start"], row["end"]
    n = len(start)
    need(n > 0, "no transition")
    need(all(len(row[name]) == n for name in ("end", "reward", "logp")), "start, end, reward and logp differ in length")
    need(min(tokens) >= 0 and max(tokens) < vocab_size, f"a token id outside the vocabulary of {vocab_size}")
    need(all(a < b for a, b in pairwise(turn)), "turns out of order")
    need(len(turn) > 0 and turn[0] >= 0 and turn[-1] < len(tokens), "a turn begins outside the dialogue")
    bounds = [0]
    for s, e in zip(start, end, strict=True):
        bounds += [s, e]
    need(bounds[1] >= 1, "an action without a state before it")
    need(all(a <= b for a, b in pairwise(bounds)), "transitions overlap or are out of order")
    need(all(s < e for s, e in zip(start, end, strict=True)), "an empty action")
    need(bounds[-1] <= len(tokens), "an action ends after the dialogue")
    need(all(math.isfinite(r) for r in row["reward"]), "a reward that is not finite")
    need(all(p is None or p != p or p <= 1e-6 for p in row["logp"]), "a log-probability above 0")


def validate(folder: str | Path, vocab_size: int | None = None) -> dict[str, Any]:
    """Check every file and every row of a dataset folder; returns its manifest.

    vocab_size: of the tokenizer; None reads it from the manifest. Raises InputError naming file, row and field.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    size = vocab_size or int(manifest["tokenizer"]["vocab_size"])
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is named in the manifest but missing; build the dataset again")
        if sha256(path) != entry["sha256"]:
            raise InputError(f"{path} differs from its digest in the manifest; build the dataset again")
        if not name.endswith(".arrow"):
            continue
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            check_columns(reader.schema, str(path))
            rows = 0
            for batch in reader:
                batch.validate(full=True)
                for row in batch.to_pylist():
                    check_row(row, size, f"{path}, row {rows}")
                    rows += 1
        if rows != entry["rows"]:
            raise InputError(f"{path} has {rows} rows, but the manifest says {entry['rows']}; build the dataset again")
    return manifest
