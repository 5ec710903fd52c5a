"""The yardsticks of decoding: how the published ILQL code makes a token, re-created plainly from its description.

"trlx style": prompts padded on the left, the trunk with its cache; in every pass the language-model head, two critics,
two target critics and V at every position of the pass, then the last position's scores. "Snell style": one game at a
time, three trunks with a cache each, the same heads. Both sample from softmax(log pi + beta (min Q_target - V)) within
the actor's top k: the published code takes the top k of the re-weighted scores, which costs the same.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ilql.model import ILQLModel

Answers = tuple[list[list[int]], list[list[float]]]


def _scores(logits: Tensor, targets: Sequence[Tensor], v: Tensor, beta: float, top_k: int) -> Tensor:
    """log pi + beta (Q - V), -inf outside the actor's top k: (B, V), K of (B, V), (B, 1)."""
    logp = logits.log_softmax(-1)
    scores = logp + beta * (torch.minimum(*targets) - v)
    return scores.masked_fill(logp < logp.topk(min(top_k, logp.shape[-1])).values[:, -1:], -torch.inf)


def _choose(scores: Tensor, greedy: bool) -> tuple[Tensor, Tensor]:
    """The next token (B, 1), and by how much the best score exceeds the second, (B)."""
    best = scores.topk(2).values
    token = scores.argmax(-1, keepdim=True) if greedy else torch.multinomial(scores.softmax(-1), 1)
    return token, best[:, 0] - best[:, 1]


class Trlx:
    """One trunk; heads at every position of a pass."""

    def __init__(self, model: ILQLModel, beta: float, top_k: int) -> None:
        self.model, self.beta, self.top_k = model, beta, top_k

    @torch.no_grad()
    def complete(self, prompts: Sequence[Sequence[int]], new: int, *, greedy: bool = False, pad: int = 0) -> Answers:
        """Answers of `new` tokens, and the margin by which each greedy choice was the best."""
        model = self.model
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        answer, margins, cache = [], [], None
        head: Any = model.get_output_embeddings()
        for _ in range(new):
            out = model.lm.base_model(
                input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
            )
            hidden, cache = out.last_hidden_state, out.past_key_values
            logits = head(hidden)
            critics = [q(hidden) for q in model.q]  # computed and left unread, as there
            targets = [q(hidden) for q in model.q_target]
            v = model.v(hidden)  # type: ignore[misc]
            scores = _scores(logits[:, -1], [t[:, -1] for t in targets], v[:, -1:], self.beta, self.top_k)
            del critics
            ids, margin = _choose(scores, greedy)
            answer.append(ids)
            margins.append(margin)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            position = position[:, -1:] + 1
        return torch.cat(answer, 1).tolist(), torch.stack(margins, 1).tolist()


class Snell:
    """Three trunks (values, targets, policy), one game at a time."""

    def __init__(self, model: ILQLModel, beta: float, top_k: int) -> None:
        self.model, self.beta, self.top_k = model, beta, top_k
        self.policy, self.target = copy.deepcopy(model.lm), copy.deepcopy(model.lm.base_model)

    @torch.no_grad()
    def complete(self, prompts: Sequence[Sequence[int]], new: int, *, greedy: bool = False) -> Answers:
        """Answers of `new` tokens, and the margin by which each greedy choice was the best."""
        each = [self._one(prompt, new, greedy) for prompt in prompts]
        return [tokens for tokens, _ in each], [margins for _, margins in each]

    def _one(self, prompt: Sequence[int], new: int, greedy: bool) -> tuple[list[int], list[float]]:
        model = self.model
        trunks: list[Any] = [model.lm.base_model, self.target, self.policy.base_model]
        caches: list[Any] = [None] * 3
        head: Any = self.policy.get_output_embeddings()
        ids = torch.tensor([list(prompt)])
        answer, margins = [], []
        for _ in range(new):
            hidden = []
            for i, trunk in enumerate(trunks):
                out = trunk(input_ids=ids, past_key_values=caches[i], use_cache=True)
                hidden.append(out.last_hidden_state)
                caches[i] = out.past_key_values
            values, frozen, policy = hidden
            logits = head(policy)
            critics = [q(values) for q in model.q]  # computed and left unread, as there
            targets = [q(frozen) for q in model.q_target]
            v = model.v(values)  # type: ignore[misc]
            scores = _scores(logits[:, -1], [t[:, -1] for t in targets], v[:, -1:], self.beta, self.top_k)
            del critics
            ids, margin = _choose(scores, greedy)
            answer.append(int(ids))
            margins.append(float(margin))
        return answer, margins
