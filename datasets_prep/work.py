"""What a worker process does. Decision: work comes in parts whose borders depend on the input alone, a part of a file
is read by the process that encodes it, and results come back in the order of the input.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets_prep import CORPORA
from datasets_prep.columns import Columns
from datasets_prep.encode import Encoder
from datasets_prep.layout import Layout, MarkLayout
from datasets_prep.lines import Part
from datasets_prep.overlong import fit_all
from datasets_prep.rejects import Reject
from datasets_prep.split import Seen, look
from ilql.types import Episode

Work = Part | list[Episode | Reject]
DIALOGUES, CHARACTERS = 256, 1_000_000  # of a list of episodes


@dataclass(frozen=True)
class Task:
    """How work becomes rows. layout: None where the tokenizer in the folder has a chat template of its own."""

    corpus: str
    corpus_options: dict[str, Any]
    tokenizer: str
    layout: MarkLayout | None
    step: str
    max_length: int | None
    overlong: str
    grouped: bool  # see `split.look`


@dataclass(slots=True)
class Done:
    """What came of some work. items: in the order of the input a reject, or a dialogue and the number of its
    characters; faults: what the encoder says against dialogues, by their place in items; rows: all others."""

    items: list[Reject | tuple[Seen, int]]
    faults: dict[int, Reject]
    rows: Columns


def parts(corpus: ModuleType, inputs: list[Path], seed: int, options: dict[str, Any]) -> Iterator[Work]:
    """The work of reading and encoding a corpus: parts of its files where it has such, else runs of its episodes."""
    if hasattr(corpus, "file_parts"):
        yield from corpus.file_parts(inputs)
        return
    run: list[Episode | Reject] = []
    size = 0
    for item in corpus.episodes(inputs, seed=seed, **options):
        run.append(item)
        size += 0 if isinstance(item, Reject) else _characters(item)
        if len(run) >= DIALOGUES or size >= CHARACTERS:
            yield run
            run, size = [], 0
    if run:
        yield run


def do(task: Task, layout: Layout, work: Work) -> Done:
    """Read and encode."""
    items: list[Reject | tuple[Seen, int]] = []
    episodes, places = [], []
    for item in CORPORA[task.corpus].read_part(work, **task.corpus_options) if isinstance(work, Part) else work:
        if isinstance(item, Reject):
            items.append(item)
            continue
        places.append(len(items))
        episodes.append(item)
        items.append((look(item, task.grouped), _characters(item)))
    rows, faults = fit_all(layout, episodes, task.step, task.max_length, task.overlong)
    return Done(items, {places[i]: fault.at(episodes[i]) for i, fault in faults.items()}, rows)


def _characters(episode: Episode) -> int:
    return sum([len(turn.text) for turn in episode.turns])


def all_done(task: Task, work: Iterable[tuple[str, Work]], workers: int) -> Iterator[tuple[str, Done]]:
    """Each work done, in order, with the name of its source; never more than a few wait in memory."""
    if workers == 1:
        layout = _layout(task)
        for source, one in work:
            yield source, do(task, layout, one)
        return
    # spawn: the tokenizers library runs threads, which a fork would break
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (task,))
    waiting: deque[tuple[str, Future[Done]]] = deque()
    try:
        for source, one in work:
            waiting.append((source, pool.submit(_do, one)))
            if len(waiting) >= 2 * workers:
                source, future = waiting.popleft()
                yield source, future.result()
        for source, future in waiting:
            yield source, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _layout(task: Task) -> Layout:
    return task.layout or Encoder.from_folder(task.tokenizer).layout


_worker: tuple[Task, Layout]  # of this process


def _begin(task: Task) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are what runs in parallel
    _worker = task, _layout(task)


def _do(work: Work) -> Done:
    return do(*_worker, work)
