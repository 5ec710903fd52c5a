"""The chunked vocabulary operator against the plain table."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ilql import heads


def inputs(n: int = 7, h: int = 4, v: int = 9, dtype: torch.dtype = torch.float64):
    return (
        torch.randn(n, h, dtype=dtype, requires_grad=True),
        torch.randn(v, h, dtype=dtype, requires_grad=True),
        torch.randn(v, dtype=dtype, requires_grad=True),
        torch.randint(0, v, (n,)),
    )


def plain(z, weight, bias, action):
    logits = F.linear(z, weight, bias)
    return logits.gather(1, action[:, None]).squeeze(1), logits.logsumexp(1)


@pytest.mark.parametrize("chunk", [9, 20, 1 << 20], ids=["row by row", "uneven", "whole"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("alike", [True, False], ids=["rows alike", "rows weighed"])
def test_equals_the_plain_table_forward_and_backward(monkeypatch, chunk, with_bias, alike):
    monkeypatch.setattr(heads, "CHUNK", chunk)
    z, weight, bias, action = inputs()
    leaves = [z, weight, *([bias] if with_bias else [])]
    b = bias if with_bias else None
    results = []
    for op in (plain, heads.taken_and_lse):
        taken, lse = op(z, weight, b, action)
        loss = (taken * torch.arange(7)).sum() + (0.3 * lse if alike else 0.3 * lse.square()).sum()
        results.append((taken, lse, *torch.autograd.grad(loss, leaves)))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(heads, "CHUNK", 20)
    z, weight, bias, action = inputs()
    assert torch.autograd.gradcheck(lambda *x: heads.taken_and_lse(*x, action), (z, weight, bias))


def test_no_gradient_is_made_for_what_needs_none():
    z, weight, bias, action = inputs()
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    taken, lse = heads.taken_and_lse(z, weight, bias, action)
    (taken + lse).sum().backward()
    assert z.grad is not None
    assert weight.grad is None


def test_low_precision_is_summed_in_float32():
    z, weight, bias, action = inputs(v=4000, dtype=torch.bfloat16)
    taken, lse = heads.taken_and_lse(z, weight, bias, action)
    assert taken.dtype == lse.dtype == torch.float32
    want = plain(z.double(), weight.double(), bias.double(), action)[1]
    assert (lse - want).abs().max() < 0.05


def test_autocast_keeps_float32_gradients():
    z, weight, bias, action = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        taken, lse = heads.taken_and_lse(z, weight, bias, action)
    (lse - taken).sum().backward()
    assert weight.grad.dtype == torch.float32
    want_taken, want_lse = plain(z, weight, bias, action)
    want = torch.autograd.grad((want_lse - want_taken).sum(), weight)
    torch.testing.assert_close(weight.grad, want[0], rtol=0.1, atol=0.1)


def test_a_heads_three_readings_agree():
    head = heads.VocabularyHead(5, 10, 11).double()
    h = torch.randn(6, 5, dtype=torch.float64)
    action = torch.randint(0, 11, (6,))
    table = head(h)
    want = table.gather(1, action[:, None]).squeeze(1)
    taken, lse = head.taken_and_lse(h, action)
    torch.testing.assert_close(head.taken(h, action), want)
    torch.testing.assert_close(taken, want)
    torch.testing.assert_close(lse, table.logsumexp(1))
