"""Numbers that a dialogue begins with (column `prefix`, such as an image's features): projected, and added to the
embedding of its BOS. So every state of the dialogue attends to them, and no position moves.

Decision: what a dialogue begins with is a token. In a batch the BOS of a dialogue with a prefix has an id below 0 that
says the row of the batch's table of prefixes; so all that knows dialogues by their tokens (what rows share, what is
computed once, which answers are alike) tells apart those that begin with other numbers, without knowing of numbers.
Only the trunk's input embedding, while it reads, makes of such an id what it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ilql.types import InputError

T = TypeVar("T")


def token(row: int) -> int:
    """The id of the BOS of a dialogue that begins with row `row` of a table."""
    return -1 - row


class Table:
    """The distinct prefixes of a batch, in the order they came."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def token(self, prefix: Any) -> int:
        """The id of a dialogue's BOS, of its prefix (F)."""
        key = np.ascontiguousarray(prefix, np.float32).tobytes()
        return token(self._known.setdefault(key, len(self._known)))

    def tensor(self) -> Tensor | None:
        """(rows, F), in float32; None where no dialogue has any."""
        if not self._known:
            return None
        return torch.from_numpy(np.frombuffer(b"".join(self._known), np.float32).reshape(len(self._known), -1).copy())


def begin(row: Mapping[str, Any], table: Table, bos: int) -> tuple[Mapping[str, Any], bytes]:
    """A row as tokens that begin with its prefix, where it has one, and the BOS of its windows."""
    if row.get("prefix") is None:
        return row, np.int32(bos).tobytes()
    tokens = np.array(row["tokens"], np.int32)
    tokens[0] = table.token(row["prefix"])
    return {**row, "tokens": tokens}, tokens[:1].tobytes()


class Beginning(nn.Module):
    """The projection. size: F, numbers of a prefix; bos: the token that it is added to."""

    def __init__(self, size: int, width: int, bos: int) -> None:
        super().__init__()
        self.size, self.bos, self.reading = size, bos, 0
        self.weight = nn.Parameter(torch.empty(width, size).normal_(0, 0.02))

    @contextmanager
    def read(self, embedding: nn.Module, table: Tensor) -> Iterator[None]:
        """While a trunk reads: let its input embedding know ids below 0 as rows of the table (rows, F)."""
        asked: list[Tensor] = []
        if table.ndim != 2 or table.shape[1] != self.size:
            raise InputError(f"a prefix has shape {tuple(table.shape[1:])}, but this model reads {self.size} numbers")

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            asked.append(args[0])
            return args[0].masked_fill(args[0] < 0, self.bos), *args[1:]

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            ids = asked.pop()
            place = (ids < 0).nonzero(as_tuple=True)
            if not len(place[0]):
                return output
            rows = table.to(self.weight)[-1 - ids[place]]
            return output.index_put(place, (rows @ self.weight.T).to(output.dtype), accumulate=True)

        hooks = embedding.register_forward_pre_hook(before), embedding.register_forward_hook(after)
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1
            for hook in hooks:
                hook.remove()


def rows(forward: Callable[..., T]) -> Callable[..., T]:
    """A model's forward over rows of tokens, which then takes `prefix` (B, F): what each row begins with."""

    @wraps(forward)
    def begins(
        model: Any, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *more: Any, **options: Any
    ) -> T:
        prefix, past = options.pop("prefix", None), options.get("past_key_values")
        size = model.beginning and model.beginning.size
        if (size is None and prefix is None) or input_ids is None or (past is not None and past.get_seq_length()):
            return forward(model, input_ids, attention_mask, *more, **options)  # its first tokens were read before
        if bool((input_ids < 0).any()):
            return forward(model, input_ids, attention_mask, *more, **options)
        check(size, prefix, len(input_ids))
        with model.begins(torch.as_tensor(prefix, device=input_ids.device)):
            return forward(model, begun(input_ids, attention_mask), attention_mask, *more, **options)

    return begins


@contextmanager
def prompts(
    model: Any, prefixes: Sequence[Any] | None, rows: Sequence[Sequence[int]]
) -> Iterator[Sequence[Sequence[int]]]:
    """The tokens of dialogues that begin with `prefixes`, for a model that reads them within the block."""
    check(model.beginning and model.beginning.size, prefixes, len(rows))
    if model.beginning is None or prefixes is None:
        yield rows
        return
    table = Table()
    told = [[table.token(own), *row[1:]] for own, row in zip(prefixes, rows, strict=True)]
    given = table.tensor()
    if given is None:  # of no dialogue
        yield told
        return
    with model.begins(given.to(model.device)):
        yield told


def begun(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Rows of tokens (B, T), padded in front where `mask` says so, as those of dialogues that begin with rows 0 to
    B - 1 of a table."""
    first = ids.new_zeros(len(ids)) if mask is None else mask.ne(0).int().argmax(1)
    rows = torch.arange(len(ids), device=ids.device)
    return ids.index_put((rows, first), -1 - rows)


def check(size: int | None, prefixes: Sequence[Any] | None, count: int, what: str = "this model") -> None:
    """Refuse prefixes that a model has no place for, or their absence where it needs them. size: of the model, None for
    one without; prefixes: of `count` dialogues."""
    if size is None:
        if prefixes is not None and any(one is not None for one in prefixes):
            raise InputError(f"a prefix is given, but {what} was trained without any; leave it out")
        return
    given = [None] * count if prefixes is None else list(prefixes)
    for one in given:
        found = None if one is None else tuple(np.shape(one))
        if found != (size,):
            told = "none is given" if found is None else f"one of shape {found} is given"
            raise InputError(f"{what} reads a prefix of {size} numbers with every dialogue, but {told}")
        if not np.isfinite(np.asarray(one, np.float64)).all():
            raise InputError("a prefix holds a number that is not finite")
