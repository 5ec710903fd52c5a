"""What a run says about logged dialogues, without playing any (off-policy evaluation).

Decision: values are read where the agent is about to speak, one number a turn, whatever the time step of training, and
judged by what they are for: to tell dialogues that end well from those that do not. Intervals resample groups of
dialogues (`meta["group"]`), as splits keep them together.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_prep.encode import Encoder
from ilql import control, ranking, verdicts
from ilql.agreement import auc, explained_variance, rank_correlation
from ilql.algos import ALGOS, critic
from ilql.closed import Closed
from ilql.command import Parser, guard
from ilql.config import load_config
from ilql.data import collate, crop, longest_window
from ilql.decode import LMPolicy, load
from ilql.diagnostics import judged, survey
from ilql.envs import ENVS
from ilql.feed import reads_behaviour
from ilql.learner import Learner, check_fits
from ilql.model import ILQLModel
from ilql.order import times
from ilql.proposals import NAME
from ilql.report import bootstrap, interval, table
from ilql.rows import Mix, Rows
from ilql.types import AGENT, PARTNER, InputError, Turn

BATCH = 32  # dialogues that are read at a time


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
def read_turns(model: ILQLModel, bos: int, rows: Sequence[dict[str, Any]], batch_rows: int = BATCH) -> list[Turns]:
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
            read = model.critic_hidden(hidden, *batch.run)[batch.where[batch.state]]
            value = (model.v(read) / model.config.reward_scale).cpu().double().numpy()
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


def last_turn_matches(policy: LMPolicy, rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether the policy's reply at each dialogue's last turn of the agent equals the logged one, token for token.

    A policy that chooses of closed sets chooses of the one that the logged utterance is of: what it would have said
    there, had it too come to say something of this kind.
    """
    prompts, wanted = [], []
    sets: list[list[list[int]] | None] = []
    for i in range(len(rows)):
        row = rows[i]
        begin = int(row["start"][agent_turns(row)[-1]])
        turn = row["turn"][row["turn"] <= begin]  # the last one: the open turn, maybe without a header
        prompts.append(crop(row["tokens"][:begin].tolist(), turn.tolist(), policy.model.config.history))
        wanted.append(row["tokens"][begin : int(row["end"][-1])].tolist())
        sets.append(None if policy.closed is None else _closed(policy, row, turn, wanted[-1]))
    free = [i for i, some in enumerate(sets) if some is None]
    replies = dict(zip(free, policy.complete([prompts[i] for i in free]), strict=True))
    answers = {i: some for i, some in enumerate(sets) if some is not None}
    if answers:
        places = policy.among([prompts[i] for i in answers], list(answers.values()))
        replies |= {i: some[k] for (i, some), k in zip(answers.items(), places, strict=True)}
    return [replies[i] == logged for i, logged in enumerate(wanted)]


def _closed(policy: LMPolicy, row: dict[str, Any], turn: np.ndarray, logged: list[int]) -> list[list[int]] | None:
    """The closed set of a logged utterance, as tokens, by what the turns before it (their beginnings and, last, its
    own) say under our own tokenizers; None where there is none."""
    encoder, acted = policy.encoder, set(row["start"].tolist())
    turns = []
    for begin, end in pairwise(turn.tolist()):
        role = AGENT if acted & set(range(begin, end)) else PARTNER
        turns.append(Turn(role, encoder.text(row["tokens"][begin:end].tolist()).strip()))
    some = policy.closed(turns, encoder.text(logged).strip()) if policy.closed and turns else None
    return None if some is None else [encoder.action(turns, text) for text in some]


def losses(run: str | Path, model: ILQLModel, bos: int, step: str, rows: Sequence[Any]) -> dict[str, float]:
    """The means of a run's own losses over dialogues, and what `ilql.diagnostics` says of its values; empty for a model
    without its run, and for dialogues of a time step that its algorithm, or these critics, are not made for, or without
    the proposals that it reads."""
    homes = [path / "config.yaml" for path in (Path(run), Path(run).parent)]
    config = next((path for path in homes if path.is_file()), None)
    if config is None:
        return {}
    cfg = load_config(["--config", str(config)])
    algo = ALGOS[cfg.algo]
    kind = critic(algo, step, cfg.hyper)
    if step not in algo.STEPS or (kind and kind != model.config.critic):
        return {}
    if reads_behaviour(algo, cfg.hyper) and any(np.isnan(row["logp"]).any() for row in rows):
        return {}
    offered = getattr(algo, "OFFERED", False)
    if offered and not all(NAME in row for row in rows):
        return {}
    options: dict[str, Any] = {"gamma": getattr(cfg.hyper, "gamma", 1.0), "reward_scale": cfg.data.reward_scale}
    options |= {"bootstraps": algo.BOOTSTRAPS, "acted": kind == "scalar", "history": cfg.data.history}
    options |= {"offered": offered}
    parts = (rows[i : i + BATCH] for i in range(0, len(rows), BATCH))
    batches = (collate(part, bos=bos, **options).to(model.device, model.dtype) for part in parts)
    found = survey(Learner(model, algo, cfg.hyper), batches)
    return found.means(algo.PER_TOKEN) | judged(found.columns)


def report(
    run: str | Path,
    data: Sequence[str | Path],
    split: str,
    thresholds: Sequence[float],
    betas: Sequence[float],
    top_k: int | None,
    weights: Sequence[float] | None = None,
    where: Mapping[str, str] | None = None,
    closed: bool = False,
) -> str:
    """Tables about one split of datasets, for a run (or model) folder: each by itself, and all together.

    weights: how often the dialogues of each count among all together, as in `DataConfig`. where: only dialogues whose
    `meta` has these values. closed: choose the last turn of the closed set that the corpus' game offers there.
    """
    model, encoder = load(run)
    if model.config.algo == "reward_model":
        return verdicts.report(run, data, split)
    rows = _open(data, split, run, encoder)
    if model.config.control is not None:  # told what came of it
        rows = Mix(rows.parts, partial(control.prepare, note=encoder.note, digits=model.config.control["digits"]))
    kept = {i: k for k, i in enumerate(_where(rows, where or {}))}
    chosen = [rows[i] for i in kept] if where else rows
    check_fits(model, max(longest_window(row, model.config.history) for row in chosen), encoder.vocab_size)
    turns = read_turns(model, encoder.bos_id, chosen)
    matches = {}
    for beta in betas:
        game = _game(rows) if closed else None
        policy = LMPolicy(model, encoder, beta=beta, greedy=True, support_top_k=top_k, closed=game)
        matches["closed set" if closed else "greedy", beta] = last_turn_matches(policy, chosen)
    ranked = model.config.control is None and all(NAME in row for row in chosen)
    ranks = ranking.read(model, encoder.bos_id, chosen) if ranked else None
    out = []
    for name, every in _pools(rows, weights):
        which = [kept[i] for i in every if i in kept]
        out += [name] if len(data) > 1 else []
        out += _tables([turns[i] for i in which], {k: [m[i] for i in which] for k, m in matches.items()}, thresholds)
        if ranks is not None and which:
            standing = ranking.lines([ranks[i] for i in which], [turns[i].group for i in which])
            out += [table(standing)] if standing else []
        own = losses(run, model, encoder.bos_id, rows.parts[0].manifest["step"], [chosen[i] for i in which])
        if own:
            out.append(table([{"of the run's own": name, "value": f"{value:.4g}"} for name, value in own.items()]))
    return "\n\n".join(out)


def _tables(
    turns: Sequence[Turns], matches: Mapping[tuple[str, float], Sequence[bool]], thresholds: Sequence[float]
) -> list[str]:
    """What is printed about some dialogues. matches: by how and with what beta the last turn was chosen."""
    if not turns:  # of this folder
        return ["no dialogue"]
    groups = [t.group for t in turns]
    out = [] if np.isnan(turns[0].value).any() else [table(judge(turns, thresholds))]
    lines = []
    for (how, beta), match in matches.items():
        share = bootstrap([100.0 * hit for hit in match], groups=groups)
        lines.append({how: f"beta {beta:g}", "last turn equals the log's, %": share})
    nll = bootstrap([t.nll for t in turns], groups=groups)
    return [*out, table(lines), f"{len(turns)} dialogues; the actor's nll a token, mean over dialogues: {nll} nats"]


def _where(rows: Mix, where: Mapping[str, str]) -> list[int]:
    """The dialogues whose meta has these values, as text. Raises InputError where there is none."""
    kept = list(range(len(rows)))
    for key, value in where.items():
        found = {i: str(json.loads(rows[i]["meta"]).get(key)) for i in kept}
        kept = [i for i in kept if found[i] == value]
        if not kept:
            common = [text for text, _ in Counter(found.values()).most_common(5)]
            raise InputError(f"--where {key}={value}: no dialogue is left; {key} is {', '.join(common)}")
    return kept


def _game(rows: Mix) -> Closed:
    """What closed sets the game of the corpus has. Raises InputError where it has none."""
    name = rows.parts[0].manifest["corpus"]
    closed = getattr(ENVS.get(name), "closed", None)
    if closed is None:
        raise InputError(f"--closed: {name} has no game with closed sets of utterances; leave it out")
    return closed  # type: ignore[no-any-return]


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
    parser.add_argument("--closed", action="store_true", help="choose the last turn among all that the game allows")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE", help="dialogues whose meta says this")
    parser.add_argument("--support-top-k", type=int, metavar="K", help="only among the actor's K likeliest tokens")
    return parser


def _main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    if not all(map(math.isfinite, args.threshold)):
        raise InputError(f"--threshold is {args.threshold}, but must be finite numbers")
    weights = args.weights
    if weights is not None and (len(weights) != len(args.data) or not all(0 < w < math.inf for w in weights)):
        raise InputError("--weights needs one number above 0 for each folder of --data")
    where = {}
    for text in args.where:
        key, mark, value = text.partition("=")
        if not mark:
            raise InputError(f"--where {text}: write it as KEY=VALUE")
        where[key] = value
    bounds = args.threshold, args.beta, args.support_top_k
    text = report(args.run, args.data, args.split, *bounds, weights, where, args.closed)
    print(text)
    print("\n95 % bootstrap intervals over groups of dialogues")
    return 0
