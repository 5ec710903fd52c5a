"""Where the logged reply stands among what an actor proposed in its place. Decision: where no partner can be asked,
what people said is the only other measure of a critic; beside it stand the actor's own likelihood, and chance.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilql.data import Batch, collate
from ilql.model import ILQLModel
from ilql.report import bootstrap

READ = 1024  # states whose chances of all words are in memory at a time


@dataclass(frozen=True)
class Ranks:
    """Of one dialogue: how many stand in line at each reply that had company, itself among them, equal ones once (n);
    and, by each measure, how many of these stand before it and how many beside (n, 2)."""

    among: np.ndarray
    places: Mapping[str, np.ndarray]


def first(before: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """The chance that a reply is the first, where those beside it are put in any order: (n), (n) -> (n)."""
    return np.where(before == 0, 1 / (1 + beside), 0.0)


def reciprocal(before: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """The mean of 1 / rank, likewise."""
    pairs = zip(before.tolist(), beside.tolist(), strict=True)
    return np.array([np.mean(1 / np.arange(b + 1, b + e + 2)) for b, e in pairs]).reshape(len(before))


@torch.no_grad()
def read(model: ILQLModel, bos: int, rows: Sequence[dict[str, Any]], batch_rows: int = 32) -> list[Ranks]:
    """The ranks of every dialogue's replies, by Q of the model's critics where it has some, and by the actor."""
    found = []
    for i in range(0, len(rows), batch_rows):
        part = [rows[j] for j in range(i, min(i + batch_rows, len(rows)))]
        batch = collate(part, gamma=1.0, bos=bos, history=model.config.history, bootstraps=False, offered=True)
        found += _ranks(model, batch.to(model.device), [len(row["start"]) for row in part])
    return found


def _ranks(model: ILQLModel, batch: Batch, sizes: Sequence[int]) -> list[Ranks]:
    hidden = model.hidden(*batch.run)
    other, owner = batch.offered  # type: ignore[misc]
    every = torch.cat([batch.last, other])
    of = torch.cat([torch.arange(batch.n, device=owner.device), owner])
    measures = {"Q": _values(model, hidden, batch, every)} if model.q else {}
    measures["log pi"] = _likelihoods(model, hidden, batch, every, of)
    count = torch.bincount(owner, minlength=batch.n)
    kept = (count > 0).cpu().numpy()
    places = {}
    for name, value in measures.items():
        mine, others = value[: batch.n], value[batch.n :]
        stands = torch.stack([others > mine[owner], others == mine[owner]], 1).long()
        places[name] = count.new_zeros(batch.n, 2).index_add_(0, owner, stands).cpu().numpy()
    out, begin = [], 0
    for n in sizes:
        some = np.flatnonzero(kept[begin : begin + n]) + begin
        out.append(Ranks(1 + count.cpu().numpy()[some], {name: each[some] for name, each in places.items()}))
        begin += n
    return out


def _values(model: ILQLModel, hidden: Tensor, batch: Batch, last: Tensor) -> Tensor:
    """The smallest Q of the critics that decode, of replies by their last tokens, (R)."""
    read = model.critic_hidden(hidden, *batch.run)
    if model.config.critic == "scalar":
        return torch.stack([q(read[batch.where[last]]) for q in model.judges]).amin(0)
    h, token = read[batch.where[last - 1]], batch.tokens[last]
    return torch.stack([q.taken(h, token) for q in model.judges]).amin(0)  # type: ignore[operator]


def _likelihoods(model: ILQLModel, hidden: Tensor, batch: Batch, last: Tensor, owner: Tensor) -> Tensor:
    """log pi of whole replies, (R): a reply's piece begins as its state's does, so positions tell its length."""
    size = batch.position[last] - batch.position[batch.state[owner]]
    which = torch.arange(len(last), device=last.device).repeat_interleave(size)
    place = torch.arange(len(which), device=last.device) - (size.cumsum(0) - size)[which] + (last - size + 1)[which]
    head: Any = model.get_output_embeddings()
    out = torch.zeros(len(last), dtype=torch.float64, device=last.device)
    for some, reply in zip(place.split(READ), which.split(READ), strict=True):
        logits = head(hidden[batch.where[some - 1]])
        logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        out.index_add_(0, reply, logp.gather(1, batch.tokens[some][:, None]).squeeze(1).double())
    return out


def lines(ranks: Sequence[Ranks], groups: Sequence[Hashable]) -> list[dict[str, Any]]:
    """A line for each measure, and one for chance: the share of replies that stand first, and the mean of 1 / rank.

    groups: of the dialogues, which are resampled as wholes.
    """
    labels = [group for r, group in zip(ranks, groups, strict=True) for _ in r.among]
    if not labels:
        return []
    among = np.concatenate([r.among for r in ranks])
    scores = {}
    for name in ranks[0].places:
        before, beside = np.concatenate([r.places[name] for r in ranks]).T
        scores[name] = first(before, beside), reciprocal(before, beside)
    nothing = np.zeros_like(among)
    scores["chance"] = 1 / among, reciprocal(nothing, among - 1)
    return [
        {
            "the logged reply among proposals, by": name,
            "is first, %": bootstrap((100 * top).tolist(), groups=labels),
            "mean of 1 / rank": bootstrap(inverse.tolist(), groups=labels),
            "replies": f"{len(among)}",
        }
        for name, (top, inverse) in scores.items()
    ]
