"""What of a trunk is not trained. Decision: what is frozen is what *runs* before the first trained part, found by
running the trunk on a few tokens; so no list of families says where embeddings lie, and nothing that moves can stand
below something that does not. What is frozen is in eval mode, and autograd keeps nothing of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ilql.types import InputError

TRUNK = "trunk"
Freeze = str | int | None  # TRUNK; the number of lowest blocks; or nothing
# Fields of a trunk's config that change no hidden state of a frozen trunk.
HARMLESS = ("use_cache", "initializer_range", "tie_word_embeddings", "vocab_size")


def blocks(lm: PreTrainedModel) -> nn.ModuleList:
    """The trunk's blocks: the longest list of modules of the base model that lies in no other list."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in lm.base_model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    if not found:
        raise InputError(f"model.freeze: the trunk {lm.config.model_type!r} has no list of blocks; use {TRUNK!r}")
    return max(found.values(), key=len)


@torch.no_grad()
def below(lm: PreTrainedModel, count: int) -> list[nn.Module]:
    """The modules that have run when block number `count` begins: the embeddings and the blocks below."""
    known = len(blocks(lm))
    if not 0 <= count < known:
        raise InputError(
            f"model.freeze is {count}, but the trunk has {known} blocks: name 0 to {known - 1}, or {TRUNK!r} for all"
        )
    done: list[nn.Module] = []
    reached = False

    def reach(module: nn.Module, args: Any) -> None:
        nonlocal reached
        reached = True

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if not reached:
            done.append(module)

    handles = [m.register_forward_hook(end) for m in lm.base_model.modules()]
    handles.append(blocks(lm)[count].register_forward_pre_hook(reach))
    try:
        _glance(lm)
    finally:
        for handle in handles:
            handle.remove()
    return done


def apply(lm: PreTrainedModel, freeze: Freeze) -> list[nn.Module]:
    """Take the gradient from what is frozen; returns the modules that have to stay in eval mode."""
    if freeze is None:
        return []
    if freeze != TRUNK:
        modules = below(lm, int(freeze))
        for module in modules:
            module.requires_grad_(False)
        return modules
    lm.requires_grad_(False)
    out = lm.get_output_embeddings()
    if out.weight is not lm.get_input_embeddings().weight:
        out.requires_grad_(True)
    return [lm]


# ---- the border ------------------------------------------------------------------------------------------------------


class _Reached(Exception):
    """A forward pass came to the border; the argument is what block `count` was to read."""


@torch.no_grad()
def border(lm: PreTrainedModel, count: int, run: Callable[[], object]) -> Tensor:
    """What block number `count` reads when `run` runs the trunk, (T, D); the blocks above do not run."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    handle = blocks(lm)[count].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run()
    except _Reached as reached:
        return reached.args[0][0]  # type: ignore[no-any-return]
    finally:
        handle.remove()
    raise InputError(f"model.freeze: the trunk {lm.config.model_type!r} does not run its blocks in turn; use {TRUNK!r}")


class _Skip(nn.Module):
    """Stands where a frozen block does and gives what is known already."""

    def __init__(self, block: nn.Module, hidden: Tensor, as_tuple: bool) -> None:
        super().__init__()
        object.__setattr__(self, "block", block)  # not one of its own modules
        self.hidden, self.as_tuple = hidden, as_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)  # some trunks ask a block for its kind of attention

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.hidden,) if self.as_tuple else self.hidden


@contextmanager
def entering(lm: PreTrainedModel, count: int, hidden: Tensor, as_tuple: bool) -> Iterator[None]:
    """Let the trunk begin with block number `count` >= 1, which reads `hidden` (T, D), within this block."""
    listed = blocks(lm)
    lower = list(listed[:count])
    for i, block in enumerate(lower):
        listed[i] = _Skip(block, hidden[None], as_tuple)
    try:
        yield
    finally:
        for i, block in enumerate(lower):
            listed[i] = block


@torch.no_grad()
def gives_tuples(lm: PreTrainedModel) -> bool:
    """Whether the trunk's blocks give a tuple, as older families' do, and not the hidden states alone."""
    seen: list[Any] = []
    handle = blocks(lm)[0].register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        _glance(lm)
    finally:
        handle.remove()
    return isinstance(seen[0], tuple)


def _glance(lm: PreTrainedModel) -> None:
    """Run the trunk on two tokens."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device=lm.device)
    lm.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)


# ---- identity --------------------------------------------------------------------------------------------------------


def digest(lm: PreTrainedModel, freeze: Freeze, *, rounded: bool = False) -> str:
    """Hex digest of the frozen part: of its weights, and of the config's fields that say how they are used.

    The same for weights that were widened exactly (bf16 to float32 to float64). rounded: and for those that are the
    same in float32.
    """
    sha = hashlib.sha256(json.dumps(_used(lm.config), sort_keys=True, default=str).encode())
    tensors = _tensors(lm, freeze)
    for name in sorted(tensors):
        absorb(sha, name, tensors[name], rounded=rounded)
    return sha.hexdigest()


def absorb(sha: Any, name: str, tensor: Tensor, *, rounded: bool) -> None:
    """Add a tensor to a digest."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point():
        narrow = tensor.float()
        exact = tensor.dtype != torch.float64 or torch.equal(narrow.double(), tensor)
        tensor = narrow if exact or rounded else tensor
    sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _tensors(lm: PreTrainedModel, freeze: Freeze) -> Mapping[str, Tensor]:
    """The frozen weights and buffers under their names in the base model."""
    state: dict[str, Tensor] = lm.base_model.state_dict(keep_vars=True)
    if freeze == TRUNK or freeze is None:
        return state
    kept = {id(t) for module in below(lm, int(freeze)) for t in module.state_dict(keep_vars=True).values()}
    return {name: tensor for name, tensor in state.items() if id(tensor) in kept}


def _used(config: PreTrainedConfig) -> dict[str, Any]:
    general = PreTrainedConfig().to_dict().keys()
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in general
        and name not in HARMLESS
        and not name.startswith(("_", "summary_"))
        and not name.endswith("_token_id")
        and not any(word in name for word in ("dropout", "pdrop"))
    }
