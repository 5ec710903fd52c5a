"""Fresh embeddings that know how their tokens are spelled. Decision: only where training begins is changed; no weight
is added, no text, and the embeddings move from there like any others.

Where whole words are tokens, a model from scratch sees of `crane` and `crate` two numbers, and has to infer from logs
all that these have in common. Here a token's vector begins as a sum of vectors of its characters, each of them at its
place and each of them anywhere. Models that read characters (Kim et al. 2016) compute such a sum for every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ilql.model import ILQLModel

ANYWHERE = -1


def spelled(vocabulary: Mapping[str, int], rows: int, width: int) -> Tensor:
    """Vectors (rows, width) of tokens by their spelling, drawn from torch's generator. What all tokens have in common
    is taken off, then each has mean square 1. vocabulary: token -> row; a row of no token is drawn at random."""
    parts: dict[tuple[str, int], int] = {}
    pairs = [
        (row, parts.setdefault((character, at), len(parts)))
        for token, row in sorted(vocabulary.items(), key=lambda item: item[1])
        for place, character in enumerate(token)
        for at in (place, ANYWHERE)
    ]
    out = torch.randn(rows, width)
    if pairs:
        row, part = torch.tensor(pairs).unbind(1)
        known = row.unique()
        out[known] = 0
        out.index_add_(0, row, torch.randn(len(parts), width)[part])
        out[known] -= out[known].mean(0)
    return out / out.square().mean(1, keepdim=True).sqrt()


@torch.no_grad()
def begin(model: ILQLModel, vocabulary: Mapping[str, int]) -> None:
    """Let a fresh model's embeddings, input and output, begin as `spelled`, in the scale in which they were drawn."""
    lm: Any = model.lm
    weights = {id(m.weight): m.weight for m in (lm.get_input_embeddings(), lm.get_output_embeddings())}
    vectors = spelled(vocabulary, *lm.get_input_embeddings().weight.shape)
    for weight in weights.values():
        weight.copy_(vectors.to(weight) * weight.std())
    model.begin_trunks([name for name in ("critic_trunk", "target_trunk") if getattr(model, name) is not None])
