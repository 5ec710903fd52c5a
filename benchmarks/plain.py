"""The yardsticks: how the published ILQL trainers spend a step, re-created plainly from their description.

"trlx style": one trunk over rows padded to the longest; language-model logits at every position; two critics and two
target critics as whole tables over the vocabulary at the action positions, padded to the row with most of them; all in
float32. "Snell style": the same tables, but three trunks (values, policy, target) over every position. Both compute the
losses of `ilql.algos.ilql` from tables and masks, and share the weights of the model that they are compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ilql.algos.ilql import Config
from ilql.model import ILQLModel


class Padded:
    """Rows at token steps as padded tensors: ids, real (B, T); acts, states, following (B, A) positions; taken, done,
    reward (B, A)."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        longest, most = max(len(r["tokens"]) for r in rows), max(len(r["start"]) for r in rows)
        shape = (len(rows), most)
        self.ids = torch.zeros(len(rows), longest, dtype=torch.long)
        self.real = torch.zeros(len(rows), longest, dtype=torch.long)
        self.acts, self.following = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        self.taken, self.reward, self.mask = (
            torch.zeros(shape, dtype=torch.long),
            torch.zeros(shape),
            torch.zeros(shape),
        )
        self.alive = torch.zeros(shape)
        for b, row in enumerate(rows):
            tokens = torch.tensor(row["tokens"].astype("int64"))
            start = torch.tensor(row["start"].astype("int64"))
            n = len(start)
            self.ids[b, : len(tokens)], self.real[b, : len(tokens)] = tokens, 1
            self.acts[b, :n] = start - 1
            self.following[b, : n - 1] = start[1:] - 1
            self.taken[b, :n] = tokens[start]
            self.reward[b, :n] = torch.tensor(row["reward"])
            self.mask[b, :n] = 1
            self.alive[b, : n - 1] = 1  # every dialogue here terminates


def _at(hidden: Tensor, place: Tensor) -> Tensor:
    return hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[-1]))


def _losses(
    model: ILQLModel, batch: Padded, cfg: Config, hidden: Tensor, frozen: Tensor, logits: Tensor
) -> dict[str, Tensor]:
    """ILQL from whole tables and masks; hidden for values, frozen for targets (B, T, D), logits (B, T, V)."""
    acts = _at(hidden, batch.acts)
    tables = [q(acts) for q in model.q]
    with torch.no_grad():
        at = _at(frozen, batch.acts)
        targets = [q(at).gather(-1, batch.taken[..., None]).squeeze(-1) for q in model.q_target]
        v_next = model.v(_at(hidden, batch.following)) * batch.alive  # type: ignore[misc]
    v = model.v(acts)  # type: ignore[misc]
    y = batch.reward + cfg.gamma * v_next
    u = torch.minimum(*targets) - v
    n = batch.mask.sum()
    q = sum((t.gather(-1, batch.taken[..., None]).squeeze(-1) - y).square() for t in tables)
    penalty = sum(F.cross_entropy(t.transpose(1, 2), batch.taken, reduction="none") for t in tables)
    actor = F.cross_entropy(_at(logits, batch.acts).transpose(1, 2), batch.taken, reduction="none")
    weight = torch.where(u < 0, 1 - cfg.tau, cfg.tau)
    terms = {"q": q, "v": weight * u.square(), "cql": cfg.cql_weight * penalty, "bc": actor}
    return {name: (x * batch.mask).sum() / n for name, x in terms.items()}


def trlx(model: ILQLModel, batch: Padded, cfg: Config) -> dict[str, Tensor]:
    """One trunk."""
    hidden = model.lm.base_model(input_ids=batch.ids, attention_mask=batch.real, use_cache=False).last_hidden_state
    head: Any = model.get_output_embeddings()
    return _losses(model, batch, cfg, hidden, hidden, head(hidden))


class Snell:
    """Three trunks: `model`'s for the values, one for the policy and a frozen one for the targets."""

    def __init__(self, model: ILQLModel) -> None:
        self.model, self.policy, self.target = model, copy.deepcopy(model.lm), copy.deepcopy(model.lm.base_model)

    def __call__(self, batch: Padded, cfg: Config) -> dict[str, Tensor]:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.real, "use_cache": False}
        hidden = self.model.lm.base_model(**inputs).last_hidden_state
        with torch.no_grad():
            frozen = self.target(**inputs).last_hidden_state
        return _losses(self.model, batch, cfg, hidden, frozen, self.policy(**inputs).logits)
