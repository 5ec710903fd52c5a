"""Rewards of dialogues by a reward model, and datasets that carry them (`python -m ilql.annotate label`). Decision: a
reward belongs to an utterance as a whole, so at token steps it sits on the utterance's last token; Bradley-Terry leaves
zero point and unit of rewards open, so they are set here, once, on the train split, and written into the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_prep.encode import Encoder
from ilql import cached
from ilql.data import Row, collate, longest_window
from ilql.decode import load, model_folder
from ilql.learner import check_fits
from ilql.model import ILQLModel
from ilql.rewrite import rewrite
from ilql.rows import Rows
from ilql.schema import SCHEMA, SPLITS, folder_sha256, read_manifest
from ilql.types import InputError

WHICH = ("last", "all")
ENSEMBLE = ("mean", "min")
NORMALISE = ("standard", "none")


def judge(run: str | Path) -> tuple[ILQLModel, Encoder]:
    """A reward model and the encoder of its tokenizer. Raises InputError for a model that is none."""
    model, encoder = load(run)
    if model.config.algo != "reward_model":
        raise InputError(f"{run} is a run of {model.config.algo}, not of reward_model, and has no rewards to give")
    return model, encoder


def check_judge(model: ILQLModel, encoder: Encoder, rows: Rows, run: str | Path) -> None:
    """Refuse dialogues that a reward model cannot read."""
    theirs = Encoder.from_folder(rows.folder / "tokenizer").tokenizer
    if encoder.tokenizer.get_vocab() != theirs.get_vocab():
        raise InputError(
            f"{rows.folder} was built with another tokenizer than {run}; build it with --tokenizer {run}/model"
        )
    rows.check(encoder.vocab_size)
    check_fits(model, max((longest_window(row, model.config.history) for row in rows), default=0), encoder.vocab_size)


def whole(row: Row) -> dict[str, Any]:
    """A dialogue whose transitions are the agent's utterances, whatever its time step: actions that follow each other
    at once are one."""
    start, end = row["start"], row["end"]
    first = np.flatnonzero(np.append(True, start[1:] != end[:-1]))
    last = np.append(first[1:], len(start)) - 1
    return {
        **row,
        "start": start[first],
        "end": end[last],
        "reward": np.zeros(len(first)),
        "logp": np.zeros(len(first)),
    }


@torch.no_grad()
def utterance_rewards(model: ILQLModel, dialogues: Sequence[Row], bos: int) -> Iterator[np.ndarray]:
    """The reward of each of the agent's utterances by every critic, (K, n) float64 a dialogue."""
    made = [whole(row) for row in dialogues]
    batch = collate(made, gamma=1.0, bos=bos, history=model.config.history, bootstraps=False).to(model.device)
    hidden = model.critic_hidden(model.hidden(*batch.run), *batch.run)[batch.where[batch.last]]
    each = torch.stack([q(hidden) for q in model.judges]).double().cpu().numpy()
    yield from np.split(each, np.cumsum([len(row["start"]) for row in made])[:-1], axis=1)


def spread(row: Row, rewards: np.ndarray, which: str) -> np.ndarray:
    """Rewards of utterances (n) as a row's column `reward`, float32: on an utterance's last transition."""
    closes = np.append(row["start"][1:] != row["end"][:-1], True)
    out = np.zeros(len(closes), np.float32)
    place = np.flatnonzero(closes)
    if which == "last":
        place, rewards = place[-1:], rewards[-1:]
    out[place] = rewards
    return out


def label(
    run: str | Path,
    dataset: str | Path,
    output: str | Path | None = None,
    *,
    which: str = "last",
    ensemble: str = "mean",
    normalise: str = "standard",
    tokens: int = 16384,
) -> Path:
    """Write a dataset whose rewards are those of a reward model; returns its folder, which must be new.

    run: a run of reward_model, which reads the dialogues in the window of its own history. output: None for
    DATASET-labelled. which: the agent's utterances that get a reward, the last of a dialogue (what was compared in
    training, so all of the dialogue is judged there) or all. ensemble: what several critics agree on, their mean or
    their minimum. normalise: "standard" takes the mean over the train split off and divides by the standard deviation,
    "none" leaves rewards as they are. tokens: of dialogues that the model runs on at a time. The manifest says all of
    this under `label`. Raises InputError where run and dataset do not fit.
    """
    given = (("which", which, WHICH), ("ensemble", ensemble, ENSEMBLE), ("normalise", normalise, NORMALISE))
    for option, value, words in given:
        if value not in words:
            raise InputError(f"--{option} is {value!r}, not one of {', '.join(words)}")
    dataset = Path(dataset)
    folder = Path(output) if output is not None else dataset.with_name(f"{dataset.name}-labelled")
    if folder.exists():
        raise InputError(f"{folder} exists; name another --output")
    model, encoder = judge(run)
    splits = {split: Rows(dataset, split) for split in SPLITS}
    found: dict[str, list[np.ndarray]] = {}
    for split, rows in splits.items():
        check_judge(model, encoder, rows, run)
        found[split] = list(_rewards(model, rows, encoder.bos_id, ensemble, tokens))
    last = which == "last"
    known = np.concatenate([each[-1:] if last else each for each in found["train"]])
    mean, scale = (float(known.mean()), float(known.std())) if normalise == "standard" else (0.0, 1.0)
    if not scale > 0:
        raise InputError(f"{run} gives every dialogue of {dataset} the same reward; --normalise none leaves it so")
    columns = {
        split: [spread(row, (r - mean) / scale, which) for row, r in zip(splits[split], each, strict=True)]
        for split, each in found.items()
    }
    about: dict[str, Any] = {
        "name": str(run),
        "digest": folder_sha256(model_folder(run)),
        "history": model.config.history,
    }
    about |= {"which": which, "ensemble": ensemble, "normalise": normalise, "mean": mean, "scale": scale}
    about["rewards"] = {split: _summary(each) for split, each in columns.items() if each}
    manifest = read_manifest(dataset)
    kept = {k: v for k, v in manifest.get("statistics", {}).items() if k not in SPLITS}
    for split in SPLITS:  # what was counted of the rewards that are gone
        gone = ("reward", "return", "nonzero_reward_share")
        if split in manifest.get("statistics", {}):
            kept[split] = {k: v for k, v in manifest["statistics"][split].items() if k not in gone}
    rewrite(dataset, folder, SCHEMA.field("reward"), columns, {"label": about, "statistics": kept})
    return folder


def _rewards(model: ILQLModel, rows: Rows, bos: int, ensemble: str, tokens: int) -> Iterable[np.ndarray]:
    """The reward of each utterance, (n) a dialogue."""
    for _, dialogues in cached.groups(rows, tokens):
        for each in utterance_rewards(model, dialogues, bos):
            yield each.mean(0) if ensemble == "mean" else each.min(0)


def _summary(columns: Sequence[np.ndarray]) -> dict[str, float]:
    """Of the returns of dialogues."""
    returns = np.array([column.sum() for column in columns], np.float64)
    return {"dialogues": len(returns), "mean": float(returns.mean()), "std": float(returns.std())}
