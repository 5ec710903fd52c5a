"""What checksums and checks cost: their share of an epoch of training and of a build.

Each is a few thousandths of the whole, less than two runs of the same differ by. So the whole is timed, each part is
timed alone on the same files and weights, as often as the whole has it, and their sum is set against the whole.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pyarrow as pa

from benchmarks import build
from benchmarks.dataset import byte_encoder, write
from benchmarks.pairs import Measured, clock, say, spread
from benchmarks.report import Section
from benchmarks.shapes import SMALL, dialogues
from datasets_prep.build import Options
from datasets_prep.build import build as build_dataset
from datasets_prep.chat import file_parts
from datasets_prep.forms import FORMS, Dialogue
from datasets_prep.limits import check
from datasets_prep.records import decode, once
from datasets_prep.write import SplitWriter
from ilql import checkpoint
from ilql.config import TrainConfig, make_config
from ilql.faults import bad_weight, sound_rewards
from ilql.feed import read
from ilql.initial import make_model
from ilql.schema import sha256, validate
from ilql.trainer import train

Work = Callable[[Path], tuple[float, dict[str, float]]]
TIMES = 5  # that a part is repeated to be timed


def measure(pairs: int, quick: bool = False) -> Section:
    section = Section("trust", "What checksums and checks cost")
    rows, dialogues_built = (40, 50) if quick else (2_000, 20_000)
    works: tuple[tuple[str, str, Work], ...] = (
        ("epoch", "an epoch of training, 4 x 128, 2,000 dialogues of bytes", lambda folder: epoch(folder, rows)),
        ("build", "a build of 20,000 synthetic dialogues", lambda folder: built(folder, dialogues_built)),
    )
    for key, name, work in works:
        say(f"trust: {name}")
        shares = []
        for _ in range(pairs):
            with tempfile.TemporaryDirectory() as folder:
                whole, parts = work(Path(folder))
            shares.append(sum(parts.values()) / whole)
        lines(section, key, name, whole, parts, spread(shares))
    return section


def lines(section: Section, key: str, name: str, whole: float, parts: dict[str, float], share: Measured) -> None:
    """The rows of the last round, and the share of all of them."""
    for part, seconds in parts.items():
        line = {"of": name, "part": part, "seconds": f"{seconds:.3g}", "share": f"{100 * seconds / whole:.2f} %"}
        section.rows.append(line)
    together = f"{100 * share.value:.2f} % [{100 * share.low:.2f}, {100 * share.high:.2f}]"
    section.rows.append({"of": name, "part": "together", "seconds": f"{whole:.3g} the whole", "share": together})
    section.figures[f"trust/{key}"] = share


def look(dataset: Path) -> None:
    """Check a dataset as if it had just been written: a process may remember files that stayed the same."""
    for path in dataset.rglob("*.arrow"):
        os.utime(path)
    validate(dataset)


def epoch(folder: Path, count: int) -> tuple[float, dict[str, float]]:
    """Seconds of the steps of an epoch, and of the parts."""
    vocabulary, data = byte_encoder().vocab_size, folder / "data"
    write(data, dialogues(replace(SMALL, vocabulary=vocabulary, dialogues=count)), vocabulary)

    def config(steps: int) -> TrainConfig:
        shape = {"layers": 4, "width": 128, "heads": 4, "context": 512}
        sections = {"model": shape, "batch": {"tokens": 4096}, "device": "cpu"}
        return make_config(algo="ilql", data=str(data), output=folder / "run", steps=steps, **sections)

    feed = read(config(1))
    batches = feed.order.batches(0)
    run = train(config(len(batches)))
    whole = sum(json.loads(line)["seconds"] for line in (run / "timing.jsonl").read_text().splitlines())
    weights = dict(make_model(config(1), feed).named_parameters())
    batch = feed.collate(feed.rows.__getitems__(batches[0]))
    found, _ = checkpoint.latest(run / "checkpoints")
    assert found is not None
    steps: dict[str, tuple[int, Callable[[], object]]] = {
        "the dataset's digests and rows": (1, lambda: look(data)),
        "rewards and weights at every step": (len(batches), lambda: (bad_weight(weights), sound_rewards(batch))),
        "the digests of a checkpoint": (1, lambda: checkpoint.verify(found)),
    }
    return whole, {name: times * clock(step, TIMES) for name, (times, step) in steps.items()}


def built(folder: Path, count: int) -> tuple[float, dict[str, float]]:
    """Seconds of a build with a tokenizer that was trained before, and of the parts that it waits for: not of the
    digest of the log, which a thread makes while the dialogues are encoded."""
    log, first, out = folder / "log.jsonl", folder / "first", folder / "out"
    build.synthetic(log, count)
    build_dataset(Options("chat", first, [log], tokenizer="bpe:8192"))
    whole = clock(lambda: build_dataset(Options("chat", out, [log], tokenizer=str(first / "tokenizer"))))
    parts = [[line for _, line in part.lines()] for part in file_parts([log])]
    records = [[decode(FORMS[Dialogue][0], line) for line in lines] for lines in parts]
    small = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".arrow"]
    steps: dict[str, Callable[[], object]] = {
        "digests of the small files": lambda: [sha256(path) for path in small],
        "size and depth of every line": lambda: list(map(check, chain.from_iterable(parts))),
        "fields given twice": lambda: [once(*pair) for pair in zip(records, parts, strict=True)],
    }
    found = {name: clock(step, TIMES) for name, step in steps.items()}
    found["digest and flush of the rows"] = statistics.median(closed(out, folder / f"copy-{i}") for i in range(TIMES))
    return whole, found


def closed(dataset: Path, copy: Path) -> float:
    """Seconds from the last row of a dataset on until its files are digested and on the disk."""
    tables = [pa.ipc.open_stream(path.read_bytes()).read_all() for path in dataset.rglob("*.arrow")]
    copy.mkdir()
    writer = SplitWriter(copy, "train")
    for table in tables:
        for batch in table.to_batches():
            writer.write(batch)

    def close() -> None:
        writer.close()
        writer.digests()

    return clock(close)
