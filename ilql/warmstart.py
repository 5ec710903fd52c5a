"""Start from other weights: another run's (`init_from`) or a pretrained trunk's. Decision: the trunk must fit as a
whole, or the run would not start where the user thinks; a head is taken where all of its weights fit, and otherwise
left fresh. So behaviour cloning can come first and critics after it, and the report says which part came from where.
Token ids must mean the same in the weights and in the dataset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from datasets_prep import stranger
from ilql.checkpoint import model_tensors
from ilql.model import ILQLModel
from ilql.sealed import check_weights, reading
from ilql.types import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def tokenizer_of(run: Path) -> str | None:
    """The sha256 of the tokenizer that a run was trained with; None where the folder does not say."""
    path = run / "data.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["tokenizer"]["sha256"]) if path.is_file() else None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not the data.json of a run; name another init_from") from None


def check_vocabulary(pretrained: str, mine: Mapping[str, int], dataset: str) -> None:
    """Refuse a dataset whose token ids mean something else than those of a pretrained trunk. mine: the dataset's tokens
    and their ids; it may have more than the trunk's tokenizer. A folder without a tokenizer says nothing."""
    folder = Path(pretrained)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return
    stranger.check(folder / "tokenizer.json")
    with reading(f"model.pretrained: the tokenizer of {pretrained!r} cannot be loaded"):
        theirs = AutoTokenizer.from_pretrained(pretrained, trust_remote_code=False).get_vocab()
    for token, number in theirs.items():
        if mine.get(token) != number:
            here = mine.get(token, "no token")
            raise InputError(
                f"model.pretrained: {dataset} has another tokenizer than the model ({token!r} is {number} there and "
                f"{here} here); build the dataset with --tokenizer {pretrained}"
            )


def _part(name: str) -> str:
    """The unit that is loaded whole: `lm`, another trunk, `v`, or one critic such as `q.0`."""
    first, second, *_ = name.split(".")
    return f"{first}.{second}" if second.isdigit() else first


@torch.no_grad()
def load(model: ILQLModel, run: Path) -> str:
    """Copy the weights of RUN/model into `model`; returns a sentence that says what was loaded and what is fresh."""
    folder = run / "model"
    if not (folder / "config.json").is_file():
        raise InputError(f"init_from: {run} has no model folder; name the folder of a finished run")
    check_weights(folder)
    with reading(f"init_from: {folder} cannot be loaded"):
        source = ILQLModel.from_pretrained(
            folder, dtype=next(model.parameters()).dtype, trust_remote_code=False, use_safetensors=True
        )
    if source.config.prefix != model.config.prefix and source.config.prefix is not None:
        raise InputError(
            f"init_from: {run} reads {source.config.prefix['size']} numbers with every dialogue, and the dataset has "
            f"{'none' if model.config.prefix is None else model.config.prefix['size']}; build it with as many"
        )
    theirs, mine = model_tensors(source), model_tensors(model)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in mine.items():
        if _part(name) not in ("prior", "target_actor"):  # which begin as this run's actor
            parts.setdefault(_part(name), {})[name] = tensor
    loaded: list[str] = []
    fresh: list[str] = []
    for part, tensors in parts.items():
        unfit = [n for n, t in tensors.items() if n not in theirs or theirs[n].shape != t.shape]
        if unfit and part == "lm":
            there = tuple(theirs[unfit[0]].shape) if unfit[0] in theirs else "missing"
            raise InputError(
                f"init_from: {unfit[0]} is {there} in {folder} but {tuple(tensors[unfit[0]].shape)} here; "
                "give model.* the same values as that run's config.yaml"
            )
        (fresh if unfit else loaded).append(part)
        if not unfit:
            for name, tensor in tensors.items():
                tensor.copy_(theirs[name])
    more = [part for part in fresh if part in ("critic_trunk", "target_trunk")]
    model.begin_trunks(more)
    model.begin_actors()
    said = f"loaded {', '.join(loaded)} from {folder}"
    said += f"; begin as the trunk: {', '.join(more)}" if more else ""
    fresh = [part for part in fresh if part not in more]
    said += "; this actor stays as the prior" if model.prior is not None else ""
    return said + (f"; fresh: {', '.join(fresh)}" if fresh else "")
