"""The order of the data stopped at random places: it goes on exactly, within an epoch and across its end."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ilql.feed import Feed, read
from ilql.progress import Progress
from ilql.stream import stream
from tests.reliability.runs import OPTIONS
from tests.tiny import config, dataset

LENGTH = 20  # micro-batches, of which an epoch has 6


def order_stops(folder: Path, stops: int, workers: int, seed: int = 0) -> dict[str, Any]:
    """So many stops after a drawn number of micro-batches, each gone on with from the progress as JSON has it."""
    data = folder / "data"
    if not data.exists():
        dataset(data)
    options = {**OPTIONS, "batch": {"dialogues": 4, "workers": workers}}
    feed, rng = read(config(data, folder / "run", **options)), random.Random(seed)
    whole = _take(feed, Progress(), workers, LENGTH)
    assert len({ids for ids, _ in whole[:6]}) == 6
    for _ in range(stops):
        at, ahead = rng.randrange(LENGTH), rng.randrange(3)
        progress = Progress()
        before = _take(feed, progress, workers, at)
        after = _take(feed, Progress(**json.loads(json.dumps(asdict(progress)))), workers, min(LENGTH - at, 7 + ahead))
        assert [*before, *after] == whole[: at + len(after)], f"a stop after {at} micro-batches"
    return {"stops": stops, "workers": workers, "epochs": round(LENGTH / 6, 1)}


def _take(feed: Feed, progress: Progress, workers: int, count: int) -> list[tuple[tuple[str, ...], bytes]]:
    """The next micro-batches: their dialogues and what they hold."""
    source = stream(feed, progress, workers)
    found = [
        (tuple(taken.batch.ids), torch.cat([taken.batch.tokens, taken.batch.target]).numpy().tobytes())
        for taken in islice(source, count)
    ]
    source.close()
    return found
