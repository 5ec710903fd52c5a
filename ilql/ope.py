"""What a run says about logged dialogues, without playing any (off-policy evaluation).

Decision: values are read where the agent is about to speak, one number a turn, whatever the time step of training, and
judged by what they are for: to tell dialogues that end well from those that do not. Intervals resample groups of
dialogues (`meta["group"]`), as splits keep them together.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_prep.encode import Encoder
from ilql import control
from ilql.command import Parser, guard
from ilql.data import collate, crop, longest_window
from ilql.decode import LMPolicy, load
from ilql.learner import check_fits
from ilql.model import ILQLModel
from ilql.order import times
from ilql.report import Interval, bootstrap, table
from ilql.rows import Mix, Rows
from ilql.types import InputError

RESAMPLES = 2000


@dataclass(frozen=True)
class Turns:
    """The agent's turns of one dialogue: value (turns) of the state before each, in the log's units, or nan without
    critics; to_go (turns): undiscounted rewards from that turn on; nll: mean over all action tokens, in nats."""

    value: np.ndarray
    to_go: np.ndarray
    nll: float
    group: str


def agent_turns(row: dict[str, Any]) -> np.ndarray:
    """Which transitions begin a turn of the agent, (turns): at token steps the others go on with one."""
    start, end = row["start"], row["end"]
    return np.flatnonzero(np.append(True, start[1:] != end[:-1]))


@torch.no_grad()
def read_turns(model: ILQLModel, bos: int, rows: Rows | Mix, batch_rows: int = 32) -> list[Turns]:
    """Values and likelihoods of every dialogue of a split."""
    found: list[Turns] = []
    head: Any = model.get_output_embeddings()
    for i in range(0, len(rows), batch_rows):
        part = [rows[j] for j in range(i, min(i + batch_rows, len(rows)))]
        batch = collate(part, gamma=1.0, bos=bos, history=model.config.history, bootstraps=False).to(model.device)
        hidden = model.hidden(*batch.run)
        acted = hidden[batch.where[batch.target - 1]]
        action = batch.tokens[batch.target]
        logp = torch.cat(
            [
                head(h).float().log_softmax(-1).gather(1, a[:, None]).squeeze(1)
                for h, a in zip(acted.split(1024), action.split(1024), strict=True)
            ]
        )
        loss = torch.zeros(batch.n, device=logp.device).index_add_(0, batch.owner, -logp).cpu().numpy()
        tokens = torch.bincount(batch.owner, minlength=batch.n).cpu().numpy()
        value = np.full(batch.n, np.nan)
        if model.v is not None:
            value = (model.v(hidden[batch.where[batch.state]]) / model.config.reward_scale).cpu().double().numpy()
        first = 0
        for row in part:
            n = len(row["start"])
            mine = slice(first, first + n)
            begins = agent_turns(row)
            to_go = np.cumsum(np.asarray(row["reward"], np.float64)[::-1])[::-1]
            group = json.loads(row["meta"]).get("group") or str(row["id"]).split(":")[0]
            nll = float(loss[mine].sum() / tokens[mine].sum())
            found.append(Turns(value[mine][begins], to_go[begins], nll, str(group)))
            first += n
    return found


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank."""
    _, spread, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[spread]


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Chance that a positive scores above a negative (ties half); nan where one class is missing."""
    positive = int(label.sum())
    negative = len(label) - positive
    if not positive or not negative:
        return float("nan")
    return float((ranks(score)[label].sum() - positive * (positive + 1) / 2) / (positive * negative))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; nan where one of them does not vary."""
    x, y = ranks(a), ranks(b)
    if x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def explained_variance(value: np.ndarray, outcome: np.ndarray) -> float:
    """1 - var(outcome - value) / var(outcome): 1 is perfect, 0 is a constant's; nan where the outcome is constant."""
    variance = float(outcome.var())
    return float(1 - (outcome - value).var() / variance) if variance else float("nan")


def interval(
    statistic: Callable[..., float], columns: Sequence[np.ndarray], groups: Sequence[str], seed: int = 0
) -> Interval:
    """A statistic of columns of one number a dialogue, with its percentile bootstrap interval over groups."""
    _, member = np.unique(groups, return_inverse=True)
    order = np.argsort(member, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(member[order])) + 1)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([parts[i] for i in rng.integers(len(parts), size=len(parts))])
        drawn.append(statistic(*(c[chosen] for c in columns)))
    kept = np.array(drawn)[np.isfinite(drawn)]
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (np.nan, np.nan)
    return Interval(statistic(*columns), float(low), float(high))


def judge(turns: Sequence[Turns], thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """One line for each place in the dialogue: the first of the agent's turns, the middle one, the last.

    thresholds: "ends well" is a return of at least this; a column of AUC for each.
    """
    places: dict[str, Callable[[int], int]] = {
        "first turn": lambda n: 0,
        "middle turn": lambda n: n // 2,
        "last turn": lambda n: n - 1,
    }
    groups = [t.group for t in turns]
    total = np.array([t.to_go[0] for t in turns])
    lines = []
    for name, place in places.items():
        value = np.array([t.value[place(len(t.value))] for t in turns])
        to_go = np.array([t.to_go[place(len(t.value))] for t in turns])
        line: dict[str, Any] = {"V before the agent's": name, "mean V": f"{value.mean():.3f}"}
        for threshold in thresholds:
            line[f"AUC, return >= {threshold:g}"] = interval(auc, [value, total >= threshold], groups)
        line["rank correlation"] = interval(rank_correlation, [value, to_go], groups)
        line["explained variance"] = interval(explained_variance, [value, to_go], groups)
        lines.append(line)
    return lines


def last_turn_matches(policy: LMPolicy, rows: Rows | Mix) -> list[bool]:
    """Whether the policy's reply at each dialogue's last turn of the agent equals the logged one, token for token."""
    prompts, wanted = [], []
    for i in range(len(rows)):
        row = rows[i]
        begin = int(row["start"][agent_turns(row)[-1]])
        turn = row["turn"][row["turn"] <= begin]  # the last one: the open turn, maybe without a header
        prompts.append(crop(row["tokens"][:begin].tolist(), turn.tolist(), policy.model.config.history))
        wanted.append(row["tokens"][begin : int(row["end"][-1])].tolist())
    return [reply == logged for reply, logged in zip(policy.complete(prompts), wanted, strict=True)]


def report(
    run: str | Path,
    data: Sequence[str | Path],
    split: str,
    thresholds: Sequence[float],
    betas: Sequence[float],
    top_k: int | None,
    weights: Sequence[float] | None = None,
) -> str:
    """Tables about one split of datasets, for a run (or model) folder: each by itself, and all together.

    weights: how often the dialogues of each count among all together, as in `DataConfig`.
    """
    model, encoder = load(run)
    rows = _open(data, split, run, encoder)
    if model.config.control is not None:  # told what came of it
        rows = Mix(rows.parts, partial(control.prepare, note=encoder.note, digits=model.config.control["digits"]))
    check_fits(model, max(longest_window(row, model.config.history) for row in rows), encoder.vocab_size)
    turns = read_turns(model, encoder.bos_id, rows)
    matches = {}
    for beta in betas:
        policy = LMPolicy(model, encoder, beta=beta, greedy=True, support_top_k=top_k)
        matches[beta] = last_turn_matches(policy, rows)
    out = []
    for name, which in _pools(rows, weights):
        out += [name] if len(data) > 1 else []
        some = [turns[i] for i in which]
        groups = [t.group for t in some]
        if model.v is not None:
            out.append(table(judge(some, thresholds)))
        lines = []
        for beta, match in matches.items():
            share = bootstrap([100.0 * match[i] for i in which], groups=groups)
            lines.append({"greedy": f"beta {beta:g}", "last turn equals the log's, %": share})
        out.append(table(lines))
        nll = bootstrap([t.nll for t in some], groups=groups)
        out.append(f"{len(some)} dialogues; the actor's nll a token, mean over dialogues: {nll} nats")
    return "\n\n".join(out)


def _open(data: Sequence[str | Path], split: str, run: str | Path, encoder: Encoder) -> Mix:
    """The dialogues of all datasets. Raises InputError where one of them is not for the run, or they do not go
    together."""
    parts = [Rows(folder, split) for folder in data]
    for part in parts:
        if not len(part):
            raise InputError(
                f"{part.folder} has no dialogue in its {split} split; build it with --validation, or name another"
            )
        theirs = Encoder.from_folder(part.folder / "tokenizer").tokenizer
        if encoder.tokenizer.get_vocab() != theirs.get_vocab():
            raise InputError(
                f"{part.folder} was built with another tokenizer than {run}; build it with --tokenizer {run}/model"
            )
        part.check(encoder.vocab_size)
    return Mix(parts)


def _pools(rows: Mix, weights: Sequence[float] | None) -> list[tuple[str, list[int]]]:
    """What tables are about: a name, and the numbers of dialogues, some of them several times."""
    sizes = [len(part) for part in rows.parts]
    ends = np.cumsum(sizes).tolist()
    pools = [
        (f"{part.folder}:", list(range(end - n, end))) for part, n, end in zip(rows.parts, sizes, ends, strict=True)
    ]
    if len(pools) == 1:
        return pools
    each = [1.0] * len(pools) if weights is None else list(weights)
    taken = np.repeat(np.arange(len(rows)), times(np.repeat(each, sizes), np.random.default_rng(0))).tolist()
    if not taken:
        raise InputError("--weights leave no dialogue; give larger ones")
    said = " + ".join(f"{weight:g} x {part.folder}" for weight, part in zip(each, rows.parts, strict=True))
    return [*pools, (f"all together, {said}:", taken)]


def main(argv: Sequence[str] | None = None) -> int:
    """`eval.py RUN --data DIR`; returns the exit status (2 on bad input)."""
    return guard(lambda: _main(sys.argv[1:] if argv is None else argv))


def _parser() -> Parser:
    parser = Parser(prog="eval.py", description="Judge a trained run by logged dialogues.", allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or a model's folder")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="dataset folders")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="of each folder among all (default: 1)")
    parser.add_argument("--split", default="validation", choices=("train", "validation"))
    parser.add_argument(
        "--threshold", type=float, nargs="+", default=[1.0], help="returns from which a dialogue ends well"
    )
    parser.add_argument("--beta", type=float, nargs="+", default=[0.0], help="of the greedy replies that are compared")
    parser.add_argument("--support-top-k", type=int, metavar="K", help="only among the actor's K likeliest tokens")
    return parser


def _main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    if not all(map(math.isfinite, args.threshold)):
        raise InputError(f"--threshold is {args.threshold}, but must be finite numbers")
    weights = args.weights
    if weights is not None and (len(weights) != len(args.data) or not all(0 < w < math.inf for w in weights)):
        raise InputError("--weights needs one number above 0 for each folder of --data")
    text = report(args.run, args.data, args.split, args.threshold, args.beta, args.support_top_k, weights)
    print(text)
    print("\n95 % bootstrap intervals over groups of dialogues")
    return 0
