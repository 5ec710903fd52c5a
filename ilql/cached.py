"""Hidden states of a frozen trunk, stored once: how a cache is written, read and recognised. Decision: what is stored
is what training reads and no more: h_t where a state, an action token or a bootstrap is read, and at the last token of
an action (for critics of utterances). Beside them lie index columns, one row a decision, so that a batch of any
decisions is a few gathers.

A folder: `manifest.json` (written last; what the cache is of, and the size and sha256 of every file) and a folder for
each split of the dataset with three Arrow streams (`ilql.columns`): `hidden` (one row a stored position; bf16, which
Arrow does not know, as uint16), `decisions` and `tokens` (one row an action token).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ilql import __version__, checkpoint, frozen
from ilql.columns import Column, Kinds, Writer, read, row_bytes
from ilql.data import Batch, collate, decisions
from ilql.model import ILQLModel
from ilql.rows import Rows
from ilql.schema import SPLITS, sha256
from ilql.types import InputError

VERSION = 1
DTYPES = {"bfloat16": "uint16", "float32": "float32", "float64": "float64"}  # as stored
TERMINAL, STATE, NOTHING = 0, 1, 2  # what follows a decision: nothing after the end, a next state, nothing in the log
DECISIONS: Kinds = {
    "dialogue": ("int32", 1),  # number of the dataset's row
    "token": ("int64", 1),  # the action's first row in `tokens`
    "size": ("int32", 1),  # and how many it has
    "last": ("int64", 1),  # rows in `hidden`: h at the action's last token
    "next": ("int64", 1),  # and at the next state, where there is one
    "reward": ("float32", 1),
    "follows": ("int8", 1),
}
TOKENS: Kinds = {"token": ("int32", 1), "read": ("int64", 1)}  # id, and the row in `hidden` where its logits are read


# ---- writing ---------------------------------------------------------------------------------------------------------


class Laid(NamedTuple):
    """Some dialogues in a row. rows: of the trunk's output for `batch.run`, to be stored in this order; columns of
    DECISIONS and TOKENS, whose row numbers count from the first of these dialogues."""

    batch: Batch
    rows: np.ndarray
    decisions: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]


def lay(rows: Rows, bos: int, history: int | None, budget: int) -> Iterator[Laid]:
    """The dialogues of a split in their order, up to `budget` tokens of them at a time."""
    ends = np.cumsum(rows.lengths)
    begin = 0
    while begin < len(rows):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield _lay([rows[i] for i in range(begin, end)], begin, bos, history)
        begin = end


def _lay(dialogues: list[dict[str, Any]], first: int, bos: int, history: int | None) -> Laid:
    # gamma 1 shows in `discount` where a next state follows; a last transition without one is kept for cloning.
    batch = collate(dialogues, gamma=1.0, bos=bos, history=history, bootstraps=False, acted=True)
    where = batch.where.numpy()
    follows = np.where(batch.discount.numpy() != 0, STATE, TERMINAL)
    counts = np.array([len(row["start"]) for row in dialogues])
    whole = [decisions(r["start"], r["end"], len(r["tokens"]), bool(r["terminated"])).has_next for r in dialogues]
    follows[(np.cumsum(counts) - 1)[~np.array(whole)]] = NOTHING
    places = [where[batch.target.numpy() - 1], where[batch.last.numpy()], where[batch.next.numpy()[follows == STATE]]]
    stored, back = np.unique(np.concatenate(places), return_inverse=True)
    read_at, last, after = np.split(back, np.cumsum([len(p) for p in places])[:-1])
    following = np.zeros(len(follows), np.int64)
    following[follows == STATE] = after
    size = np.bincount(batch.owner.numpy(), minlength=batch.n)
    columns = {
        "dialogue": np.repeat(np.arange(len(dialogues)) + first, counts),
        "token": np.cumsum(size) - size,
        "size": size,
        "last": last,
        "next": following,
        "reward": np.concatenate([row["reward"] for row in dialogues]),
        "follows": follows,
    }
    tokens = {"token": batch.tokens.numpy()[batch.target.numpy()], "read": read_at}
    return Laid(batch, stored, columns, tokens)


def measure(dataset: Path, bos: int, history: int | None, budget: int) -> dict[str, dict[str, int]]:
    """What a cache of a dataset will hold, for each split: dialogues and all their tokens; rows of each file."""
    out: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        rows = Rows(dataset, split)
        counts = {"dialogues": len(rows), "tokens": int(rows.lengths.sum()), "positions": 0, "decisions": 0}
        counts["actions"] = 0
        for laid in lay(rows, bos, history, budget):
            counts["positions"] += len(laid.rows)
            counts["decisions"] += len(laid.decisions["token"])
            counts["actions"] += len(laid.tokens["token"])
        if counts["dialogues"]:
            out[split] = counts
    return out


def hidden_kind(dtype: str, width: int) -> Kinds:
    return {"h": (DTYPES[dtype], width)}


def total_bytes(counts: dict[str, dict[str, int]], dtype: str, width: int) -> int:
    """Bytes of a cache's columns."""
    each = {"positions": hidden_kind(dtype, width), "decisions": DECISIONS, "actions": TOKENS}
    return sum(split[name] * row_bytes(kinds) for split in counts.values() for name, kinds in each.items())


@torch.no_grad()
def write(
    model: ILQLModel,
    dataset: Path,
    folder: Path,
    counts: dict[str, dict[str, int]],
    *,
    name: str,
    bos: int,
    history: int | None,
    dtype: str,
    budget: int,
    advance: Callable[[int], object] = lambda tokens: None,
) -> None:
    """Write the hidden states of a dataset under `model`'s trunk to a new folder.

    counts: of `measure`. name: of the trunk, for messages. dtype: a key of DTYPES. budget: tokens of dialogues that the
    trunk runs on at a time. advance: is called with the number of tokens done. Nothing stands under the folder's name
    before all is done.
    """
    width = int(model.config.get_text_config().hidden_size)
    model.eval()
    temporary = checkpoint.make_temporary(folder, total_bytes(counts, dtype, width) + (1 << 20))
    try:
        for split in counts:
            rows = Rows(dataset, split)
            with ExitStack() as stack:
                kinds = {"hidden": hidden_kind(dtype, width), "decisions": DECISIONS, "tokens": TOKENS}
                to = {n: stack.enter_context(Writer(temporary / split / f"{n}.arrow", k)) for n, k in kinds.items()}
                for laid in lay(rows, bos, history, budget):
                    hidden = model.hidden(*laid.batch.to(model.device).run)[torch.from_numpy(laid.rows)]
                    _append(to, laid, _numbers(hidden, dtype))
                    which = laid.decisions["dialogue"]
                    advance(int(rows.lengths[which[0] : which[-1] + 1].sum()))
        about = {
            "trunk": {"name": name, "digest": frozen.digest(model.lm, frozen.TRUNK), "freeze": frozen.TRUNK},
            "dataset": {"name": str(dataset), "sha256": sha256(dataset / "manifest.json")},
            "step": rows.manifest["step"],
            "history": "full" if history is None else history,
            "dtype": dtype,
            "width": width,
            "splits": counts,
        }
        _describe(temporary, about)
        checkpoint.publish(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _append(to: dict[str, Writer], laid: Laid, hidden: np.ndarray) -> None:
    """Some dialogues behind those that are written; row numbers count over all of them."""
    states, tokens = to["hidden"].rows, to["tokens"].rows
    columns = laid.decisions
    moved = {
        "token": columns["token"] + tokens,
        "last": columns["last"] + states,
        "next": np.where(columns["follows"] == STATE, columns["next"] + states, 0),
    }
    to["decisions"].add(**columns | moved)
    to["tokens"].add(token=laid.tokens["token"], read=laid.tokens["read"] + states)
    to["hidden"].add(h=hidden)


def _describe(folder: Path, about: dict[str, Any]) -> None:
    """Write the manifest, the last file."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    files = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in paths}
    manifest = {"version": VERSION, "package": __version__, **about, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _numbers(hidden: Tensor, dtype: str) -> np.ndarray:
    stored = hidden.to(getattr(torch, dtype)).cpu()
    out: np.ndarray = stored.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else stored.numpy()
    return out


def tensor(stored: np.ndarray, dtype: str) -> Tensor:
    """Stored numbers as a tensor of their type, sharing memory."""
    if dtype != "bfloat16":
        return torch.from_numpy(stored)
    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)


# ---- reading ---------------------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """The columns of a split, memory-mapped."""

    hidden: Column
    decisions: dict[str, Column]
    tokens: dict[str, Column]


@dataclass(frozen=True)
class Cache:
    """An opened cache, of the dataset and history that it was asked for."""

    folder: Path
    manifest: dict[str, Any]
    remedy: str  # the command that makes the right one

    def split(self, name: str) -> Split:
        """Raises InputError where a file was cut or is not what the manifest says."""
        counts = self.manifest["splits"].get(name)
        if counts is None:
            raise InputError(f"{self.folder} has no {name} split; {self.remedy}")
        kinds = {"hidden": hidden_kind(self.manifest["dtype"], self.manifest["width"])}
        kinds |= {"decisions": DECISIONS, "tokens": TOKENS}
        columns: dict[str, dict[str, Column]] = {}
        for part, kind in kinds.items():
            path = self.folder / name / f"{part}.arrow"
            wanted = self.manifest["files"][f"{name}/{part}.arrow"]["bytes"]
            found = path.stat().st_size if path.is_file() else 0
            if found != wanted:
                raise InputError(f"{path} has {found} bytes instead of {wanted}; {self.remedy}")
            columns[part] = read(path, kind)
        out = Split(columns["hidden"]["h"], columns["decisions"], columns["tokens"])
        for column, counted in ((out.hidden, "positions"), (out.decisions["token"], "decisions")):
            if len(column) != counts[counted]:
                raise InputError(f"{self.folder}/{name} has {len(column)} {counted}, not {counts[counted]}")
        return out

    def check_trunk(self, model: ILQLModel, name: str) -> None:
        """Refuse a model whose frozen part is not the one that the hidden states are of. name: of the model's trunk."""
        mine = frozen.digest(model.lm, frozen.TRUNK)
        trunk = self.manifest["trunk"]
        if mine != trunk["digest"]:
            raise InputError(
                f"data.cache: {self.folder} holds hidden states of the trunk {trunk['name']} ({trunk['digest'][:12]}), "
                f"but this run's trunk is {name} ({mine[:12]}); {self.remedy}"
            )


def open_cache(folder: str | Path, dataset: str | Path, history: int | None, trunk: str) -> Cache:
    """Open a cache for training on `dataset` with windows of `history`. trunk: the run or model folder that the run
    starts from, for the command that a message names. Raises InputError where the cache is of something else."""
    folder, dataset = Path(folder), Path(dataset)
    windows = "full" if history is None else history
    remedy = f"make the right one: python -m ilql.annotate cache {trunk} {dataset} --output NEW --history {windows}"
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(f"data.cache: {folder} is not a cache: it has no manifest.json; {remedy}")
    try:
        manifest = json.loads(path.read_bytes())
        version, theirs, window = manifest["version"], manifest["dataset"], manifest["history"]
        known = all(name in manifest for name in ("splits", "files", "dtype", "width", "trunk"))
    except (ValueError, KeyError, TypeError, RecursionError):
        known, version = False, None
    if not known or version != VERSION:
        raise InputError(f"data.cache: {path} is not a manifest of version {VERSION}; {remedy}")
    mine = sha256(dataset / "manifest.json")
    if theirs["sha256"] != mine:
        raise InputError(
            f"data.cache: {folder} is of the dataset {theirs['name']} ({theirs['sha256'][:12]}), but data.path is "
            f"{dataset} ({mine[:12]}); {remedy}"
        )
    if window != windows:
        raise InputError(f"data.cache: {folder} has history {window}, but data.history is {windows}; {remedy}")
    return Cache(folder, manifest, remedy)
