"""The yardsticks of training: how the published ILQL trainers spend a step, re-created plainly from their description.

"trlx style": one trunk over rows padded to the longest; language-model logits at every position; two critics and two
target critics as whole tables over the vocabulary at the action positions, padded to the row with most of them; all in
float32, every table alive until the loss is made. "Snell style": the same tables, but three trunks (values, policy,
target) over every position. Both compute the losses of `ilql.algos.ilql` from tables and masks, on the weights of the
model that they are compared with.

Where the published code does needless work that has nothing to do with these choices, it is left out: attention maps,
statistics moved to Python at every step, an optimizer in many kernels. So the ratios rather understate.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ilql.algos.ilql import Config
from ilql.model import ILQLModel


class Padded:
    """Rows at token steps as padded tensors: ids, real (B, T); acts (B, A) positions before the actions; taken, reward,
    mask, alive (B, A)."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        longest, most = max(len(r["tokens"]) for r in rows), max(len(r["start"]) for r in rows)
        self.ids, self.real = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
        self.acts, self.taken = (torch.zeros(len(rows), most, dtype=torch.long) for _ in range(2))
        self.reward, self.mask, self.alive = (torch.zeros(len(rows), most) for _ in range(3))
        for b, row in enumerate(rows):
            tokens, start = (torch.from_numpy(row[name].astype("int64")) for name in ("tokens", "start"))
            n = len(start)
            self.ids[b, : len(tokens)], self.real[b, : len(tokens)] = tokens, 1
            self.acts[b, :n] = start - 1
            self.taken[b, :n] = tokens[start]
            self.reward[b, :n] = torch.from_numpy(row["reward"])
            self.mask[b, :n] = 1
            self.alive[b, : n - 1] = 1  # every dialogue here terminates


class Tables(NamedTuple):
    """logits (B, T, V); critics, targets: K tables (B, A, V) each; v (B, A)."""

    logits: Tensor
    critics: list[Tensor]
    targets: list[Tensor]
    v: Tensor


def _at(hidden: Tensor, place: Tensor) -> Tensor:
    return hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[-1]))


def _heads(model: ILQLModel, batch: Padded, hidden: Tensor, frozen: Tensor, logits: Tensor) -> Tables:
    """hidden for the values, frozen for the targets: (B, T, D)."""
    acts = _at(hidden, batch.acts)
    critics = [q(acts) for q in model.q]
    with torch.no_grad():
        at = _at(frozen, batch.acts)
        targets = [q(at) for q in model.q_target]
    return Tables(logits, critics, targets, model.v(acts))  # type: ignore[misc]


def _losses(tables: Tables, batch: Padded, cfg: Config) -> dict[str, Tensor]:
    """ILQL from whole tables and masks."""

    def taken(table: Tensor) -> Tensor:
        return table.gather(-1, batch.taken[..., None]).squeeze(-1)

    def entropy(table: Tensor) -> Tensor:
        return F.cross_entropy(table.flatten(0, 1), batch.taken.flatten(), reduction="none").view_as(batch.mask)

    v_next = F.pad(tables.v[:, 1:], (0, 1)).detach() * batch.alive
    y = batch.reward + cfg.gamma * v_next
    u = torch.minimum(*map(taken, tables.targets)) - tables.v
    terms = {
        "q": sum((taken(t) - y).square() for t in tables.critics),
        "v": torch.where(u < 0, 1 - cfg.tau, cfg.tau) * u.square(),
        "cql": cfg.cql_weight * sum(entropy(t) for t in tables.critics),
        "bc": entropy(_at(tables.logits, batch.acts)),
    }
    return {name: (x * batch.mask).sum() / batch.mask.sum() for name, x in terms.items()}


def trlx(model: ILQLModel, batch: Padded, cfg: Config) -> dict[str, Tensor]:
    """One trunk."""
    hidden = model.lm.base_model(input_ids=batch.ids, attention_mask=batch.real, use_cache=False).last_hidden_state
    tables = _heads(model, batch, hidden, hidden, model.get_output_embeddings()(hidden))
    return _losses(tables, batch, cfg)


class Snell:
    """Three trunks: `model`'s for the values, one for the policy and a frozen one for the targets."""

    def __init__(self, model: ILQLModel) -> None:
        self.model, self.policy, self.target = model, copy.deepcopy(model.lm), copy.deepcopy(model.lm.base_model)

    def __call__(self, batch: Padded, cfg: Config) -> dict[str, Tensor]:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.real, "use_cache": False}
        hidden = self.model.lm.base_model(**inputs).last_hidden_state
        with torch.no_grad():
            frozen = self.target(**inputs).last_hidden_state
        return _losses(_heads(self.model, batch, hidden, frozen, self.policy(**inputs).logits), batch, cfg)
