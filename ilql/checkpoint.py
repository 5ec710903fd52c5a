"""Checkpoints that survive a kill and say when they did not. Decision: safetensors and JSON only, nothing is pickled,
so that a checkpoint from a stranger is data and never code.

A checkpoint is a folder. It is written beside its place under a temporary name, every file is flushed to the disk,
`manifest.json` (size and sha256 of each file, and its own digest) is written last, and then the folder is renamed. So a
folder under its final name is whole, and one that was damaged later is told from its digests.
"""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ilql import atomic, sealed
from ilql.types import InputError

INVALID = "invalid-"
_STEP = re.compile(r"step-(\d+)")
_NAME = re.compile(r"[A-Za-z0-9_]+\.(safetensors|json)")


def save(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]) -> None:
    """Write one checkpoint: `<name>.safetensors` for each of `tensors`, `<name>.json` for each of `documents`.

    On any failure nothing under the final name has changed, and the temporary folder is removed.
    """
    size = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    texts = {name: json.dumps(document, indent=1, allow_nan=False) + "\n" for name, document in documents.items()}
    size += sum(map(len, texts.values())) + (1 << 16)
    mend = f"{atomic.FREE}, then use --resume; earlier checkpoints are untouched"
    with atomic.folder(folder, size, replace=True, mend=mend) as temporary:
        for name, group in tensors.items():
            save_file({k: t.detach().cpu().contiguous() for k, t in group.items()}, temporary / f"{name}.safetensors")
        for name, text in texts.items():
            (temporary / f"{name}.json").write_text(text, encoding="utf-8")
        sealed.seal(temporary)


def verify(folder: Path) -> list[str]:
    """The names of a checkpoint's files, after every byte was checked. Raises Damaged with the reason."""
    return sealed.verify(folder, known=_NAME)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors (on the CPU) and documents of a checkpoint, as `save` was given them. Raises Damaged."""
    tensors: dict[str, dict[str, Tensor]] = {}
    documents: dict[str, Any] = {}
    for name in verify(folder):
        stem, kind = name.rsplit(".", 1)
        if kind == "json":
            documents[stem] = json.loads((folder / name).read_bytes())
        else:
            tensors[stem] = load_file(folder / name)
    return tensors, documents


def best_weights(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights of a run's best checkpoint, which nobody has looked at since it was made."""
    path = folder / f"step-{step}"
    try:
        return load(path)[0]["model"]
    except (sealed.Damaged, OSError) as error:
        raise InputError(
            f"{path} has the best weights and cannot be loaded ({error}); put it back, or let model/ have the last "
            "weights: --resume --log.model last"
        ) from None


def steps(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, in rising order, whether valid or not."""
    found = {int(m[1]): p for p in folder.glob("step-*") if p.is_dir() and (m := _STEP.fullmatch(p.name))}
    return dict(sorted(found.items()))


def begun(folder: Path) -> bool:
    """Whether a run has a checkpoint, be it one that was moved away to be exchanged when the process was killed."""
    return bool(steps(folder)) or any(folder.glob(f"{atomic.OLD}step-*"))


def latest(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest valid checkpoint of a `checkpoints` folder (None where there is none), and why newer ones are not."""
    skipped: dict[Path, str] = {}
    for path in reversed(steps(folder).values()):
        try:
            verify(path)
        except (sealed.Damaged, OSError) as error:
            skipped[path] = str(error)
        else:
            return path, skipped
    return None, skipped


def set_aside(paths: Iterable[Path]) -> None:
    """Rename damaged checkpoints, so that they are neither found nor counted among those to keep."""
    for path in paths:
        aside = path.with_name(INVALID + path.name)
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and the one of step `best`."""
    found = steps(folder)
    for step in list(found)[:-keep]:
        if step != best:
            shutil.rmtree(found[step])


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every weight once (tied ones under their first name) and the buffers that are part of the state."""
    state = model.state_dict(keep_vars=True)
    out: dict[str, Tensor] = {name: p.data for name, p in model.named_parameters()}
    return out | {name: b for name, b in model.named_buffers() if name in state}


@torch.no_grad()
def load_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's weights into a model of the same shape, in place; nothing may be missing or left over."""
    mine = model_tensors(model)
    if mine.keys() != tensors.keys():
        name = sorted(mine.keys() ^ tensors.keys())[0]
        raise InputError(f"the checkpoint and the model differ: {name!r} is in one only; use the run's own config.yaml")
    for name, tensor in tensors.items():
        if mine[name].shape != tensor.shape or mine[name].dtype != tensor.dtype:
            raise InputError(f"the checkpoint's {name!r} has another shape or type; use the run's own config.yaml")
        mine[name].copy_(tensor)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter name>/<entry>`; every entry of AdamW's is a tensor."""
    return {f"{names[p]}/{key}": value for p, state in optimizer.state.items() for key, value in state.items()}


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` gave, on each parameter's device; the step counter stays where it was made."""
    by_name = {name: p for p, name in names.items()}
    for full, tensor in tensors.items():
        name, key = full.rsplit("/", 1)
        if name not in by_name:
            raise InputError(
                f"the checkpoint optimizes {name!r}, which the model does not; use the run's own config.yaml"
            )
        parameter = by_name[name]
        device = parameter.device if key != "step" or optimizer.defaults.get("fused") else torch.device("cpu")
        optimizer.state[parameter][key] = tensor.clone().to(device)


def random_states() -> dict[str, Any]:
    """All random states of this process, JSON-able."""
    kind, words, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is used by others
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    version, state, gauss_next = random.getstate()
    return {
        "python": [version, list(state), gauss_next],
        "numpy": [str(kind), np.asarray(words).tolist(), int(position), int(has_gauss), float(gauss)],
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(t) for t in cuda],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore what `random_states` gave."""
    version, state, gauss_next = states["python"]
    random.setstate((version, tuple(state), gauss_next))
    kind, words, *rest = states["numpy"]
    np.random.set_state((kind, np.asarray(words, np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(_decode(states["torch"]))
    if states["cuda"]:
        torch.cuda.set_rng_state_all([_decode(t) for t in states["cuda"]])


def _encode(tensor: Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
