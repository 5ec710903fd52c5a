"""Trunks written out: equal to the trunk itself, and given up where that is not certain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ilql import lean as module
from ilql import packed
from ilql.lean import Lean, attend_packed, lean
from ilql.model import ILQLModel
from ilql.prefix import apart
from tests.toys import tiny

SHARED = {"num_key_value_heads": 2}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"activation_function": "gelu_new", "n_inner": 24}),
    ("llama", {}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    ("llama", {**SHARED, "attention_bias": True, "mlp_bias": True, "head_dim": 6}),
    ("mistral", SHARED),
    ("qwen2", SHARED),
    ("qwen3", {**SHARED, "head_dim": 6}),
]


def make(family: str, extra: dict[str, Any], dtype: str = "float64") -> ILQLModel:
    model = tiny(family, model={"heads": 4, "dtype": dtype, "extra": extra})
    with torch.no_grad():
        for p in model.lm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def run(written: Lean, tokens: Tensor, chosen: Tensor | None = None) -> Tensor:
    """h of one piece, or of two of its tokens whose last layer reads the keys of all before."""
    plan = packed.Plan(apart([len(tokens)]), "cpu")
    last: list[Tensor] = []

    def attend(layer: int, q: Tensor, kv: Tensor, scale: float) -> Tensor:
        if len(q) == len(kv):
            return attend_packed(plan, q, kv, scale)
        whole = q.new_zeros(len(kv), *q.shape[1:])
        whole[chosen] = q
        last.append(whole)
        return attend_packed(plan, whole, kv, scale)[chosen]

    hidden = written.forward(tokens, torch.arange(len(tokens)), attend, chosen)
    assert len(last) == (chosen is not None)
    return hidden


@torch.no_grad()
@pytest.mark.parametrize(("family", "extra"), FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_a_family_written_out_is_the_family(family, extra, dtype, tolerance):
    model = make(family, extra, dtype)
    written = lean(model.lm)
    assert written is not None
    tokens = torch.randint(0, 23, (40,))
    want = model.lm.base_model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]
    assert (want[1:] - want[:-1]).abs().max() > 0.1
    torch.testing.assert_close(run(written, tokens), want, rtol=tolerance, atol=tolerance)
    chosen = torch.tensor([7, 39])
    torch.testing.assert_close(run(written, tokens, chosen), want[chosen], rtol=tolerance, atol=tolerance)


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}


@pytest.mark.parametrize(
    ("family", "extra"),
    [("mistral", {"sliding_window": 8}), ("llama", DYNAMIC), ("gpt_neox", {}), ("opt", {}), ("bloom", {})],
)
def test_what_is_not_written_out_is_left_alone(family, extra):
    assert lean(make(family, extra).lm) is None


def test_qwen_with_a_window_is_left_alone():
    extra = {**SHARED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    assert lean(make("qwen2", extra).lm) is None


class Added(nn.Linear):
    """A layer that adds something of its own, as adapters do."""


def replaced(model: Any) -> None:
    model.lm.model.layers[0].self_attn.q_proj.__class__ = Added


def hooked(model: Any) -> None:
    model.lm.model.layers[1].register_forward_hook(lambda *args: None)


def patched(model: Any) -> None:
    layer = model.lm.model.layers[1].mlp
    layer.forward = layer.forward


def parametrized(model: Any) -> None:
    parametrize.register_parametrization(model.lm.model.layers[0].mlp.up_proj, "weight", nn.Identity())


def training(model: Any) -> None:
    model.train()


@pytest.mark.parametrize("alter", [replaced, hooked, patched, parametrized, training])
def test_an_altered_trunk_is_left_alone(alter):
    model = make("llama", {})
    assert lean(model.lm) is not None
    alter(model)
    assert lean(model.lm) is None


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_family_that_changed_is_found_out(monkeypatch, family):
    write = module.FAMILIES[family]

    def wrong(trunk: Any) -> Lean:
        written = write(trunk)
        return written._replace(forward=lambda tokens, *rest: written.forward(tokens, *rest) * (1 + 1e-6))

    model = make(family, {})
    monkeypatch.setitem(module.FAMILIES, family, wrong)
    assert lean(model.lm) is None
