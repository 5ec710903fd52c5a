"""The exact divergence from the prior, against whole tables."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ilql import divergence as module
from ilql import heads
from ilql.divergence import divergence


def parts(
    rows: int = 7, width: int = 5, words: int = 11, bias: bool = True, dtype: Any = torch.float64
) -> list[Tensor]:
    """z, weight, bias of the actor, then of the prior."""
    torch.manual_seed(0)
    shapes = [(rows, width), (words, width), (words,)] * 2
    made = [torch.randn(*shape, dtype=dtype) for shape in shapes]
    return made


def kl(z: Tensor, weight: Tensor, bias: Tensor, z0: Tensor, weight0: Tensor, bias0: Tensor) -> Tensor:
    own, prior = SimpleNamespace(weight=weight, bias=bias), SimpleNamespace(weight=weight0, bias=bias0)
    return divergence(z, own, z0, prior)


def plain(z: Tensor, weight: Tensor, bias: Tensor, z0: Tensor, weight0: Tensor, bias0: Tensor) -> Tensor:
    logp, prior = (z @ weight.T + bias).log_softmax(-1), (z0 @ weight0.T + bias0).log_softmax(-1)
    return (logp.exp() * (logp - prior)).sum(-1)


@pytest.mark.parametrize("chunk", [1, 11 * 8 * 4 * 2, 1 << 26], ids=["a row", "two rows", "all"])
def test_value_and_gradient_are_those_of_the_whole_table(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(heads, "CHUNK", chunk)
    most: list[int] = []
    real = module._log_softmax
    monkeypatch.setattr(module, "_log_softmax", lambda z, to: most.append(len(z)) or real(z, to))
    made = [x.requires_grad_() for x in parts()]
    weight = torch.randn(7, dtype=torch.float64)
    got, want = kl(*made), plain(*made)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert max(most) == {1: 1, 11 * 8 * 4 * 2: 2}.get(chunk, 7)
    ours = torch.autograd.grad((got * weight).sum(), made[:3])
    theirs = torch.autograd.grad((want * weight).sum(), made[:3])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    made = parts(rows=3, width=4, words=6)
    own = [x.requires_grad_() for x in made[:3]]
    assert torch.autograd.gradcheck(lambda *own: kl(*own, *made[3:]), own)


def test_worked_by_hand() -> None:
    # pi = (1/2, 1/2), p = (1/4, 3/4): 1/2 log 2 + 1/2 log (2/3)
    one = torch.ones(1, 1, dtype=torch.float64)
    own = torch.zeros(2, 1, dtype=torch.float64)
    prior = torch.tensor([[1.0], [3.0]], dtype=torch.float64).log()
    got = divergence(one, SimpleNamespace(weight=own), one, SimpleNamespace(weight=prior))
    assert got.item() == pytest.approx(0.5 * torch.log(torch.tensor(4 / 3, dtype=torch.float64)).item(), rel=1e-12)


def test_what_the_actor_rules_out_does_not_count() -> None:
    z, weight, bias, z0, weight0, bias0 = parts()
    bias[3] = -torch.inf
    own = [x.requires_grad_() for x in (z, weight, bias)]
    found = kl(*own, z0, weight0, bias0)
    assert found.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), own))


def test_nothing_of_the_prior_has_a_gradient_and_bf16_is_summed_wide() -> None:
    made = [x.requires_grad_() for x in parts(dtype=torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        found = kl(*made)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(*made), rtol=0.1, atol=0.1)
    found.sum().backward()
    assert [x.grad is not None for x in made] == [True] * 3 + [False] * 3
