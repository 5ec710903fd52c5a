"""What stops a step before the weights move. Decision: the numbers that a step rests on are looked at while the weights
are still those of the step before: rewards, losses, gradient and the weights themselves; and what was at fault is named
and kept, so that it can be looked at without training again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilql import atomic
from ilql.data import Batch
from ilql.types import InputError

FOLDER = "nonfinite"  # of a run: what its faulty steps read
SHOWN = 20  # dialogues that a message names
_MEMORY = ("out of memory", "allocate memory", "not enough memory")


def bad_weight(weights: Mapping[str, Tensor]) -> str | None:
    """The first weight that is not finite, by name; None where all are."""
    named = [(name, p.detach()) for name, p in weights.items() if p.is_floating_point() and p.numel()]
    largest = torch._foreach_norm([p for _, p in named], math.inf)  # one pass, and no sum that could overflow
    finite = torch.stack([x.isfinite() for x in largest]).tolist()
    return next((name for (name, _), fine in zip(named, finite, strict=True) if not fine), None)


def sound_rewards(batch: Batch) -> bool:
    """Whether the facts that losses are made of are finite; the log-probabilities of a log may be unknown."""
    return all(bool(x.isfinite().all()) for x in (batch.reward, batch.discount, batch.ret))


def record(batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Any]:
    """A micro-batch that was at fault as JSON. losses: its share of each loss."""
    columns = ("tokens", "position", "target", "owner", "state", "last", "next", "reward", "discount", "ret")
    return {
        "dialogues": list(batch.ids),
        "losses": {name: _plain(float(value)) for name, value in losses.items()},
        **{name: [_plain(x) for x in getattr(batch, name).tolist()] for name in columns},
    }


def dump(run: Path, name: str, facts: Mapping[str, Any], batches: Iterable[Mapping[str, Any]]) -> str:
    """Keep them in a run folder as nonfinite/NAME.json; returns where, or why not, for the message that names them: a
    full disk must not take its place."""
    path = run / FOLDER / f"{name}.json"
    whole = {**{key: _plain(value) for key, value in facts.items()}, "batches": list(batches)}
    try:
        path.parent.mkdir(exist_ok=True)
        atomic.write_text(path, json.dumps(whole, allow_nan=False) + "\n")
    except (InputError, OSError) as error:
        return f" (not kept: {error})"
    return f" (kept in {path})"


def _plain(value: Any) -> Any:
    """JSON has no word for what is not finite."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def names(ids: Sequence[str]) -> str:
    """Some dialogues by name."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def is_memory(error: BaseException) -> bool:
    """Whether there was not enough memory: torch says so in different ways by device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY)


def elsewhere(error: BaseException) -> str:
    """A sentence on memory that was not wanted for a gradient."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"out of memory ({said}); the last checkpoint stands: free some, or lower batch.tokens (or batch.dialogues, "
        "batch.decisions), which validation reads by too"
    )


def too_large(batch: Batch, rows: int, pieces: int) -> str:
    """A sentence on a micro-batch that does not fit into memory, and what to set."""
    shape = f"{rows} rows, {len(batch.tokens)} tokens, {batch.n} decisions"
    text = f"out of memory on a micro-batch of {shape}"
    if pieces > 1:
        text += f" (each divided into {pieces})"
    if pieces >= rows:
        return (
            f"{text}; not even one fits alone: read less of it (data.history, --max-length of the builder), or take a "
            "smaller model"
        )
    return (
        f"{text}; lower batch.tokens (or batch.dialogues, batch.decisions) and raise batch.accumulate by as much, "
        "or let --auto-micro-batch do so, in one process"
    )
