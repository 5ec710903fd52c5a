"""A small dataset and config for tests of training: dialogues of a few turns in bytes, a model of two narrow layers."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets_prep import tokenizer as tk
from datasets_prep.encode import Encoder
from ilql.config import TrainConfig, make_config
from ilql.schema import SCHEMA, VERSION, folder_sha256, sealed, sha256
from ilql.types import Episode, Turn


def episodes(count: int, seed: int = 0) -> list[Episode]:
    """Dialogues of unequal length with rewards, some cut off with and some without an observation after them."""
    rng = random.Random(seed)
    out = []
    for i in range(count):
        turns = []
        for _ in range(rng.randint(1, 3)):
            turns.append(Turn("user", rng.choice(["hi", "go on", "ok"])))
            turns.append(Turn("assistant", rng.choice(["a", "bb", "ccc"]), reward=rng.choice([-1.0, 0.0, 0.5])))
        if i % 5 == 1:
            turns.append(Turn("user", "well"))
        out.append(Episode(f"d{i}", turns, terminated=i % 5 not in (1, 2)))
    return out


def dataset(
    folder: Path, count: int = 24, *, step: str = "token", seed: int = 0, held: int = 6, logp: float | None = -3.0
) -> Path:
    """Write a dataset folder with `count` dialogues to train on and `held` for validation (0 for no such split). logp:
    of every action."""
    encoder = Encoder(tk.train("byte", []))
    folder.mkdir(parents=True)
    encoder.tokenizer.save_pretrained(folder / "tokenizer")
    files = {}
    for split, size, offset in (("train", count, 0), ("validation", held, 100)):
        if size:
            rows = [encoder.encode(episode, step) for episode in episodes(size, seed + offset)]
            rows = [row | {"logp": [logp] * len(row["start"])} for row in rows]
            files[f"{split}/data-00000.arrow"] = write_rows(folder / split / "data-00000.arrow", rows)
    manifest = {
        "schema_version": VERSION,
        "step": step,
        "tokenizer": {
            "name": "byte",
            "sha256": folder_sha256(folder / "tokenizer"),
            "vocab_size": encoder.vocab_size,
        },
        "corpus": "tiny",
        "arguments": {"seed": seed},
        "files": files,
    }
    (folder / "manifest.json").write_text(sealed(manifest))
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One Arrow stream; returns its entry of the manifest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    return {"sha256": sha256(path), "rows": len(rows)}


def replace_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Give the train split of a dataset other rows, and the manifest their digest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["train/data-00000.arrow"] = write_rows(folder / "train" / "data-00000.arrow", rows)
    (folder / "manifest.json").write_text(sealed(manifest))


def config(data: Path, output: Path, algo: str = "ilql", **options: Any) -> TrainConfig:
    """A few float64 steps of a tiny model, constant rate, no clipping; `options` as in `make_config`."""
    sections: dict[str, Any] = {
        "steps": 4,
        "device": "cpu",
        "model": {"layers": 2, "width": 32, "heads": 2, "context": 64, "dtype": "float64"},
        "optim": {"lr": 1e-3, "schedule": "constant", "clip": None},
        "batch": {"dialogues": 4},
        "log": {"every": 1},
    }
    for name, value in options.items():
        sections[name] = sections[name] | value if isinstance(sections.get(name), dict) else value
    return make_config(algo=algo, data=data, output=output, **sections)
