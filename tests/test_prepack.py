"""Products from laid-out weights: equal to torch's, used where they pay, and gone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ilql import prepack
from ilql.prepack import Prepacked, linear, packs, product

SIZES = {"small": (24, 16), "large": (640, 512)}


def layer(kind: str, size: str, dtype: torch.dtype, bias: bool = True) -> nn.Module:
    out, width = SIZES[size]
    made = Conv1D(out, width) if kind == "conv" else nn.Linear(width, out, bias=bias)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_()
    return made.to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["linear", "unbiased", "conv"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_product_is_the_layers(kind, size, dtype):
    torch.manual_seed(0)
    made = layer(kind, size, dtype, bias=kind == "linear")
    assert packs(made.weight) == (size == "large" and dtype != torch.float64)
    for rows in (1, 8, 33):
        x = torch.randn(rows, SIZES[size][1]).to(dtype)
        want, have = made(x), linear(made)(x)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype] * float(want.abs().max())
        assert have.dtype == dtype
        torch.testing.assert_close(have, want, rtol=0, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_layers_side_by_side(size):
    torch.manual_seed(0)
    layers = [layer("linear", size, torch.float32), layer("unbiased", size, torch.float32, bias=False)]
    x = torch.randn(5, SIZES[size][1])
    want = torch.cat([one(x) for one in layers], 1)
    torch.testing.assert_close(linear(*layers)(x), want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(linear(layers[1], layers[1])(x), layers[1](x).repeat(1, 2), rtol=1e-5, atol=1e-4)


def test_other_layers_are_refused():
    class Adapted(nn.Linear):
        pass

    with pytest.raises(TypeError, match="Adapted is no plain linear layer"):
        linear(nn.Linear(2, 2), Adapted(2, 2))


@torch.no_grad()
def test_large_layers_run_from_the_layout_within_the_block():
    torch.manual_seed(0)
    model = nn.Sequential(layer("linear", "large", torch.float32), nn.ReLU(), nn.Linear(640, 8))
    x = torch.randn(2, 3, 512)
    want = model(x)
    laid = Prepacked(model.modules())
    assert list(laid.products) == [model[0]]
    with laid:
        assert "forward" in vars(model[0])
        torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-4)
        assert list(Prepacked(model.modules()).products) == [], "what is laid out is not laid out again"
    assert all("forward" not in vars(m) for m in model)
    with pytest.raises(ZeroDivisionError), laid:
        1 / 0  # noqa: B018
    assert "forward" not in vars(model[0])


@torch.no_grad()
def test_without_onednn_the_product_is_torchs(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight, x = torch.randn(640, 512), torch.randn(2, 512)
    assert not packs(weight)
    monkeypatch.setattr(prepack, "_packed", None)
    torch.testing.assert_close(product(weight, None)(x), F.linear(x, weight))
