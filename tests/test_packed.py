"""Packed = padded = separate, for every family of trunk that is covered."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ilql import packed

FAMILIES = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"num_key_value_heads": 2, "intermediate_size": 64},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 64},
    "mistral": {"num_key_value_heads": 2, "intermediate_size": 64, "sliding_window": 5},
}
LENGTHS = [5, 9, 3, 8, 17, 6, 1, 5]  # some of like length, which share a call and are padded there


def trunk(family: str):
    config = AutoConfig.for_model(
        family, vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **FAMILIES[family]
    )
    return AutoModelForCausalLM.from_config(config).double()


def run(model, pieces, lengths):
    position = torch.cat([torch.arange(len(p)) for p in pieces])[None]
    with packed.packed(model):
        return model.base_model(
            input_ids=torch.cat(pieces)[None],
            position_ids=position,
            use_cache=False,
            packed_plan=packed.plan(lengths, "cpu"),
        ).last_hidden_state[0]


def test_pieces_of_like_length_share_a_call():
    groups = packed.plan(LENGTHS, "cpu").groups
    assert [group.real.sum(1).tolist() for group in groups] == [[1], [3], [5, 6, 5], [9, 8], [17]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [LENGTHS, [4, 4, 4], [6]], ids=["mixed", "equal", "single"])
def test_packed_equals_separate(family, lengths):
    model = trunk(family)
    pieces = [torch.randint(0, 50, (n,)) for n in lengths]
    separate = torch.cat([model.base_model(input_ids=p[None], use_cache=False).last_hidden_state[0] for p in pieces])
    torch.testing.assert_close(run(model, pieces, lengths), separate, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_piece_can_reach_another(family):
    model = trunk(family)
    pieces = [torch.randint(0, 50, (n,)) for n in LENGTHS]
    before = run(model, pieces, LENGTHS).split(LENGTHS)
    pieces[2] = (pieces[2] + 1) % 50
    after = run(model, pieces, LENGTHS).split(LENGTHS)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(a, b) is (i != 2), f"piece {i}"


def test_the_trunks_own_attention_comes_back():
    model = trunk("gpt2")
    own = model.config._attn_implementation
    run(model, [torch.tensor([1, 2])], [2])
    assert model.config._attn_implementation == own
    ids = torch.randint(0, 50, (1, 6))
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_a_call_without_a_plan_fails_loudly():
    model = trunk("llama")
    with packed.packed(model), pytest.raises(RuntimeError, match="without a plan"):
        model.base_model(input_ids=torch.tensor([[1, 2]]), use_cache=False)
