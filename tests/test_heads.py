"""The chunked vocabulary operator against the plain table."""

from __future__ import annotations

import pytest
import torch
from torch import nn
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


# Bytes of a chunk, the fewest rows in it: whole table; two rows; one; three words of all rows; one number.
CHUNKS = {"whole": (1 << 20, 32), "uneven": (160, 1), "row by row": (72, 1), "words": (21 * 8, 32), "one": (8, 32)}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("weights", ["alike", "foretold", "unforeseen", "none"])
def test_equals_the_plain_table_forward_and_backward(monkeypatch, chunk, with_bias, weights):
    monkeypatch.setattr(heads, "CHUNK", CHUNKS[chunk][0])
    monkeypatch.setattr(heads, "LEAST_ROWS", CHUNKS[chunk][1])
    z, weight, bias, action = inputs()
    leaves = [z, weight, *([bias] if with_bias else [])]
    b = bias if with_bias else None
    share = torch.arange(7.0, dtype=torch.float64)
    results = []
    for op in (plain, heads.taken_and_lse):
        hint = (share,) if op is not plain and weights == "foretold" else ()
        taken, lse = op(z, weight, b, action, *hint)
        read = {"alike": 0.3 * lse, "foretold": 0.7 * share * lse, "unforeseen": lse.square(), "none": 0 * lse}
        loss = (taken * torch.arange(7)).sum() + read[weights].sum()
        results.append((taken, lse, *torch.autograd.grad(loss, leaves)))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("v", "least"), [(9, 1), (9, 32)], ids=["rows", "words"])
def test_no_table_is_larger_than_a_chunk(monkeypatch, v, least):
    monkeypatch.setattr(heads, "CHUNK", 160)
    monkeypatch.setattr(heads, "LEAST_ROWS", least)
    made = []
    linear = F.linear
    monkeypatch.setattr(heads.F, "linear", lambda *x: made.append(linear(*x)) or made[-1])
    z, weight, bias, action = inputs(v=v)
    taken, lse = heads.taken_and_lse(z, weight, bias, action)
    (taken + lse.square()).sum().backward()
    assert made
    assert max(t.numel() * t.element_size() for t in made) <= 160


@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradcheck(monkeypatch, chunk):
    monkeypatch.setattr(heads, "CHUNK", CHUNKS[chunk][0])
    monkeypatch.setattr(heads, "LEAST_ROWS", CHUNKS[chunk][1])
    z, weight, bias, action = inputs()
    assert torch.autograd.gradcheck(lambda *x: heads.taken_and_lse(*x, action), (z, weight, bias))


def test_what_is_foretold_needs_no_second_table(monkeypatch):
    again = []
    monkeypatch.setattr(heads, "_again", lambda *x: again.append(x))
    z, weight, bias, action = inputs()
    share = torch.tensor([1.0, 2, 3, 1, 1, 2, 5], dtype=torch.float64)
    _, lse = heads.taken_and_lse(z, weight, bias, action, share)
    (lse * share * 0.1).sum().backward()
    assert not again
    _, lse = heads.taken_and_lse(z, weight, bias, action, share)
    (lse * 0.1).sum().backward()
    assert again


def test_a_second_backward_gives_the_same_gradient():
    z, weight, bias, action = inputs()
    taken, lse = heads.taken_and_lse(z, weight, bias, action)
    loss = (0.5 * lse - taken).sum()
    first = torch.autograd.grad(loss, (z, weight, bias), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, (z, weight, bias))
    for one, two, copy in zip(first, second, kept, strict=True):
        torch.testing.assert_close(two, one)
        assert torch.equal(one, copy)


def test_gradients_add_up_over_micro_batches():
    z, weight, bias, action = inputs()
    for part in (slice(0, 3), slice(3, 7)):
        taken, lse = heads.taken_and_lse(z[part], weight, bias, action[part])
        (lse - taken).sum().backward()
    taken, lse = plain(z, weight, bias, action)
    want = torch.autograd.grad((lse - taken).sum(), (z, weight, bias))
    for leaf, grad in zip((z, weight, bias), want, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


def test_a_batch_without_rows_has_zero_gradients():
    z, weight, bias, action = inputs(n=0)
    taken, lse = heads.taken_and_lse(z, weight, bias, action)
    (taken.sum() + lse.sum()).backward()
    assert not weight.grad.any()


def test_no_gradient_is_made_for_what_needs_none():
    z, weight, bias, action = inputs()
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    taken, lse = heads.taken_and_lse(z, weight, bias, action)
    (taken + lse).sum().backward()
    assert z.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("chunk", [1 << 26, 1 << 15], ids=["whole", "some rows"])
def test_bf16_is_no_further_from_float64_than_the_plain_table_in_bf16(monkeypatch, chunk):
    monkeypatch.setattr(heads, "CHUNK", chunk)
    monkeypatch.setattr(heads, "LEAST_ROWS", 1)
    exact = inputs(n=64, h=32, v=2000)
    results = []
    for op, dtype in ((plain, torch.float64), (plain, torch.float32), (heads.taken_and_lse, torch.float32)):
        z, weight, bias = (x.detach().to(dtype).requires_grad_() for x in exact[:3])
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            taken, lse = op(z, weight, bias, exact[3])
            loss = (lse.to(torch.promote_types(dtype, torch.float32)) - taken).mean()
        results.append([x.double() for x in (loss, *torch.autograd.grad(loss, (z, weight, bias)))])
    for want, low, ours in zip(*results, strict=True):
        assert (ours - want).norm() <= 1.01 * (low - want).norm() + 1e-9


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


@pytest.mark.parametrize("tied", [False, True])
def test_a_heads_three_readings_agree(tied):
    words = nn.Embedding(11, 5)
    head = (heads.TiedHead(5, 11, words) if tied else heads.VocabularyHead(5, 10, 11)).double()
    words.double()
    heads.init_head(head)
    h = torch.randn(6, 5, dtype=torch.float64)
    action = torch.randint(0, 11, (6,))
    table = head(h)
    want = table.gather(1, action[:, None]).squeeze(1)
    taken, lse = head.taken_and_lse(h, action)
    torch.testing.assert_close(head.taken(h, action), want)
    torch.testing.assert_close(taken, want)
    torch.testing.assert_close(lse, table.logsumexp(1))


def test_a_tied_head_reads_the_embedding_and_does_not_move_it():
    words = nn.Embedding(11, 5)
    head = heads.TiedHead(5, 11, words)
    heads.init_head(head)
    assert not any("embedding" in name for name in head.state_dict())
    h, action = torch.randn(6, 5), torch.randint(0, 11, (6,))
    before = head(h)
    taken, lse = head.taken_and_lse(h, action)
    (lse - taken).sum().backward()
    assert words.weight.grad is None
    assert all(p.grad is not None for p in head.parameters())
    with torch.no_grad():
        words.weight.add_(1.0)
    assert not torch.allclose(head(h), before)
