"""Matrix products of a few rows on a CPU. Decision: a decoding step multiplies a handful of rows by every weight, and
so waits for memory; oneDNN reads a weight in its own blocked layout about twice as fast as in torch's, so decoding lays
large weights out once. That costs their memory a second time, for as long as the layers are kept.

Where this is not to be had (another device or number format, a build without oneDNN) torch's own product is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

LARGE = 1 << 18  # numbers in a weight from which the layout pays for a call's overhead

Product = Callable[[Tensor], Tensor]


def packs(weight: Tensor) -> bool:
    """Whether a weight is worth laying out, and can be."""
    if weight.device.type != "cpu" or weight.numel() < LARGE or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def linear(*layers: nn.Module) -> Product:
    """x (T, D) -> the layers' outputs side by side (T, sum of widths). nn.Linear and transformers' Conv1D only.

    Large weights are laid out as above; small ones are kept (in, out), which is read faster where the cache is cold.
    """
    each: Any = layers
    for layer in each:
        if type(layer) not in (nn.Linear, Conv1D):
            raise TypeError(f"{type(layer).__name__} is no plain linear layer")
    weights: list[Tensor] = [(x.weight.T if type(x) is Conv1D else x.weight).detach() for x in each]
    bias = _joined([x.bias for x in each], weights)
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return product(weight, bias)


def product(weight: Tensor, bias: Tensor | None) -> Product:
    """x (T, D) -> x weight^T + bias (T, V) of weight (V, D), for as long as neither changes."""
    if packs(weight):
        return _packed(weight, bias)
    if weight.device.type != "cpu" or weight.numel() >= LARGE:
        return lambda x: F.linear(x, weight, bias)
    turned = weight.T.contiguous()
    if bias is None:
        return lambda x: torch.mm(x, turned)
    return lambda x: torch.addmm(bias, x, turned)


def _packed(weight: Tensor, bias: Tensor | None) -> Product:
    stored = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    call: Any = torch.ops.mkldnn._linear_pointwise.default
    dtype = weight.dtype

    def run(x: Tensor) -> Tensor:
        return call(x if x.dtype == dtype else x.to(dtype), stored, bias, "none", [], "")  # type: ignore[no-any-return]

    return run


def _joined(biases: list[Tensor | None], weights: list[Tensor]) -> Tensor | None:
    if all(b is None for b in biases):
        return None
    each = [w.new_zeros(len(w)) if b is None else b.detach() for b, w in zip(biases, weights, strict=True)]
    return each[0] if len(each) == 1 else torch.cat(each)


class Prepacked:
    """Large linear layers that, within a `with` block, run from the layout."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        large = [m for m in layers if type(m) in (nn.Linear, Conv1D) and packs(m.weight)]  # type: ignore[arg-type]
        self.products = {layer: linear(layer) for layer in large if "forward" not in vars(layer)}

    def __enter__(self) -> None:
        for layer, product in self.products.items():
            layer.forward = product  # type: ignore[method-assign, assignment]

    def __exit__(self, *error: object) -> None:
        for layer in self.products:
            vars(layer).pop("forward", None)
