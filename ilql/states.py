"""The form of a cache under a wholly frozen trunk: h_t where a state, an action token or a bootstrap is read, and at
the last token of an action (for critics of utterances). Decision: what is stored is what training reads and no more,
and beside it lie index columns, one row a decision, so that a batch of any decisions is a few gathers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ilql.cached import Counts, Form, groups, hidden_kind, numbers
from ilql.columns import Kinds, Writer
from ilql.data import Batch, collate, decisions
from ilql.model import ILQLModel
from ilql.rows import Rows

TERMINAL, STATE, NOTHING = 0, 1, 2  # what follows a decision: nothing after the end, a next state, nothing in the log
DECISIONS: Kinds = {
    "dialogue": ("int32", 1),  # number of the dataset's row
    "token": ("int64", 1),  # the action's first row in `tokens`
    "size": ("int32", 1),  # and how many it has
    "last": ("int64", 1),  # rows in `hidden`: h at the action's last token
    "next": ("int64", 1),  # and at the next state, where there is one
    "reward": ("float32", 1),
    "follows": ("int8", 1),
}
TOKENS: Kinds = {"token": ("int32", 1), "read": ("int64", 1)}  # id, and the row in `hidden` where its logits are read


class Laid(NamedTuple):
    """Some dialogues in a row. rows: of the trunk's output for `batch.run`, to be stored in this order; columns of
    DECISIONS and TOKENS, whose row numbers count from the first of these dialogues."""

    batch: Batch
    rows: np.ndarray
    decisions: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]


def lay(dialogues: list[dict[str, Any]], first: int, bos: int, history: int | None) -> Laid:
    # gamma 1 shows in `discount` where a next state follows; a last transition without one is kept for cloning.
    batch = collate(dialogues, gamma=1.0, bos=bos, history=history, bootstraps=False, acted=True)
    where = batch.where.numpy()
    follows = np.where(batch.discount.numpy() != 0, STATE, TERMINAL)
    counts = np.array([len(row["start"]) for row in dialogues])
    whole = [decisions(r["start"], r["end"], len(r["tokens"]), bool(r["terminated"])).has_next for r in dialogues]
    follows[(np.cumsum(counts) - 1)[~np.array(whole)]] = NOTHING
    places = [where[batch.target.numpy() - 1], where[batch.last.numpy()], where[batch.next.numpy()[follows == STATE]]]
    stored, back = np.unique(np.concatenate(places), return_inverse=True)
    read_at, last, after = np.split(back, np.cumsum([len(p) for p in places])[:-1])
    following = np.zeros(len(follows), np.int64)
    following[follows == STATE] = after
    size = np.bincount(batch.owner.numpy(), minlength=batch.n)
    columns = {
        "dialogue": np.repeat(np.arange(len(dialogues)) + first, counts),
        "token": np.cumsum(size) - size,
        "size": size,
        "last": last,
        "next": following,
        "reward": np.concatenate([row["reward"] for row in dialogues]),
        "follows": follows,
    }
    tokens = {"token": batch.tokens.numpy()[batch.target.numpy()], "read": read_at}
    return Laid(batch, stored, columns, tokens)


def _count(rows: Rows, bos: int, history: int | None, budget: int) -> Counts:
    counts = {"positions": 0, "decisions": 0, "actions": 0}
    for first, dialogues in groups(rows, budget):
        laid = lay(dialogues, first, bos, history)
        counts["positions"] += len(laid.rows)
        counts["decisions"] += len(laid.decisions["token"])
        counts["actions"] += len(laid.tokens["token"])
    return counts


def _fill(
    model: ILQLModel, rows: Rows, to: dict[str, Writer], bos: int, history: int | None, dtype: str, budget: int
) -> Iterator[int]:
    for first, dialogues in groups(rows, budget):
        laid = lay(dialogues, first, bos, history)
        hidden = model.hidden(*laid.batch.to(model.device).run)[torch.from_numpy(laid.rows)]
        _append(to, laid, numbers(hidden, dtype))
        yield sum(len(row["tokens"]) for row in dialogues)


def _append(to: dict[str, Writer], laid: Laid, hidden: np.ndarray) -> None:
    """Some dialogues behind those that are written; row numbers count over all of them."""
    states, tokens = to["hidden"].rows, to["tokens"].rows
    columns = laid.decisions
    moved = {
        "token": columns["token"] + tokens,
        "last": columns["last"] + states,
        "next": np.where(columns["follows"] == STATE, columns["next"] + states, 0),
    }
    to["decisions"].add(**columns | moved)
    to["tokens"].add(token=laid.tokens["token"], read=laid.tokens["read"] + states)
    to["hidden"].add(h=hidden)


def _kinds(dtype: str, width: int) -> dict[str, Kinds]:
    return {"hidden": hidden_kind(dtype, width), "decisions": DECISIONS, "tokens": TOKENS}


FORM = Form(_kinds, {"hidden": "positions", "decisions": "decisions", "tokens": "actions"}, _count, _fill)
