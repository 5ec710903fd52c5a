"""`eval.py`: a trained run in an environment, over many episodes and several beta, with intervals.

Decision: every row of the table plays the same episodes (the same seeds, the same seats), so that rows can be compared
pair by pair; sampling starts anew from the same seed for every row. In a game the run plays every scenario twice, once
in each seat, against the partner; the first row is the partner against itself, and the last column the gain over it.
Nothing is written before the first row is done, and nothing is ever overwritten; `eval.json` comes last, so a folder
without it is of an evaluation that broke off.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import transformers

import ilql
from ilql import atomic, decode, envs, ope
from ilql.command import Parser, guard
from ilql.report import table, write_json
from ilql.rollout import rollout, selfplay, to_log
from ilql.scoreboard import PARTNER_ROW, Row, one, several
from ilql.types import Episode, InputError, Policy

DTYPES = ("float32", "bfloat16")
CLOSED = ("sample", "best")
FILES = ("scenarios", "exclude", "words")  # arguments of environments that are paths
HEADLINE = {1: "return", 2: "points (all)"}  # by the number of seats; the column whose gain over the partner is told


@dataclass
class EvalConfig:
    """What `evaluate` plays. Field by field the options of `eval.py`.

    episodes: seeds `seed`, `seed` + 1, ...; in a game the number of scenarios, each played in both seats.
    dtype: of the weights, one of DTYPES; probabilities and scores are in float32 whatever it is.
    partner: run folder of the partner in a game; None: the run's own actor. Both sides share temperature, greediness,
        `max_new_tokens` and `dtype`; the support limits are the run's alone (at `beta` 0 they have no effect).
    closed: both sides choose what a game allows only some utterances for among these, as wholes: "sample" as other
        utterances are chosen, "best" the likeliest always; None: token by token, as all else.
    candidates: see `LMPolicy`; the run's alone, a partner says what it says.
    target_return: what the run is told to reach, see `LMPolicy`; a partner that is told one is told its default.
    output: folder to make; None: the next free `eval/ENV-N` in the run folder.
    """

    run: Path
    env: str
    env_args: dict[str, str] = field(default_factory=dict)
    episodes: int = 100
    beta: Sequence[float] = (0.0,)
    greedy: bool = False
    temperature: float = 1.0
    closed: str | None = None
    candidates: int | None = None
    support_top_k: int | None = None
    support_top_p: float | None = None
    partner: Path | None = None
    partner_beta: float = 0.0
    max_new_tokens: int = 64
    dtype: str = "float32"
    target_return: float | None = None
    seed: int = 0
    output: Path | None = None
    progress: bool = True


def evaluate(cfg: EvalConfig) -> tuple[str, Path]:
    """Play, write `eval.json` and `transcripts/*.jsonl`; returns the table and the folder. InputError on bad input."""
    _check(cfg)
    played = _evaluate(cfg)
    lines, _ = one(played.rows, HEADLINE[envs.find(cfg.env).SEATS])
    return table(lines), played.output


def evaluate_all(cfgs: Sequence[EvalConfig]) -> tuple[str, Path]:
    """Runs that differ by their training seed, on the same episodes: `evaluate` for each, and `eval.json` of all.

    The configs differ in `run` alone; `output` is the folder for all, None: the next free `eval/ENV-N` in the folder
    that the runs lie in. Returns the table over runs and that folder.
    """
    first = cfgs[0]
    home = {cfg.run.resolve().parent: cfg.run.parent for cfg in cfgs}
    if len({cfg.run.resolve() for cfg in cfgs}) < len(cfgs):
        raise InputError("a run is named twice; name each once")
    if first.output is None and len(home) > 1:
        raise InputError("the runs lie in different folders; say by --output where the table over all of them goes")
    arguments = []
    for cfg in cfgs:
        _check(cfg)
        arguments.append(envs.arguments(cfg.env, _recorded(cfg), cfg.env_args))
        if arguments[-1] != arguments[0]:
            raise InputError(f"{cfg.run} was trained for another {cfg.env} than {first.run}; evaluate them apart")
    played = [_evaluate(replace(cfg, output=None)) for cfg in cfgs]
    lines, results = several([p.rows for p in played], HEADLINE[envs.find(first.env).SEATS])
    settings = {k: v for k, v in played[0].settings.items() if k not in ("run", "partner")}
    if first.partner is not None:
        settings["partner"] = played[0].settings["partner"]
    output = _new_folder(first, next(iter(home.values())))
    runs = {"runs": [p.settings["run"] for p in played], "evaluations": [p.output.name for p in played]}
    write_json(output / "eval.json", {"settings": settings | runs, "environment": _versions(), "rows": results})
    return table(lines), output


class Played(NamedTuple):
    """One run's evaluation: what was played, how, and where it is written."""

    rows: list[Row]
    settings: dict[str, Any]
    output: Path


def _evaluate(cfg: EvalConfig) -> Played:
    module = envs.find(cfg.env)
    arguments = envs.arguments(cfg.env, _recorded(cfg), cfg.env_args)
    factory = module.make(**arguments)
    shared: dict[str, Any] = {"greedy": cfg.greedy, "temperature": cfg.temperature}
    if cfg.closed is not None:
        shared |= {"closed": module.closed, "closed_best": cfg.closed == "best"}
    shared |= {"max_new_tokens": cfg.max_new_tokens, "dtype": getattr(torch, cfg.dtype)}
    own: dict[str, Any] = {"support_top_k": cfg.support_top_k, "support_top_p": cfg.support_top_p}
    own |= {"target_return": cfg.target_return, "candidates": cfg.candidates}
    partner: Policy | None = None
    players: list[tuple[str, float]] = [(f"beta-{beta:g}", beta) for beta in dict.fromkeys(cfg.beta)]
    if module.SEATS == 2:
        partner = decode.load_policy(cfg.partner or cfg.run, beta=cfg.partner_beta, **shared)
        players.insert(0, (PARTNER_ROW, cfg.partner_beta))
    rows: list[Row] = []
    for name, beta in players:
        if partner is not None and name == PARTNER_ROW:
            policy = partner
        else:
            policy = decode.load_policy(cfg.run, beta=beta, **shared, **own)
        torch.manual_seed(cfg.seed)
        row = _play(cfg, name, beta, policy, partner, factory, module)
        if not rows:
            output = _new_folder(cfg)
            (output / "transcripts").mkdir()
        _write_transcripts(output / "transcripts" / f"{name}.jsonl", row.episodes)
        rows.append(row)
    _, results = one(rows, HEADLINE[module.SEATS])
    settings = _settings(cfg, arguments, module.SEATS)
    write_json(output / "eval.json", {"settings": settings, "environment": _versions(), "rows": results})
    return Played(rows, settings, output)


def _play(
    cfg: EvalConfig, name: str, beta: float, policy: Policy, partner: Policy | None, factory: Any, module: ModuleType
) -> Row:
    """One row. A game is played twice a scenario, ours in seat 0, then in seat 1; intervals resample scenarios."""
    seeds = range(cfg.seed, cfg.seed + cfg.episodes)
    if partner is None:
        episodes = rollout(policy, factory, seeds, progress=cfg.progress)
        values = {HEADLINE[1]: [episode.total_reward for episode in episodes], **module.summary(episodes)}
        return Row(name, beta, values, [episode.id for episode in episodes], episodes)
    pairs = selfplay((policy, partner), factory, seeds, progress=cfg.progress)
    swapped = selfplay((partner, policy), factory, seeds, progress=cfg.progress)
    pairs += [(_renamed(ours), _renamed(theirs)) for theirs, ours in swapped]
    told = [_told(episode, side) for pair in pairs for episode, side in zip(pair, ("run", "partner"), strict=True)]
    return Row(name, beta, module.summary(pairs), [ours.meta["group"] for ours, _ in pairs], told)


def _renamed(episode: Episode) -> Episode:
    """The second game of a seed has an id of its own."""
    seed, _, side = episode.id.rpartition(":")
    return replace(episode, id=f"{seed}-swapped:{side}")


def _told(episode: Episode, side: str) -> Episode:
    """The transcript says whose side it is."""
    return replace(episode, meta={**episode.meta, "side": side})


def _settings(cfg: EvalConfig, arguments: Mapping[str, Any], seats: int) -> dict[str, Any]:
    """What was played, without the folders' places."""
    settings = {
        "run": cfg.run.resolve().name,
        "env": cfg.env,
        "env_arguments": {k: Path(v).name if k in FILES else v for k, v in arguments.items()},
        **{k: getattr(cfg, k) for k in ("episodes", "seed", "greedy", "support_top_k", "support_top_p")},
        "temperature": None if cfg.greedy else cfg.temperature,
        "max_new_tokens": cfg.max_new_tokens,
        "dtype": cfg.dtype,
    }
    settings |= {k: v for k in ("closed", "candidates", "target_return") if (v := getattr(cfg, k)) is not None}
    if seats == 2:
        settings |= {"partner": (cfg.partner or cfg.run).resolve().name, "partner_beta": cfg.partner_beta}
    return settings


def _versions() -> dict[str, Any]:
    """What the bits of a sampled episode depend on beside the model."""
    versions = {"ilql": ilql.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {**versions, "threads": torch.get_num_threads()}


def _recorded(cfg: EvalConfig) -> dict[str, Any]:
    """The arguments of the corpus that the run was trained on, where that corpus has the environment's name."""
    folder = cfg.run
    for path in (folder / "data.json", folder.parent / "data.json"):
        if path.is_file() and (path.parent == folder or folder.name == "model"):
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: not valid JSON ({error}); give the arguments by --env-arg") from None
            others = manifest.get("others") if isinstance(manifest, dict) else None
            for one in (manifest, *(others if isinstance(others, list) else ())):
                if isinstance(one, dict) and one.get("corpus") == cfg.env:
                    return dict(one.get("arguments") or {})
    return {}


def _check(cfg: EvalConfig) -> None:
    def need(holds: bool, option: str, value: object, what: str) -> None:
        if not holds:
            raise InputError(f"{option} is {value}, but must be {what}")

    need(cfg.episodes >= 1, "--episodes", cfg.episodes, "at least 1")
    need(cfg.seed >= 0, "--seed", cfg.seed, "0 or more")
    need(len(cfg.beta) > 0, "--beta", "empty", "at least one number")
    for beta in cfg.beta:
        need(math.isfinite(beta) and beta >= 0, "--beta", beta, "a finite number of at least 0")
    need(math.isfinite(cfg.partner_beta) and cfg.partner_beta >= 0, "--partner-beta", cfg.partner_beta, "at least 0")
    need(math.isfinite(cfg.temperature) and cfg.temperature > 0, "--temperature", cfg.temperature, "above 0")
    need(cfg.support_top_k is None or cfg.support_top_k >= 1, "--support-top-k", cfg.support_top_k, "at least 1")
    top_p = cfg.support_top_p
    need(top_p is None or 0 < top_p <= 1, "--support-top-p", top_p, "above 0 and at most 1")
    need(cfg.dtype in DTYPES, "--dtype", cfg.dtype, f"one of {', '.join(DTYPES)}")
    target = cfg.target_return
    need(target is None or math.isfinite(target), "--target-return", target, "a finite number")
    need(cfg.closed in (None, *CLOSED), "--closed", cfg.closed, f"one of {', '.join(CLOSED)}")
    if cfg.closed is not None and not hasattr(envs.find(cfg.env), "closed"):
        raise InputError(f"--closed: {cfg.env} has no closed sets of utterances; leave it out")
    need(cfg.candidates is None or cfg.candidates >= 1, "--candidates", cfg.candidates, "at least 1")
    need(cfg.max_new_tokens >= 1, "--max-new-tokens", cfg.max_new_tokens, "at least 1")
    if cfg.output is not None and cfg.output.exists():
        raise InputError(f"--output {cfg.output} exists; choose another folder, nothing is overwritten")
    decode.model_folder(cfg.run)
    if cfg.partner is not None:
        if envs.find(cfg.env).SEATS == 1:
            raise InputError(f"--partner is for games, and {cfg.env} has one seat: leave it out")
        decode.model_folder(cfg.partner)


def _run_of(model: Path) -> Path:
    """The run folder that a model folder lies in, else the model folder itself."""
    return model.parent if (model.parent / "config.yaml").is_file() else model


def _new_folder(cfg: EvalConfig, home: Path | None = None) -> Path:
    """Make the folder of this evaluation, under `home` or the run; never one that exists."""
    if cfg.output is not None:
        _make(cfg.output)
        return cfg.output
    if home is None:
        model = decode.model_folder(cfg.run)
        home = cfg.run if model != cfg.run else _run_of(model)
    number = 1
    while (folder := home / "eval" / f"{cfg.env}-{number}").exists():
        number += 1
    _make(folder)
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}; give another one by --output") from None


def _write_transcripts(path: Path, episodes: Sequence[Episode]) -> None:
    lines = [json.dumps(to_log(episode), ensure_ascii=False) + "\n" for episode in episodes]
    atomic.write_text(path, "".join(lines), new=True)


def _parser() -> Parser:
    parser = Parser(
        prog="eval.py",
        description="Play a trained run in an environment; with --data DIR, judge it by logged dialogues.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", type=Path, nargs="+", metavar="RUN", help="run folder, or a model's; several: seeds of one training")
    add("--env", required=True, help=f"one of {', '.join(envs.ENVS)}")
    add("--env-arg", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="an argument of the environment")
    add("--scenarios", metavar="FILE", help="short for --env-arg scenarios=FILE")
    add("--episodes", type=int, default=100, help="seeds to play; of a game each in both seats (default 100)")
    add("--beta", type=float, nargs="+", default=[0.0], help="weights of the advantage; 0 is the actor (default 0)")
    add("--greedy", action="store_true", help="the likeliest token instead of sampling")
    add("--temperature", type=float, default=1.0, help="of sampling (default 1)")
    add("--closed", metavar="HOW", help=f"choose selections among all that the game allows: {' or '.join(CLOSED)}")
    add("--candidates", type=int, metavar="N", help="the actor proposes N utterances, the critics choose by beta")
    add("--support-top-k", type=int, metavar="K", help="only among the actor's K likeliest tokens")
    add("--support-top-p", type=float, metavar="P", help="only among the actor's likeliest tokens of mass P")
    add("--target-return", type=float, metavar="R", help="what a run of dt is told to reach (default: its data's best)")
    add("--partner", type=Path, metavar="RUN", help="the other side of a game (default: the run's own actor)")
    add("--partner-beta", type=float, default=0.0, help="the partner's beta (default 0)")
    add("--max-new-tokens", type=int, default=64, help="longest utterance (default 64)")
    add("--dtype", default="float32", help=f"of the weights: {' or '.join(DTYPES)} (default float32)")
    add("--seed", type=int, default=0, help="first episode's seed, and that of sampling (default 0)")
    add("--output", type=Path, metavar="DIR", help="folder to make (default: RUN/eval/ENV-N)")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def _configs(argv: Sequence[str]) -> list[EvalConfig]:
    """One for each run."""
    options = vars(_parser().parse_args(argv))
    given: dict[str, str] = {}
    for text in options.pop("env_arg"):
        name, mark, value = text.partition("=")
        if not mark:
            raise InputError(f"--env-arg {text}: write it as KEY=VALUE")
        given[name] = value
    scenarios = options.pop("scenarios")
    if scenarios is not None:
        given["scenarios"] = scenarios
    runs, quiet = options.pop("run"), options.pop("quiet")
    return [EvalConfig(run=run, env_args=given, progress=not quiet, **options) for run in runs]


def main(argv: Sequence[str] | None = None) -> int:
    """The command: prints the table, returns the exit status (2 on bad input)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(option == "--data" or option.startswith("--data=") for option in words):
        return ope.main(words)
    return guard(lambda: _main(words))


def _main(argv: Sequence[str]) -> int:
    cfgs = _configs(argv)
    text, folder = evaluate(cfgs[0]) if len(cfgs) == 1 else evaluate_all(cfgs)
    print(text)
    if len(cfgs) == 1:
        print(f"\n95 % bootstrap intervals; transcripts and eval.json in {folder}")
    else:
        print(f"\n95 % bootstrap intervals over runs and episodes; eval.json in {folder}, transcripts in each run")
    return 0
