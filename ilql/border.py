"""The form of a cache under frozen lowest blocks: what the first trained block reads, at every position. Decision: the
blocks above attend within whole dialogues, so dialogues stay the unit and batches are packed as always; a dialogue's
states are stored as it is laid by itself (its windows end to end), and a batch lays dialogues side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ilql import frozen
from ilql.cached import Cache, Counts, Form, groups, hidden_kind, numbers, tensor
from ilql.columns import Kinds, Writer
from ilql.data import Batch, Row, collate
from ilql.model import ILQLModel
from ilql.pieces import Run
from ilql.prefix import beside
from ilql.rows import Mix, Rows
from ilql.types import InputError

TOKENS: Kinds = {"token": ("int32", 1)}  # id at a stored position
DIALOGUES: Kinds = {"first": ("int64", 1), "size": ("int32", 1)}  # its rows in `hidden` and `tokens`


def join(batches: Sequence[Batch]) -> Batch:
    """Batches side by side as one; what they share is computed in each."""
    tokens = np.cumsum([0] + [len(b.tokens) for b in batches]).tolist()
    rows = np.cumsum([0] + [len(b.run.tokens) for b in batches]).tolist()
    first = np.cumsum([0] + [b.n for b in batches]).tolist()

    def index(name: str, begins: Sequence[int]) -> torch.Tensor:
        return torch.cat([getattr(b, name) + begin for b, begin in zip(batches, begins, strict=False)])

    # A position that nobody reads has a row out of range, and keeps one.
    where = [
        torch.where(b.where < len(b.run.tokens), b.where + begin, rows[-1])
        for b, begin in zip(batches, rows, strict=False)
    ]
    owned = [b.target[: len(b.owner)] + begin for b, begin in zip(batches, tokens, strict=False)]
    orphans = [b.target[len(b.owner) :] + begin for b, begin in zip(batches, tokens, strict=False)]
    return Batch(
        target=torch.cat(owned + orphans),
        owner=index("owner", first),
        where=torch.cat(where),
        run=Run(
            torch.cat([b.run.tokens for b in batches]),
            torch.cat([b.run.position for b in batches]),
            beside([b.run.segments for b in batches]),
        ),
        first=torch.cat([b.first for b in batches]),
        ids=[name for b in batches for name in b.ids],
        hidden=None if batches[0].hidden is None else torch.cat([b.hidden for b in batches if b.hidden is not None]),
        offered=None,  # a cache has no states of candidates
        offered_next=None,
        **{name: index(name, tokens) for name in ("state", "last", "next")},
        **{
            name: index(name, [0] * len(batches))
            for name in ("tokens", "position", "reward", "discount", "ret", "floor", "behaviour")
        },
    )


def _lay(row: Row, bos: int, history: int | None) -> Batch:
    return collate([row], gamma=1.0, bos=bos, history=history, bootstraps=False, acted=True)


def _count(rows: Rows, bos: int, history: int | None, budget: int) -> Counts:
    positions = sum(len(_lay(row, bos, history).tokens) for row in rows)
    return {"positions": positions, "rows": len(rows)}


def _fill(
    model: ILQLModel, rows: Rows, to: dict[str, Writer], bos: int, history: int | None, dtype: str, budget: int
) -> Iterator[int]:
    count = int(model.config.freeze or 0)
    for first, dialogues in groups(rows, budget):
        laid = [_lay(row, bos, history) for row in dialogues]
        batch = join(laid).to(model.device)
        stored = frozen.border(model.lm, count, lambda batch=batch: model.hidden(*batch.run))  # type: ignore[misc]
        if first == 0:
            found, wanted = model.hidden(*batch.run, stored=stored), model.hidden(*batch.run)
            if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3):
                raise InputError(
                    f"the trunk {model.lm.config.model_type!r} cannot begin with block {count}; cache it whole"
                )
        size = np.array([len(b.tokens) for b in laid])
        to["dialogues"].add(first=to["hidden"].rows + np.cumsum(size) - size, size=size)
        to["tokens"].add(token=batch.tokens.cpu().numpy())
        to["hidden"].add(h=numbers(stored[batch.where], dtype))
        yield sum(len(row["tokens"]) for row in dialogues)


def _kinds(dtype: str, width: int) -> dict[str, Kinds]:
    return {"hidden": hidden_kind(dtype, width), "tokens": TOKENS, "dialogues": DIALOGUES}


FORM = Form(_kinds, {"hidden": "positions", "tokens": "positions", "dialogues": "rows"}, _count, _fill)


class Dialogues:
    """The chosen dialogues of one split of several datasets, each with its stored states; what a DataLoader reads
    batches from."""

    def __init__(
        self,
        caches: Sequence[Cache],
        split: str,
        rows: Mix,
        chosen: np.ndarray,
        collate: Callable[[Sequence[Row]], Batch],
    ) -> None:
        self.files = [cache.columns(FORM, split) for cache in caches]
        self.caches, self.rows, self.chosen, self.collate = caches, rows, chosen, collate
        self.lengths = rows.lengths[chosen]
        self.first = np.cumsum([0] + [len(part) for part in rows.parts])

    def __len__(self) -> int:
        return len(self.chosen)

    def weights(self, each: Sequence[float]) -> np.ndarray:
        """The weight of each dialogue, of one number a dataset."""
        return np.repeat(each, np.diff(self.first))[self.chosen]

    def __getitems__(self, index: Sequence[int]) -> Batch:
        """The batch of these dialogues."""
        return join([self._one(int(self.chosen[i])) for i in index])

    def _one(self, number: int) -> Batch:
        k = int(np.searchsorted(self.first, number, side="right")) - 1
        i = number - int(self.first[k])
        batch = self.collate([self.rows[number]])
        files, cache = self.files[k], self.caches[k]
        begin = int(files["dialogues"]["first"].range(i, i + 1)[0])
        end = begin + int(files["dialogues"]["size"].range(i, i + 1)[0])
        known = end <= len(files["hidden"]["h"]) and begin >= 0
        if not known or not np.array_equal(files["tokens"]["token"].range(begin, end), batch.tokens.numpy()):
            raise InputError(f"{cache.folder}: dialogue {i} is laid otherwise here; {cache.remedy}")
        where = batch.where.numpy()
        place = np.zeros(len(batch.run.tokens), np.int64)
        read = where < len(place)
        place[where[read]] = np.flatnonzero(read)
        stored = files["hidden"]["h"].range(begin, end)[place]
        batch.hidden = tensor(stored, cache.manifest["dtype"])
        return batch
