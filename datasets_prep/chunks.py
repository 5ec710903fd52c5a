"""What is written at once. Decision: a record batch holds so many dialogues of the input, or so much text, whatever
part a process read and whatever became of them, so that workers change no byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from datasets_prep.columns import Columns
from datasets_prep.rejects import Reject
from datasets_prep.split import Splitter
from datasets_prep.work import Done

DIALOGUES, CHARACTERS = 256, 1_000_000


@dataclass(slots=True)
class Chunk:
    """A run of the input. size: how many dialogues it held; rows: those that stay, by split."""

    size: int = 0
    rejects: list[Reject] = field(default_factory=list)
    rows: dict[str, list[Columns]] = field(default_factory=dict)

    def add(self, done: Done, kept: dict[str, list[int]]) -> None:
        for split, rows in kept.items():
            self.rows.setdefault(split, []).append(done.rows.take(rows))


def chunks(all_done: Iterable[tuple[str, Done]], splitter: Splitter) -> Iterator[Chunk]:
    """Everything that was done, in runs bounded in number and in text."""
    chunk, characters = Chunk(), 0
    for source, done in all_done:
        row = -1
        kept: dict[str, list[int]] = {}
        for place, item in enumerate(done.items):
            chunk.size += 1
            if isinstance(item, Reject):
                chunk.rejects.append(item)
            else:
                fault = done.faults.get(place)
                row += fault is None
                try:
                    split = splitter.place(source, item[0])
                    characters += item[1]
                    if fault is not None:
                        raise fault
                    kept.setdefault(split, []).append(row)
                except Reject as reject:
                    chunk.rejects.append(reject)
            if chunk.size >= DIALOGUES or characters >= CHARACTERS:
                chunk.add(done, kept)
                yield chunk
                chunk, characters, kept = Chunk(), 0, {}
        chunk.add(done, kept)
    if chunk.size:
        yield chunk
