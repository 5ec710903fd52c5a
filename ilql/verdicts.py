"""How well a reward model tells which of two dialogues was preferred: `eval.py RUN --data PAIRS`. Decision: a reward is
judged by what it says of pairs alone, the probability sigmoid(r_chosen - r_rejected); intervals resample conversations,
as pairs of one conversation are no independent witnesses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_prep.encode import Encoder
from ilql.data import Row
from ilql.model import ILQLModel
from ilql.pairs import check_pairs
from ilql.report import interval, table
from ilql.rewarded import check_judge, judge, utterance_rewards
from ilql.rows import Rows
from ilql.types import InputError

BINS = 10  # of equally wide confidences from .5 to 1
DIALOGUES = 32  # that are read at a time


@dataclass(frozen=True)
class Compared:
    """gain: reward of the preferred dialogue less the other's, the mean over critics; gains (K): by each critic."""

    name: str
    group: str
    gain: float
    gains: np.ndarray


def read_pairs(run: str | Path, data: Sequence[str | Path], split: str) -> list[Compared]:
    """All pairs of a split of datasets under a reward model."""
    model, encoder = judge(run)
    found: list[Compared] = []
    for folder in data:
        rows = Rows(folder, split)
        if not len(rows):
            raise InputError(
                f"{folder} has no dialogue in its {split} split; build it with --validation, or name another"
            )
        check_pairs(rows, "a reward model")
        check_judge(model, encoder, rows, run)
        found += compared(model, encoder, rows)
    return found


def compared(model: ILQLModel, encoder: Encoder, rows: Rows) -> list[Compared]:
    """The pairs of some rows, in the order of the first of each."""
    each: dict[str, list[tuple[Row, np.ndarray]]] = {}
    for i in range(0, len(rows), DIALOGUES):
        part = [rows[k] for k in range(i, min(i + DIALOGUES, len(rows)))]
        for row, rewards in zip(part, utterance_rewards(model, part, encoder.bos_id), strict=True):
            each.setdefault(str(row["pair"]), []).append((row, rewards[:, -1]))
    out = []
    for name, two in each.items():
        (chosen, best), (_, worst) = sorted(two, key=lambda one: -float(np.sum(one[0]["reward"])))
        group = json.loads(chosen["meta"]).get("group") or name
        out.append(Compared(name, str(group), float((best - worst).mean()), best - worst))
    return out


# ---- what is said of them --------------------------------------------------------------------------------------------


def accuracy(gain: np.ndarray) -> float:
    """Share of pairs, in %, whose preferred dialogue has the larger reward; equal ones count half."""
    return float(100 * (np.sign(gain) + 1).mean() / 2)


def log_loss(gain: np.ndarray) -> float:
    """Mean of -log sigmoid(gain), in nats; a coin has .693."""
    return float(np.logaddexp(0, -gain).mean())


def reliability(gain: np.ndarray, count: int = BINS) -> list[tuple[float, float, int]]:
    """Of each bin of confidence sigmoid(|gain|) that holds any: mean confidence, accuracy (shares), number of pairs."""
    confidence, right = 1 / (1 + np.exp(-np.abs(gain))), (np.sign(gain) + 1) / 2
    place = np.minimum(((confidence - 0.5) * 2 * count).astype(int), count - 1)
    each = ((confidence[place == k], right[place == k]) for k in range(count))
    return [(float(c.mean()), float(r.mean()), len(c)) for c, r in each if len(c)]


def ece(gain: np.ndarray) -> float:
    """Expected calibration error in %: |accuracy - confidence| of each bin, weighed by its pairs (Naeini et al. 2015).

    Over few pairs it is above 0 for the best model too, and a resample's is above that of what it was drawn from.
    """
    return float(100 * sum(abs(right - sure) * n for sure, right, n in reliability(gain)) / len(gain))


def lines(pairs: Sequence[Compared]) -> list[str]:
    """The tables of some pairs."""
    gain, groups = np.array([pair.gain for pair in pairs]), [pair.group for pair in pairs]
    line: dict[str, Any] = {"pairs": f"{len(pairs)} in {len(set(groups))} conversations"}
    for name, statistic in {"accuracy, %": accuracy, "log-loss": log_loss, "ECE, %": ece}.items():
        line[name] = interval(statistic, [gain], groups)
    gains = np.stack([pair.gains for pair in pairs])
    if gains.shape[1] > 1:
        line["critics agree, %"] = f"{100 * (np.abs(np.sign(gains).sum(1)) == gains.shape[1]).mean():.1f}"
    edges = [
        {"says, %": f"{100 * sure:.1f}", "is right, %": f"{100 * right:.1f}", "pairs": str(n)}
        for sure, right, n in reliability(gain)
    ]
    return [table([line]), table(edges)]


def report(run: str | Path, data: Sequence[str | Path], split: str) -> str:
    """Tables about one split of datasets of pairs, each by itself and, where there are several, all together."""
    sets = [read_pairs(run, [folder], split) for folder in data]
    out: list[str] = []
    for folder, pairs in zip(data, sets, strict=True):
        out += [f"{folder}:"] if len(data) > 1 else []
        out += lines(pairs)
    if len(data) > 1:
        out += ["all together:", *lines([pair for pairs in sets for pair in pairs])]
    return "\n\n".join(out)
