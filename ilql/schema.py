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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ilql import proposals
from ilql.types import InputError
from ilql.verified import NAME, batches, check_files
from ilql.verified import sha256 as sha256

VERSION = 2
LARGEST = 2**26  # bytes of a manifest
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
INTEGERS = tuple(field.name for field in SCHEMA if field.type == pa.list_(pa.int32()))
OPTIONAL = {
    "pair": pa.string(),
    proposals.NAME: proposals.TYPE,
    "prefix": pa.list_(pa.float32()),
}


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
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{folder} is not a dataset: it has no manifest.json; make one with `python -m datasets_prep`")
    try:
        text = path.read_bytes() if path.stat().st_size <= LARGEST else b""
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); build the dataset again") from None
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: not a JSON object; build the dataset again")
    for name in ("schema_version", "step", "tokenizer", "files"):
        if name not in manifest:
            raise InputError(f"{path}: field {name!r} is missing; build the dataset again")
    manifest = migrate(manifest, path, text)
    if manifest["step"] not in STEPS:
        raise InputError(f"{path}: step is {manifest['step']!r}, not one of {', '.join(STEPS)}")
    tokenizer, files = manifest["tokenizer"], manifest["files"]
    if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("vocab_size"), int) or "sha256" not in tokenizer:
        raise InputError(f"{path}: field 'tokenizer' lacks vocab_size or sha256; build the dataset again")
    if not isinstance(manifest.get("corpus", ""), str):
        raise InputError(f"{path}: field 'corpus' is {manifest['corpus']!r}, no name; build the dataset again")
    prefix = manifest.get("prefix", 1)
    if type(prefix) is not int or prefix < 1:
        raise InputError(f"{path}: field 'prefix' is {prefix!r}, but must be at least 1; build the dataset again")
    if not isinstance(files, dict) or not all(map(_is_entry, files.items())):
        raise InputError(f"{path}: field 'files' is no table of sha256 and rows; build the dataset again")
    for name in files:
        if not NAME.fullmatch(name):
            raise InputError(f"{path}: {name!r} is no name of a file inside of the folder; build the dataset again")
    return manifest


def _is_entry(item: tuple[str, Any]) -> bool:
    """Whether a file has a digest, and a number of rows where it is one of rows."""
    name, entry = item
    if not isinstance(entry, dict) or not {"sha256", "rows"} <= {*entry} or not isinstance(entry["sha256"], str):
        return False
    return not name.endswith(".arrow") or (type(entry["rows"]) is int and entry["rows"] >= 0)


def sealed(manifest: Mapping[str, Any]) -> str:
    """A manifest as the only text that is taken for it, with its digest: a bit of white space that flips shows too."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**rest, "digest": digest}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def migrate(manifest: dict[str, Any], path: Path, text: bytes) -> dict[str, Any]:
    """Bring an older manifest to VERSION, and refuse one that has changed since it was written. Version 1 had no
    digest. text: what the file holds."""
    version = manifest["schema_version"]
    if version == 1 and "digest" not in manifest:
        return {**manifest, "schema_version": VERSION}
    if version != VERSION:
        raise InputError(
            f"{path}: schema version {version!r}, but this package reads version {VERSION}; "
            "build the dataset again or install the matching package"
        )
    try:
        same = text == sealed(manifest).encode()
    except (ValueError, RecursionError):  # half of a character
        same = False
    if not same:
        raise InputError(f"{path} does not match its own digest, so it was changed; build the dataset again")
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


def views(batch: pa.RecordBatch) -> dict[str, Any]:
    """Columns of a record batch: lists of numbers as (offsets from 0 on, values), both numpy views, proposals as
    `ilql.proposals.Column`, the rest as Arrow arrays. Nulls among numbers become NaN, among integers too."""
    out: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_list(column.type) and pa.types.is_primitive(column.type.value_type):
            values = column.values.to_numpy(zero_copy_only=not column.values.null_count)
            first = int(column.offsets[0].as_py()) if len(column) else 0
            out[name] = (column.offsets.to_numpy() - first, values[first:])
        elif name == proposals.NAME:
            out[name] = proposals.Column(column)
        else:
            out[name] = column
    return out


def fault(row: Mapping[str, Any], vocab_size: int) -> str | None:
    """What is wrong with one row (a mapping of column to Python or numpy sequence); None for a well-formed dialogue.

    What this lets pass, a batch can hold: a wrong position would not fail there but read another dialogue.
    """
    column = {name: np.asarray([] if row[name] is None else row[name]) for name in INTEGERS}
    for name, values in column.items():
        if not len(values):
            return "no transition" if name in ("start", "end") else f"no {name}"
        if values.dtype.kind not in "iu":
            return f"a null in column {name!r}"
    tokens, turn, start, end = column.values()
    reward, logp = (np.asarray([] if row[n] is None else row[n], np.float64) for n in ("reward", "logp"))  # null: NaN
    header = 0 if row["terminated"] else 1  # the agent's open turn may begin behind the last token: an empty header
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
    checks: tuple[tuple[Any, str], ...] = (
        (not len(wrong), f"token id {wrong[0] if len(wrong) else ''} is outside the vocabulary of {vocab_size}"),
        (len(start) == len(end) == len(reward) == len(logp), "start, end, reward and logp differ in length"),
        ((turn[1:] > turn[:-1]).all(), "turns out of order"),
        (turn[0] >= 0 and turn[-1] < len(tokens) + header, "a turn begins outside the dialogue"),
        (start[0] >= 1 and start[0] >= turn[0], "an action without a state before it"),
    )
    found = next((what for holds, what in checks if not holds), None)
    if found is not None:
        return found
    checks = (
        ((start < end).all(), "an empty action"),
        ((end[:-1] <= start[1:]).all(), "transitions overlap or are out of order"),
        (end[-1] <= len(tokens), "an action ends after the dialogue"),
        (np.isfinite(reward).all(), "a reward is not finite"),
        (not (np.isinf(logp) | (logp > 1e-6)).any(), "a log-probability is above 0 or infinite"),
    )
    found = next((what for holds, what in checks if not holds), None)
    if found is None and "prefix" in row:
        prefix = np.asarray(() if row["prefix"] is None else row["prefix"], np.float64)
        found = None if len(prefix) and np.isfinite(prefix).all() else "no prefix, or a number of it is not finite"
    return proposals.fault(row, vocab_size) if found is None and proposals.NAME in row else found


def sound(columns: Mapping[str, Any], vocab_size: int) -> bool:
    """Whether `fault` finds nothing in any row of a batch, given as `views`: the same rules, asked of all at once."""
    at = {name: columns[name][0] for name in ("tokens", "turn", "start", "end", "reward", "logp")}
    tokens, turn, start, end, reward, logp = (columns[name][1][: offsets[-1]] for name, offsets in at.items())
    cut_off = ~columns["terminated"].fill_null(False).to_numpy(zero_copy_only=False)
    if any((np.diff(at[name]) == 0).any() for name in ("turn", "start")):
        return False
    if not all(np.array_equal(at["start"], at[name]) for name in ("end", "reward", "logp")):
        return False
    first, last, length = at["start"][:-1], at["start"][1:] - 1, np.diff(at["tokens"])
    opening, closing = turn[at["turn"][:-1]], turn[at["turn"][1:] - 1]
    rises, follows = np.diff(turn) > 0, end[:-1] <= start[1:]
    rises[at["turn"][1:-1] - 1] = follows[last[:-1]] = True  # from one row to the next
    checks = (
        *((tokens >= 0) & (tokens < vocab_size), rises, (opening >= 0) & (closing < length + cut_off)),
        *((start[first] >= 1) & (start[first] >= opening), start < end, follows, end[last] <= length),
        *(np.isfinite(reward), ~(np.isinf(logp) | (logp > 1e-6))),
    )
    if not all(bool(holds.all()) for holds in checks):
        return False
    if "prefix" in columns:
        begins, prefix = columns["prefix"]
        if not np.diff(begins).all() or not np.isfinite(prefix[: begins[-1]]).all():
            return False
    states = np.diff(at["start"]) + (cut_off & (length > end[last]))
    return proposals.NAME not in columns or bool(columns[proposals.NAME].sound(states, vocab_size))


def check_prefix(columns: Mapping[str, Any], manifest: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless every row of a batch has a prefix of as many numbers as the manifest says, 0 for none."""
    size = manifest.get("prefix", 0)
    found = np.unique(np.diff(columns["prefix"][0])).tolist() if "prefix" in columns else [0]
    if found not in ([], [size]):
        raise InputError(f"{where}: prefixes of {found} numbers, but the manifest says {size}; build the dataset again")


def check_row(row: Mapping[str, Any], vocab_size: int, where: str) -> None:
    """Raise InputError unless one row is a well-formed dialogue; where: its file or folder, split and row."""
    found = fault(row, vocab_size)
    if found is not None:
        raise InputError(f"{where} ({row['id']!r}): {found}; build the dataset again")


def validate(folder: str | Path, vocab_size: int | None = None) -> dict[str, Any]:
    """Check every file and every row of a dataset folder; returns its manifest.

    vocab_size: of the tokenizer; None reads it from the manifest. Raises InputError naming file, row and field.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    size = vocab_size or manifest["tokenizer"]["vocab_size"]
    check_files(folder, manifest["files"], manifest["files"])
    for name, entry in manifest["files"].items():
        if not name.endswith(".arrow"):
            continue
        path, rows = folder / name, 0
        for batch in batches(path, check_columns):
            check_prefix(views(batch), manifest, str(path))
            if not sound(views(batch), size):
                for i, row in enumerate(batch.to_pylist(), rows):
                    check_row(row, size, f"{path}, row {i}")
            rows += batch.num_rows
        if rows != entry["rows"]:
            raise InputError(f"{path} has {rows} rows, but the manifest says {entry['rows']}; build the dataset again")
    return manifest
