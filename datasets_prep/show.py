"""`python -m datasets_prep inspect DIR --row 3`: a dialogue of a dataset, as the trainer sees it, in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets_prep.encode import Encoder
from datasets_prep.options import Parser
from ilql import schema
from ilql.command import printable
from ilql.types import InputError
from ilql.verified import batches, check_files


def inspect(argv: Sequence[str]) -> str:
    """The text to print. Raises InputError for what is no dataset or no row of it."""
    parser = Parser(
        prog="python -m datasets_prep inspect",
        description="Show one dialogue of a dataset: positions, turns, [[actions]], their states and rewards.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a dataset's folder")
    parser.add_argument("--split", choices=schema.SPLITS, default="train", help="(default: train)")
    parser.add_argument("--row", type=int, default=0, metavar="N", help="counted from 0 (default: 0)")
    found = parser.parse_all(argv)
    manifest = schema.read_manifest(found.folder)
    row, total = _row(found.folder, manifest, found.split, found.row)
    encoder = Encoder.from_folder(found.folder / "tokenizer")
    text = f"{found.split}, row {found.row} of {total}\n{show(row, encoder, manifest['step'])}"
    return printable(text)


def _row(folder: Path, manifest: dict[str, Any], split: str, number: int) -> tuple[dict[str, Any], int]:
    sizes = {name: entry["rows"] for name, entry in manifest["files"].items() if name.startswith(f"{split}/")}
    total = sum(sizes.values())
    if not 0 <= number < total:
        raise InputError(f"--row {number}: the split {split!r} of {folder} has {total} rows, counted from 0")
    left = number
    for name, size in sorted(sizes.items()):
        if left >= size:
            left -= size
            continue
        check_files(folder, manifest["files"], [name])
        for rows in batches(folder / name, schema.check_columns):
            if left < rows.num_rows:
                row = rows.slice(left, 1).to_pylist()[0]
                schema.check_row(row, manifest["tokenizer"]["vocab_size"], f"{folder / name}, row {left}")
                return row, total
            left -= rows.num_rows
    raise InputError(f"{folder}: fewer rows than its manifest says; build the dataset again")


def show(row: dict[str, Any], encoder: Encoder, step: str) -> str:
    """A row as text: [[...]] are actions, and below each stand its states and its rewards that are not 0."""
    tokens, turns = row["tokens"], row["turn"]
    ending = "terminated" if row["terminated"] else "cut off (not terminated)"
    if not row["terminated"]:
        bootstraps = row["end"][-1] < len(tokens)
        ending += f", bootstraps at {len(tokens) - 1}" if bootstraps else ", last transition without a target"
    lines = [
        f"id {row['id']}, {len(tokens)} tokens, {len(turns)} turns, {len(row['start'])} transitions ({step} steps), "
        f"return {sum(row['reward']):g}, {ending}",
        f"meta {row['meta']}",
        "",
        f"{0:6d}  {_plain(encoder, tokens[: turns[0]])}",
    ]
    for begin, end in zip(turns, [*turns[1:], len(tokens)], strict=True):
        inside = [i for i, s in enumerate(row["start"]) if begin <= s < end]
        text, at = "", begin
        for s, e in _runs([(row["start"][i], row["end"][i]) for i in inside]):
            text += f"{_plain(encoder, tokens[at:s])}[[{_plain(encoder, tokens[s:e])}]]"
            at = e
        lines.append(f"{begin:6d}  {text}{_plain(encoder, tokens[at:end])}")
        if inside:
            lines.append(f"        {_notes(row, inside)}")
    return "\n".join(lines)


def _runs(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Transitions that touch, as one span each."""
    runs: list[tuple[int, int]] = []
    for s, e in spans:
        if runs and runs[-1][1] == s:
            runs[-1] = runs[-1][0], e
        else:
            runs.append((s, e))
    return runs


def _notes(row: dict[str, Any], inside: list[int]) -> str:
    first, last = row["start"][inside[0]] - 1, row["start"][inside[-1]] - 1
    states = f"state {first}" if first == last else f"states {first} to {last}"
    rewards = [f"{row['reward'][i]:g} on completing {row['end'][i] - 1}" for i in inside if row["reward"][i]]
    logps = [row["logp"][i] for i in inside if row["logp"][i] is not None]
    notes = [states, "reward " + (", ".join(rewards) or "0")]
    if logps:
        notes.append(f"log-probability {sum(logps):.4g}")
    return "; ".join(notes)


def _plain(encoder: Encoder, ids: Sequence[int]) -> str:
    """Decoded with its special tokens, on one line."""
    text = encoder.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
