"""Hidden states of a frozen trunk, stored once: how a cache is written, opened and recognised. Decision: a cache says
of which weights, dataset and windows it is, and whoever trains from it compares that with what is at hand.

A folder: `manifest.json` (written last; what the cache is of, the size and sha256 of every file, and its own digest)
and a folder for each split of the dataset with Arrow streams (`ilql.columns`), which are compared with it once a
process. `hidden` has one row a stored position (bf16, which Arrow does not know, as uint16); the others depend on the
form: `ilql.states` where the whole trunk is frozen, `ilql.border` where its lowest blocks are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilql import __version__, atomic, frozen
from ilql.columns import Column, Kinds, Writer, read, row_bytes
from ilql.model import ILQLModel
from ilql.rows import Rows
from ilql.schema import LARGEST, SPLITS, sha256
from ilql.sealed import unchanged, written
from ilql.types import InputError
from ilql.verified import check_files

VERSION = 2
DTYPES = {"bfloat16": "uint16", "float32": "float32", "float64": "float64"}  # as stored
Counts = dict[str, int]


@dataclass(frozen=True)
class Form:
    """What a kind of cache stores of a split. kinds: of each file's columns, by stored type and width. rows: which of
    the counts is a file's number of rows. count: what a split will take. fill: writes a split through writers of the
    files, and yields the number of tokens done."""

    kinds: Callable[[str, int], dict[str, Kinds]]
    rows: Mapping[str, str]
    count: Callable[[Rows, int, int | None, int], Counts]
    fill: Callable[[ILQLModel, Rows, dict[str, Writer], int, int | None, str, int], Iterator[int]]


# ---- writing ---------------------------------------------------------------------------------------------------------


def groups(rows: Rows, budget: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The dialogues of a split in their order, up to `budget` tokens at a time, with the number of the first."""
    ends = np.cumsum(rows.lengths)
    begin = 0
    while begin < len(rows):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield begin, [rows[i] for i in range(begin, end)]
        begin = end


def measure(form: Form, dataset: Path, bos: int, history: int | None, budget: int) -> dict[str, Counts]:
    """What a cache of a dataset will hold, for each split: dialogues and all their tokens; rows of each file."""
    out: dict[str, Counts] = {}
    for split in SPLITS:
        rows = Rows(dataset, split)
        if len(rows):
            out[split] = {"dialogues": len(rows), "tokens": int(rows.lengths.sum())}
            out[split] |= form.count(rows, bos, history, budget)
    return out


def hidden_kind(dtype: str, width: int) -> Kinds:
    return {"h": (DTYPES[dtype], width)}


def total_bytes(form: Form, counts: Mapping[str, Counts], dtype: str, width: int) -> int:
    """Bytes of a cache's columns."""
    each = [(form.rows[name], row_bytes(kinds)) for name, kinds in form.kinds(dtype, width).items()]
    return sum(split[name] * size for split in counts.values() for name, size in each)


@torch.no_grad()
def write(
    form: Form,
    model: ILQLModel,
    dataset: Path,
    folder: Path,
    counts: Mapping[str, Counts],
    *,
    name: str,
    bos: int,
    history: int | None,
    dtype: str,
    budget: int,
    advance: Callable[[int], object] = lambda tokens: None,
) -> None:
    """Write the hidden states of a dataset under the frozen part of `model`'s trunk to a new folder.

    counts: of `measure`. name: of the trunk, for messages. dtype: a key of DTYPES. budget: tokens of dialogues that the
    trunk runs on at a time. advance: is called with the number of tokens done. Nothing stands under the folder's name
    before all is done.
    """
    width = int(model.config.get_text_config().hidden_size)
    model.eval()
    with atomic.folder(folder, total_bytes(form, counts, dtype, width) + (1 << 20)) as temporary:
        for split in counts:
            rows = Rows(dataset, split)
            with ExitStack() as stack:
                kinds = form.kinds(dtype, width)
                to = {n: stack.enter_context(Writer(temporary / split / f"{n}.arrow", k)) for n, k in kinds.items()}
                for done in form.fill(model, rows, to, bos, history, dtype, budget):
                    advance(done)
        freeze = model.config.freeze
        about = {
            "trunk": {"name": name, "digest": frozen.digest(model.lm, freeze), "freeze": freeze},
            "dataset": {"name": str(dataset), "sha256": sha256(dataset / "manifest.json")},
            "step": rows.manifest["step"],
            "history": "full" if history is None else history,
            "dtype": dtype,
            "width": width,
            "splits": counts,
        }
        _describe(temporary, about)


def _describe(folder: Path, about: dict[str, Any]) -> None:
    """Write the manifest, the last file."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    files = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in paths}
    manifest = {"version": VERSION, "package": __version__, **about, "files": files}
    (folder / "manifest.json").write_text(written(manifest), encoding="utf-8")


def numbers(hidden: Tensor, dtype: str) -> np.ndarray:
    """Hidden states (N, D) as they are stored."""
    stored = hidden.to(getattr(torch, dtype)).cpu()
    out: np.ndarray = stored.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else stored.numpy()
    return out


def tensor(stored: np.ndarray, dtype: str) -> Tensor:
    """Stored numbers as a tensor of their type, sharing memory."""
    if dtype != "bfloat16":
        return torch.from_numpy(stored)
    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cache:
    """An opened cache, of the dataset and history that it was asked for."""

    folder: Path
    manifest: dict[str, Any]
    remedy: str  # the command that makes the right one

    def columns(self, form: Form, split: str) -> dict[str, dict[str, Column]]:
        """The columns of each of a split's files, memory-mapped. Raises InputError where a file is not exactly
        what the manifest says."""
        try:
            return self._columns(form, split)
        except (KeyError, TypeError, AttributeError):  # sealed by somebody who writes other manifests
            raise InputError(f"{self.folder / 'manifest.json'} is no manifest of a cache; {self.remedy}") from None

    def _columns(self, form: Form, split: str) -> dict[str, dict[str, Column]]:
        counts = self.manifest["splits"].get(split)
        if counts is None:
            raise InputError(f"{self.folder} has no {split} split; {self.remedy}")
        out: dict[str, dict[str, Column]] = {}
        for name, kinds in form.kinds(self.manifest["dtype"], self.manifest["width"]).items():
            path = self.folder / split / f"{name}.arrow"
            check_files(self.folder, self.manifest["files"], [f"{split}/{name}.arrow"], self.remedy)
            out[name] = read(path, kinds)
            rows = len(next(iter(out[name].values())))
            if rows != counts[form.rows[name]]:
                raise InputError(f"{path} has {rows} rows instead of {counts[form.rows[name]]}; {self.remedy}")
        return out

    def check_trunk(self, model: ILQLModel, name: str) -> None:
        """Refuse a model whose frozen part is not the one that the hidden states are of. name: of the model's trunk."""
        trunk = self.manifest["trunk"]
        mine = frozen.digest(model.lm, trunk["freeze"])
        if mine != trunk["digest"]:
            raise InputError(
                f"data.cache: {self.folder} holds hidden states of the trunk {trunk['name']} ({trunk['digest'][:12]}), "
                f"but this run's trunk is {name} ({mine[:12]}); {self.remedy}"
            )


def open_cache(
    folder: str | Path,
    dataset: str | Path,
    history: int | None,
    trunk: str,
    freeze: frozen.Freeze = frozen.TRUNK,
    layers: int = 0,
) -> Cache:
    """Open a cache for training on `dataset` with windows of `history`, with so much of the trunk frozen. trunk: the
    run or model folder that the run starts from, for the command that a message names; layers: the blocks that are
    trained, likewise. Raises InputError where the cache is of something else."""
    folder, dataset = Path(folder), Path(dataset)
    windows = "full" if history is None else history
    remedy = f"make the right one: python -m ilql.annotate cache {trunk} {dataset} --output NEW --history {windows}"
    remedy += f" --layers {layers}" if layers else ""
    path = folder / "manifest.json"
    if path.is_symlink() or not path.is_file():
        raise InputError(f"data.cache: {folder} is not a cache: it has no manifest.json; {remedy}")
    try:
        text = path.read_bytes() if path.stat().st_size <= LARGEST else b""
        manifest = json.loads(text)
        version, theirs, window = manifest["version"], manifest["dataset"], manifest["history"]
        depth = manifest["trunk"]["freeze"]
        known = all(name in manifest for name in ("splits", "files", "dtype", "width"))
    except (ValueError, KeyError, TypeError, RecursionError):
        known, version, text = False, None, b""
    old = version == 1 and "digest" not in manifest  # it had none
    if not known or not (version == VERSION or old):
        raise InputError(f"data.cache: {path} is not a manifest of version {VERSION}; {remedy}")
    if not old and not unchanged(manifest, text):
        raise InputError(f"data.cache: {path} does not match its own digest, so it was changed; {remedy}")
    mine = sha256(dataset / "manifest.json")
    if theirs["sha256"] != mine:
        raise InputError(
            f"data.cache: {folder} is of the dataset {theirs['name']} ({theirs['sha256'][:12]}), but data.path is "
            f"{dataset} ({mine[:12]}); {remedy}"
        )
    if window != windows:
        raise InputError(f"data.cache: {folder} has history {window}, but data.history is {windows}; {remedy}")
    if depth != freeze:
        raise InputError(f"data.cache: {folder} is for model.freeze {depth}, but here that is {freeze}; {remedy}")
    return Cache(folder, manifest, remedy)
