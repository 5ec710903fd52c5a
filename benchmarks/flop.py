"""What a step must compute. Decision: count the matrix products that the loss needs and nothing else: real tokens, one
forward and the two products of its gradient, nothing computed again. So whoever pads or recomputes has a smaller share
of the machine's peak, and no trick can make the count larger.

    trunk     6 P a token, P = numbers in the matrices of its layers; attention 3 * 4 D (t + 1) a layer and token at
              position t (it attends to itself and to those before it)
    actor     6 D V an action token
    critics   6 K (D H + H V) a decision; the conservative penalty needs the whole vocabulary
    V         6 (D H + H) a decision, forward only (2) once more at each next state
    targets   2 K (D H + H) a decision: the taken action only, forward only

Embeddings, normalisation, activation functions and the optimizer count nothing, though they take time.
"""

from __future__ import annotations

from typing import Any

from ilql.data import Batch
from ilql.model import ILQLModel


def layers(model: ILQLModel) -> int:
    """Numbers in the trunk's matrices, embeddings left out."""
    tables = {id(m.weight) for m in model.lm.base_model.modules() if type(m).__name__ == "Embedding"}
    return sum(p.numel() for p in model.lm.base_model.parameters() if p.ndim == 2 and id(p) not in tables)


def step(model: ILQLModel, batch: Batch) -> float:
    """FLOP of one training step of ILQL at token steps on a batch whose dialogues are distinct."""
    text: Any = model.config.get_text_config()
    width, vocabulary, hidden = text.hidden_size, text.vocab_size, model.config.head_width or 2 * text.hidden_size
    critics = model.config.critics
    trunk = 6 * layers(model) * len(batch.run.tokens)
    trunk += text.num_hidden_layers * 3 * 4 * width * int((batch.run.position + 1).sum())
    scalar = width * hidden + hidden
    follows = int((batch.discount != 0).sum())
    heads = 6 * width * vocabulary * batch.m
    heads += 6 * critics * (width * hidden + hidden * vocabulary) * batch.n
    heads += 6 * scalar * batch.n + 2 * scalar * follows
    heads += 2 * critics * scalar * batch.n
    return float(trunk + heads)


def decoding_bytes(model: ILQLModel, rows: int, support: int) -> float:
    """Bytes of weights that one step of decoding must read, for `rows` rows whose critics are read at `support` tokens
    each: the trunk's layers, the output embedding, the hidden layers of the target critics and of V, and the gathered
    rows."""
    size = next(model.parameters()).element_size()
    text: Any = model.config.get_text_config()
    width, hidden = text.hidden_size, model.config.head_width or 2 * text.hidden_size
    critics = model.config.critics
    numbers = layers(model) + text.vocab_size * width
    numbers += (critics + 1) * (width * hidden + hidden) + hidden
    numbers += critics * min(rows * support, text.vocab_size) * (hidden + 1)
    return float(size * numbers)
