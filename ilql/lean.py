"""A few trunk families written out as plain functions of their own weights. Decision: at a token a step the Python of
a transformers model costs more than its arithmetic, several times over where the model is small; these functions have
none of it, and linear layers see one (T, D) matrix without padding.

Nothing is trusted: `lean` tries what it wrote on a few tokens against the trunk itself, and gives None where numbers
differ or a layer is not the family's own (adapters, quantized layers, hooks); such a trunk decodes as it stands in
transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ilql import packed
from ilql.prefix import apart
from ilql.prepack import Product, linear

# layer, q (T, heads, d) or of fewer tokens, k and v (T, 2, kv heads, d), scale of q k -> (tokens of q, heads * d)
Attend = Callable[[int, Tensor, Tensor, float], Tensor]
# tokens, positions (T), how to attend, of which tokens to give h, all if None -> h (T or chosen, D)
Forward = Callable[[Tensor, Tensor, Attend, Tensor | None], Tensor]
OWN = ("torch.nn.modules.", "transformers.models.", "transformers.activations", "transformers.pytorch_utils")


class Lean(NamedTuple):
    """A trunk as a function, and the shape of the keys and values that it attends by."""

    forward: Forward
    layers: int
    kv_heads: int
    head_width: int


def gpt2(trunk: Any) -> Lean:
    """GPT-2: learned positions, layer norm, one product for q, k and v."""
    width, heads = trunk.config.hidden_size, trunk.config.num_attention_heads
    blocks = [
        (
            _layer_norm(b.ln_1),
            linear(b.attn.c_attn),
            linear(b.attn.c_proj),
            b.attn.scaling,
            _layer_norm(b.ln_2),
            linear(b.mlp.c_fc),
            b.mlp.act.forward,
            linear(b.mlp.c_proj),
        )
        for b in trunk.h
    ]
    wte, wpe, last_norm = trunk.wte.weight, trunk.wpe.weight, _layer_norm(trunk.ln_f)

    def forward(tokens: Tensor, position: Tensor, attend: Attend, chosen: Tensor | None = None) -> Tensor:
        x = F.embedding(tokens, wte) + F.embedding(position, wpe)
        for i, (norm, qkv, out, scale, norm_2, up, act, down) in enumerate(blocks):
            q, kv = qkv(norm(x)).view(-1, 3, heads, width // heads).split((1, 2), 1)
            if chosen is not None and i == len(blocks) - 1:
                q, x = q[chosen], x[chosen]
            x = x + out(attend(i, q.squeeze(1), kv, scale))
            x = x + down(act(up(norm_2(x))))
        return last_norm(x)

    return Lean(forward, len(blocks), heads, width // heads)


def llama(trunk: Any) -> Lean:
    """Llama and its kin: rotary positions, RMS norm, gated MLP, shared keys, with or without biases."""
    config = trunk.config
    attention = [b.self_attn for b in trunk.layers]
    width, heads, kv_heads = attention[0].head_dim, config.num_attention_heads, config.num_key_value_heads
    if _slides(config) or getattr(trunk.rotary_emb, "rope_type", "") in ("dynamic", "longrope"):
        raise TypeError("attention in a sliding window, or rotations that change with the batch")
    blocks = [
        (
            _rms_norm(b.input_layernorm),
            linear(a.q_proj, a.k_proj, a.v_proj),
            linear(a.o_proj),
            a.scaling,
            _rms_norm(b.post_attention_layernorm),
            linear(b.mlp.gate_proj, b.mlp.up_proj),
            b.mlp.act_fn.forward,
            linear(b.mlp.down_proj),
        )
        for a, b in zip(attention, trunk.layers, strict=True)
    ]
    each = [(_rms_norm(a.q_norm), _rms_norm(a.k_norm)) if hasattr(a, "q_norm") else None for a in attention]
    embedding, last_norm, rotary = trunk.embed_tokens.weight, _rms_norm(trunk.norm), trunk.rotary_emb

    def forward(tokens: Tensor, position: Tensor, attend: Attend, chosen: Tensor | None = None) -> Tensor:
        x = F.embedding(tokens, embedding)
        cos, sin = (y[0, :, None] for y in rotary(x, position[None]))  # (T, 1, d)
        for i, (norm, qkv, out, scale, norm_2, up, act, down) in enumerate(blocks):
            y = qkv(norm(x)).view(-1, heads + 2 * kv_heads, width)
            qk = y[:, : heads + kv_heads]
            if (norms := each[i]) is not None:
                qk = torch.cat([norms[0](qk[:, :heads]), norms[1](qk[:, heads:])], 1)
            left, right = qk.chunk(2, -1)
            y[:, : heads + kv_heads] = qk * cos + torch.cat([-right, left], -1) * sin
            q, kv = y[:, :heads], y[:, heads:].unflatten(1, (2, kv_heads))
            if chosen is not None and i == len(blocks) - 1:
                q, x = q[chosen], x[chosen]
            x = x + out(attend(i, q, kv, scale))
            gate, value = up(norm_2(x)).chunk(2, -1)
            x = x + down(act(gate) * value)
        return last_norm(x)

    return Lean(forward, len(blocks), kv_heads, width)


FAMILIES: dict[str, Callable[[Any], Lean]] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
}


def _slides(config: Any) -> bool:
    """Whether a layer may look back less far than the context."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return window is not None and window < config.max_position_embeddings


def _layer_norm(norm: nn.LayerNorm) -> Product:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _rms_norm(norm: Any) -> Product:
    weight, eps = norm.weight, norm.variance_epsilon
    if weight.dtype == torch.float64:  # transformers rounds to float32 here, so we must
        return norm  # type: ignore[no-any-return]
    return lambda x: F.rms_norm(x, weight.shape, weight, eps)


def lean(lm: PreTrainedModel) -> Lean | None:
    """The trunk of `lm` written out, or None where it is of no known family, altered, or in training mode."""
    trunk: Any = lm.base_model
    make = FAMILIES.get(lm.config.model_type)
    if make is None or trunk.training or not all(_unaltered(m) for m in trunk.modules()):
        return None
    try:
        written = make(trunk)
        return written if _agrees(written, trunk) else None
    except (AttributeError, RuntimeError, TypeError):
        return None


def _unaltered(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module).__module__.startswith(OWN) and not hooked


@torch.no_grad()
def _agrees(written: Lean, trunk: Any) -> bool:
    count = min(7, trunk.config.max_position_embeddings)
    tokens = torch.arange(count, device=trunk.device) % int(trunk.config.vocab_size)
    plan = packed.Plan(apart([count]), trunk.device)

    def attend(layer: int, q: Tensor, kv: Tensor, scale: float) -> Tensor:
        return attend_packed(plan, q, kv, scale)

    have = written.forward(tokens, torch.arange(count, device=trunk.device), attend, None)
    want = trunk(input_ids=tokens[None], use_cache=False).last_hidden_state[0]
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(want.dtype, 0.1) * float(want.abs().max())
    return have.shape == want.shape and float((have - want).abs().max()) <= tolerance


def attend_packed(plan: packed.Plan, q: Tensor, kv: Tensor, scale: float) -> Tensor:
    """Causal attention within the pieces of `plan`: q (T, heads, d), kv (T, 2, kv heads, d) -> (T, heads * d)."""
    key, value = (x.transpose(0, 1)[None] for x in kv.unbind(1))
    out, _ = packed.attention(_NONE, q.transpose(0, 1)[None], key, value, None, packed_plan=plan, scaling=scale)
    return out[0].flatten(1)


_NONE = nn.Module()
