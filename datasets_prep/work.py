"""What a worker process does. Decision: work comes in parts whose borders depend on the input alone, a part of a file
is read by the process that encodes it, and results come back in the order of the input.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from datasets_prep import CORPORA, rewards
from datasets_prep.columns import Columns
from datasets_prep.encode import Encoder
from datasets_prep.layout import Layout, MarkLayout
from datasets_prep.lines import Part
from datasets_prep.overlong import fit_all
from datasets_prep.pairs import whole_pairs
from datasets_prep.rejects import Reject
from datasets_prep.split import Seen, look
from datasets_prep.talks import Read, Talks
from ilql.types import Episode

Work = Part | list[Episode | Reject]
DIALOGUES, CHARACTERS = 256, 1_000_000  # of a list of episodes
LITTLE = 32  # pieces of work for which workers are not worth their start
OBJECTS = 100_000  # between two visits of the collector of cycles


@dataclass(frozen=True)
class Source:
    """A corpus and its options."""

    corpus: str
    seed: int
    options: dict[str, Any]

    def parts(self, inputs: list[Path]) -> Iterator[Work]:
        """The work of reading and encoding: parts of files where the corpus has such, else runs of its episodes."""
        corpus = CORPORA[self.corpus]
        if hasattr(corpus, "file_parts"):
            yield from corpus.file_parts(inputs)
            return
        run: list[Episode | Reject] = []
        size = 0
        waits: str | None = None  # a pair of which only one was seen: both go into one run
        for item in corpus.episodes(inputs, seed=self.seed, **self.options):
            run.append(item)
            if not isinstance(item, Reject):
                size += sum(len(turn.text) for turn in item.turns)
                waits = None if item.pair == waits else item.pair
            if (len(run) >= DIALOGUES or size >= CHARACTERS) and waits is None:
                yield run
                run, size = [], 0
        if run:
            yield run

    def read(self, work: Work) -> Read:
        """The dialogues of some work."""
        if isinstance(work, Part):
            return CORPORA[self.corpus].read_part(work, **self.options)
        rejects = {k: item for k, item in enumerate(work) if isinstance(item, Reject)}
        return Read(Talks.of([item for item in work if not isinstance(item, Reject)]), rejects)


@dataclass(frozen=True)
class Task:
    """How work becomes rows. layout: None where the tokenizer in the folder has a chat template of its own."""

    source: Source
    tokenizer: str
    layout: MarkLayout | None
    step: str
    max_length: int | None
    overlong: str
    grouped: bool  # see `split.look`
    scales: dict[str, rewards.Scale] = field(default_factory=dict)  # of rewards that take the place of the log's


class Done(NamedTuple):
    """What came of some work. seen: its dialogues, and characters (B) of them; rejects: what else it held, by its place
    among all of it; faults: what the encoder says against dialogues; rows: of all others."""

    seen: list[Seen]
    characters: list[int]
    rejects: dict[int, Reject]
    faults: dict[int, Reject]
    rows: Columns


def do(task: Task, layout: Layout, work: Work) -> Done:
    """Read and encode."""
    talks, rejects = task.source.read(work)
    late = rewards.give(talks, task.scales)
    rows, faults = fit_all(layout, talks, task.step, task.max_length, task.overlong)
    rows, faults = rewards.without(rows, faults, late)
    rows, faults = whole_pairs(talks, rows, faults)
    faults = {i: fault.of(talks.id[i], talks.place[i]) for i, fault in faults.items()}
    return Done(look(talks, task.grouped), talks.characters().tolist(), rejects, faults, rows)


def all_done(task: Task, work: Iterator[tuple[str, Work]], workers: int) -> Iterator[tuple[str, Done]]:
    """Each work done, in order, with the name of its source; never more than a few wait in memory.

    Workers take a while to start: there are none for little work, and until one is ready this process does it.
    """
    layout = _layout(task)
    ahead = list(islice(work, LITTLE if workers > 1 else 0))
    if len(ahead) < LITTLE:
        for source, one in chain(ahead, work):
            yield source, do(task, layout, one)
        return
    # spawn: the tokenizers library runs threads, which a fork would break
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (task,))
    waiting: deque[tuple[str, Future[Done]]] = deque()
    try:
        ready = pool.submit(_begun)
        for source, one in chain(ahead, work):
            if not ready.done():
                yield source, do(task, layout, one)
                continue
            waiting.append((source, pool.submit(_do, one)))
            if len(waiting) >= 2 * workers:
                source, future = waiting.popleft()
                yield source, future.result()
        for source, future in waiting:
            yield source, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Rows are made of many short-lived lists, which are freed without the collector of cycles; it would go over
    everything that was ever imported, again and again, and find nothing. So it leaves that alone, and comes seldom."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(OBJECTS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _layout(task: Task) -> Layout:
    return task.layout or Encoder.from_folder(task.tokenizer).layout


_worker: tuple[Task, Layout]  # of this process


def _begin(task: Task) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are what runs in parallel
    _worker = task, _layout(task)
    gc.freeze()
    gc.set_threshold(OBJECTS)


def _begun() -> None:
    """Comes back when a worker has started."""


def _do(work: Work) -> Done:
    return do(*_worker, work)
