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
    width: int | None = None  # of the first dialogue's prefix, and so of all
    for source, done in all_done:
        placed = splitter.place(source, done.seen)
        kept: dict[str, list[int]] = {}
        talk = row = 0
        for k in range(len(placed) + len(done.rejects)):
            chunk.size += 1
            if k in done.rejects:
                chunk.rejects.append(done.rejects[k])
            else:
                split, fault = placed[talk], done.faults.get(talk)
                if isinstance(split, Reject):
                    chunk.rejects.append(split)
                else:
                    characters += done.characters[talk]
                    own = 0 if fault else done.rows.width(row)
                    width = own if width is None and not fault else width
                    if fault is None and own != width:
                        reason = f"{own} numbers, but the dialogues before have {width}: all of a dataset have as many"
                        chunk.rejects.append(Reject(*done.seen[talk].place, "prefix", reason, done.seen[talk].id))
                    elif fault is None:
                        kept.setdefault(split, []).append(row)
                    else:
                        chunk.rejects.append(fault)
                talk += 1
                row += fault is None
            if chunk.size >= DIALOGUES or characters >= CHARACTERS:
                chunk.add(done, kept)
                yield chunk
                chunk, characters, kept = Chunk(), 0, {}
        chunk.add(done, kept)
    if chunk.size:
        yield chunk
