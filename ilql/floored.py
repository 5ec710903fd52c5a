"""log-sum-exp over the vocabulary with a floor under every value, as a calibrated penalty needs it (Cal-QL, Nakamoto et
al. 2023). Decision: plain operations on a few rows at a time, made again in backward; so no table of decisions x
vocabulary outlives its chunk, and the operator of `ilql.heads`, which everything else uses, stays as simple as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ilql import heads


def floored_lse(z: Tensor, weight: Tensor, bias: Tensor, floor: Tensor) -> Tensor:
    """log sum_a exp max(q_a, floor) with q = z W^T + b: z (N, H), weight (V, H), bias (V), floor (N) -> (N), in float32
    or wider. A value below its floor has no gradient. -inf is no floor."""
    most = max(1, heads.CHUNK // (len(weight) * z.element_size()))
    parts = zip(z.split(most), floor.split(most), strict=True)
    return torch.cat([checkpoint(_part, part, weight, bias, low, use_reentrant=False) for part, low in parts])


def _part(z: Tensor, weight: Tensor, bias: Tensor, floor: Tensor) -> Tensor:
    q = F.linear(z, weight, bias)
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    return torch.where(q < floor[:, None], floor[:, None].to(q.dtype), q).logsumexp(1)
