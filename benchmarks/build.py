"""Building datasets: ours against what people write, on the same logs and tokenizer.

Per-row Python parses a line, tokenises its messages one by one, makes lists, and writes them with pyarrow every
thousand rows. `datasets.map` is the same function over a `Dataset`, saved to disk. Both are one process, as ours is by
default; their rows must be ours, token for token, before anything is timed. Ours writes statistics, digests and rejects
besides; all use a tokenizer that was trained before.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from benchmarks.pairs import Disagreement, say, speedup, spread, times
from benchmarks.report import Section
from datasets_prep import deal_or_no_deal
from datasets_prep import tokenizer as tk
from datasets_prep.build import Options, build
from datasets_prep.rejects import Reject
from ilql.rows import Rows
from ilql.schema import SCHEMA

OURS, TWO, ROWS, MAP = "ours", "ours, 2 workers", "per-row Python", "datasets.map"
COMPARED = ("tokens", "turn", "start", "end", "reward")


def synthetic(path: Path, count: int) -> None:
    """Dialogues as a simulator writes them: turns drawn from 2,000 sentences, a reward at the end."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(1000)]
    sentences = [
        " ".join(words[w] for w in rng.integers(0, len(words), rng.integers(4, 16))) + "." for _ in range(2000)
    ]
    with path.open("w", encoding="utf-8") as out:
        for i in range(count):
            said = [sentences[s] for s in rng.integers(0, len(sentences), 2 * rng.integers(2, 8))]
            messages = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(said)]
            out.write(json.dumps({"id": f"d{i}", "messages": messages, "reward": round(float(rng.normal()), 3)}) + "\n")


def negotiations(path: Path, source: Path) -> None:
    """Both seats of Deal or No Deal as a chat log: the text of people, who repeat themselves less."""
    with path.open("w", encoding="utf-8") as out:
        for episode in deal_or_no_deal.episodes([source], seed=0):
            if isinstance(episode, Reject):
                continue
            messages = [{"role": turn.role, "content": turn.text} for turn in episode.turns]
            reward = sum(turn.reward or 0.0 for turn in episode.turns)
            out.write(json.dumps({"id": episode.id, "messages": messages, "reward": reward}) + "\n")


def plain(record: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """A row at token steps, as one would write it."""
    tokens: list[int] = [tokenizer.bos_token_id]
    turn: list[int] = []
    start: list[int] = []
    for message in record["messages"]:
        turn.append(len(tokens))
        tokens.append(tokenizer.convert_tokens_to_ids(tk.MARKS[message["role"]]))
        body = tokenizer(message["content"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if message["role"] == "assistant":
            start.extend(range(len(tokens), len(tokens) + len(body)))
        tokens.extend(body)
    reward = [0.0] * len(start)
    reward[-1] = record["reward"]
    row = {"id": record["id"], "tokens": tokens[: start[-1] + 1], "turn": turn, "start": start}
    row |= {"end": [s + 1 for s in start], "reward": reward, "logp": [None] * len(start)}
    return row | {"terminated": True, "meta": "{}"}


def row_by_row(log: Path, tokenizer: Any, output: Path) -> None:
    with pa.ipc.new_stream(str(output), SCHEMA) as stream, log.open(encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = []
        for line in lines:
            rows.append(plain(json.loads(line), tokenizer))
            if len(rows) == 1000:
                stream.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                rows = []
        if rows:
            stream.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))


def mapped(log: Path, tokenizer: Any, output: Path) -> None:
    with log.open(encoding="utf-8") as lines:
        data = datasets.Dataset.from_list([json.loads(line) for line in lines])
    # Without a fingerprint of its own it would first hash the tokenizer, and find the last run's answer.
    done = data.map(
        lambda record: plain(record, tokenizer),
        remove_columns=["messages"],
        load_from_cache_file=False,
        new_fingerprint=f"{time.time_ns():x}",
    )
    done.save_to_disk(output)


def check(name: str, built: Path, reference: Path) -> int:
    """Raise Disagreement unless both hold the same rows; returns their tokens."""
    ours = Rows(built, "train")
    with pa.ipc.open_stream(str(reference)) as stream:
        theirs = stream.read_all().to_pylist()
    if len(ours) != len(theirs):
        raise Disagreement(f"build, {name}: {len(ours)} rows here and {len(theirs)} by per-row Python")
    for mine, other in zip(ours, theirs, strict=True):
        for column in COMPARED:
            if not np.array_equal(mine[column], np.asarray(other[column], mine[column].dtype)):
                raise Disagreement(f"build, {name}: {column} of {other['id']} differs from per-row Python's")
    return int(ours.lengths.sum())


def compare(name: str, log: Path, folder: Path, pairs: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of every way to build the log, and the tokens that it has."""
    datasets.disable_progress_bars()
    first = folder / "first"
    build(Options("chat", first, [log], tokenizer="bpe:8192"))
    tokenizer = tk.load(str(first / "tokenizer"))
    row_by_row(log, tokenizer, folder / "reference.arrow")
    tokens = check(name, first, folder / "reference.arrow")

    def ours(workers: int) -> None:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        build(Options("chat", folder / "ours", [log], tokenizer=str(first / "tokenizer"), workers=workers))

    def theirs() -> None:
        shutil.rmtree(folder / "map", ignore_errors=True)
        mapped(log, tokenizer, folder / "map")

    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: ours(1),
        TWO: lambda: ours(2),
        ROWS: lambda: row_by_row(log, tokenizer, folder / "rows.arrow"),
        MAP: theirs,
    }
    return times(ways, pairs, dict.fromkeys(ways, 1.0)), tokens


def measure(pairs: int, corpora: Path | None, quick: bool = False) -> Section:
    """The table of building. corpora: where the published corpora lie; without, Deal or No Deal is left out."""
    section = Section("build", "Building datasets")
    works: list[tuple[str, str, Callable[[Path], None]]] = [
        ("synthetic", "20,000 synthetic dialogues", lambda log: synthetic(log, 50 if quick else 20_000))
    ]
    if corpora is not None and not quick:
        source = corpora / "deal_or_no_deal" / "data.txt"
        works.append(("real", "Deal or No Deal, both seats", lambda log: negotiations(log, source)))
    elif not quick:
        section.notes.append("Deal or No Deal was left out: ILQL_CORPORA does not say where the corpora lie.")
    for key, name, write in works:
        say(f"build: {name}")
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log.jsonl"
            write(log)
            seconds, tokens = compare(name, log, Path(folder), pairs)
        for way, each in seconds.items():
            line = {"building": name, "by": way, "seconds": f"{spread(each).value:.3g}"}
            line["tokens a second"] = f"{tokens / spread(each).value:,.0f}"
            for peer, figure in ((ROWS, "rows"), (MAP, "map")):
                if way in (OURS, TWO):
                    gain = speedup(each, seconds[peer])
                    line[f"times {peer}"] = f"{gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
                    if way == OURS:
                        section.figures[f"build/{key}/{figure}"] = gain
            section.rows.append(line)
    return section
