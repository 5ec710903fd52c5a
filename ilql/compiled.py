"""`torch.compile` for training. Decision: an option that no recipe sets. Each block of the trunk is compiled by itself,
for any length; attention within packed pieces stays as it is, since its shapes differ from batch to batch. On CPUs it
gains little and takes half a minute to compile; it is for long runs on a GPU, where it has not been tried.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface

from ilql import packed
from ilql.frozen import blocks
from ilql.model import ILQLModel


def compile_blocks(model: ILQLModel, backend: str = "inductor") -> None:
    """Compile the trunk's blocks in place; names of weights and results stay the same, but for rounding."""
    AttentionInterface.register(packed.NAME, torch.compiler.disable(packed.attention))
    for block in blocks(model.lm):
        block.compile(dynamic=True, backend=backend)
