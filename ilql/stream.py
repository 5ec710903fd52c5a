"""The micro-batches of a run from where it stands. Decision: `Progress` moves as they are taken and not as they are
made, so the processes that collate ahead do not matter to where a run goes on.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from ilql.data import Batch
from ilql.feed import Feed
from ilql.progress import Progress
from ilql.signals import deaf


class Taken(NamedTuple):
    """A micro-batch and the rows of the feed that it is made of."""

    batch: Batch
    rows: Sequence[int]


def stream(feed: Feed, progress: Progress, workers: int) -> Generator[Taken]:
    """Micro-batches without end."""
    while True:
        rows = feed.order.batches(progress.epoch)[progress.batch :]
        # A loader draws from the global random state unless it has a generator of its own.
        loader: DataLoader[Any] = DataLoader(
            feed.rows,  # type: ignore[arg-type]
            batch_sampler=rows,  # type: ignore[arg-type]
            collate_fn=feed.collate,
            num_workers=workers,
            generator=torch.Generator(),
            worker_init_fn=deaf if workers else None,
        )
        for batch, index in zip(loader, rows, strict=True):
            progress.batch += 1
            progress.accumulated += 1
            yield Taken(batch, index)
        progress.epoch, progress.batch = progress.epoch + 1, 0


def divided(feed: Feed, taken: Taken, pieces: int) -> list[Batch]:
    """A micro-batch as so many smaller ones of its rows, or of one row each where there are fewer; the two rows of a
    pair stay together."""
    size, pair = -(-len(taken.rows) // pieces), feed.order.pair
    parts: list[list[int]] = []
    for row in taken.rows:
        if parts and (len(parts[-1]) < size or (pair is not None and pair[row] == pair[parts[-1][-1]])):
            parts[-1].append(row)
        else:
            parts.append([row])
    return [feed.collate(feed.rows.__getitems__(part)) for part in parts]
