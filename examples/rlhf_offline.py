"""Preferences, a reward model, labelled logs, a policy: learning from human feedback without a simulator (Ziegler et
al. 2019, Ouyang et al. 2022), on random walks, where the true reward is known and so is what is lost by a learned one.

    logs of random walks -> a clone (BC), the reference
    pairs of these walks, compared by a noisy labeler -> a reward model
    the logs, labelled with its rewards -> ILQL, with its conservative penalty and without, decoded at several beta,
    and PPO for E[r] - c KL at several c
    walks of the clone, of which the reward model picks one of n

Every policy is measured at its divergence from the clone: the learned reward (the proxy), and the true one. Decision:
it runs the commands that a user would type, each shown as it starts; what policies then do is measured here. The reward
model has seen walks along edges only, so a policy that seeks its reward far from the logs ends up where it is wrong.

`python -m examples.rlhf_offline [--short] [--output DIR]` writes rlhf_offline.json and rlhf_offline.png; --short trains
a few steps only and claims nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets_prep.encode import Encoder
from examples.maze_demo import command, finish
from ilql.decode import LMPolicy, load
from ilql.envs import randomwalks
from ilql.model import ILQLModel
from ilql.report import bootstrap, table
from ilql.rewarded import judge, utterance_rewards
from ilql.rollout import rollout
from ilql.schema import INTEGERS
from ilql.types import Episode

GRAPH = "1000"
BETAS = (1.0, 4.0, 16.0, 64.0, 256.0)
SUPPORT = 0.9  # top-p of the clone
KL_WEIGHTS = (1.0, 0.3, 0.1, 0.03)
CHOICE = ("ILQL, within the support", 8.0)  # of which the gain over the clone is told
EPISODES, POOL = 1000, 512
SHORT_STEPS = 3
NODES = 10  # tokens of a walk, its end included


@dataclass
class World:
    """What policies are measured by. scale: of the labels that the reward model gave."""

    clone: ILQLModel
    encoder: Encoder
    critic: ILQLModel
    mean: float
    scale: float
    episodes: int
    baseline: list[float] = field(default_factory=list)  # true rewards of the clone, by seed


# ---- learning --------------------------------------------------------------------------------------------------------


def learn(folder: Path, short: bool) -> None:
    """All data and runs, by the commands of the recipes."""

    def run(name: str, *words: str) -> None:
        log = folder / f"{name}.log"
        finish(command(*words, log=log), log)

    def train(name: str, recipe: str, data: str, *more: str) -> None:
        words = ["--config", f"examples/{recipe}.yaml", "--data.path", at(data), "--output", at(name), *more]
        run(name, "train.py", *words, *(["--steps", str(SHORT_STEPS)] if short else []))

    def at(name: str) -> str:
        return str(folder / name)

    walks = ["--seed", GRAPH, "--tokenizer", "byte"]
    pairs = ["preferences", "--of", "randomwalks", "--ranked", "4", "--noise", "0.1", *walks]
    run("data", "-m", "datasets_prep", "randomwalks", *walks, "--output", at("logs"))
    run(
        "pairs-data",
        "-m",
        "datasets_prep",
        *pairs,
        "--step",
        "utterance",
        "--validation",
        "0.2",
        "--output",
        at("pairs"),
    )
    train("bc", "randomwalks_bc", "logs")
    train("reward-model", "rlhf_offline_reward_model", "pairs")
    run("verdicts", "eval.py", at("reward-model"), "--data", at("pairs"))
    run("label", "-m", "ilql.annotate", "label", at("reward-model"), at("logs"), "--output", at("labelled"))
    train("ilql", "rlhf_offline_ilql", "labelled", "--init_from", at("bc"))
    train("ilql-bold", "rlhf_offline_ilql", "labelled", "--init_from", at("bc"), "--ilql.cql_weight", "0")
    run("logprobs", "-m", "ilql.annotate", "logprobs", at("bc"), at("labelled"), "--output", at("weighed"))
    for weight in KL_WEIGHTS:
        more = ["--init_from", at("bc"), "--ppo.kl_weight", f"{weight:g}"]
        train(f"ppo-{weight:g}", "rlhf_offline_ppo", "weighed", *more)


# ---- measuring -------------------------------------------------------------------------------------------------------


def walk(model: ILQLModel, encoder: Encoder, seeds: Sequence[int], **options: Any) -> list[Episode]:
    """One sampled walk a seed, each from the start that the seed says."""
    policy = LMPolicy(model, encoder, max_new_tokens=NODES, batch_size=500, **options)
    torch.manual_seed(seeds[0])
    return rollout(policy, randomwalks.make(int(GRAPH)), seeds, progress=False)


def rows_of(encoder: Encoder, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    rows = [encoder.encode(episode, "utterance") for episode in episodes]
    return [row | {name: np.array(row[name], np.int32) for name in INTEGERS} for row in rows]


def proxies(world: World, rows: Sequence[dict[str, Any]]) -> list[float]:
    """The learned reward of each walk, in units of the labels."""
    found = []
    for i in range(0, len(rows), 500):
        each = utterance_rewards(world.critic, rows[i : i + 500], world.encoder.bos_id)
        found += [(float(r[:, -1].mean()) - world.mean) / world.scale for r in each]
    return found


@torch.no_grad()
def divergences(model: ILQLModel, clone: ILQLModel, rows: Sequence[dict[str, Any]], **decoding: Any) -> list[float]:
    """KL(policy || clone) summed over the states of each walk, exactly over the vocabulary of each."""
    found = []
    for i in range(0, len(rows), 250):
        part = rows[i : i + 250]
        tokens = [torch.from_numpy(row["tokens"].astype(np.int64)) for row in part]
        ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True)
        both = [_logp(m, ids, real, **o) for m, o in ((model, decoding), (clone, {}))]
        kl = (both[0].exp() * (both[0] - both[1])).nan_to_num(0.0).sum(-1)
        for k, row in enumerate(part):
            found.append(float(kl[k, row["start"][-1] - 1 : row["end"][-1] - 1].sum()))
    return found


def _logp(model: ILQLModel, ids: Tensor, real: Tensor, **decoding: Any) -> Tensor:
    logits = model(input_ids=ids, attention_mask=real, use_cache=False, **decoding).logits
    return logits.double().log_softmax(-1)  # type: ignore[no-any-return]


def measure(world: World, model: ILQLModel, method: str, at: float, **decoding: Any) -> dict[str, Any]:
    """One point: a policy's divergence from the clone, learned and true reward, and the gain over the clone."""
    episodes = walk(model, world.encoder, range(world.episodes), **decoding)
    rows, true = rows_of(world.encoder, episodes), [episode.total_reward for episode in episodes]
    world.baseline = world.baseline or true
    gain = [a - b for a, b in zip(true, world.baseline, strict=True)]
    kl = divergences(model, world.clone, rows, **decoding)
    found = {"kl": kl, "proxy": proxies(world, rows), "true": true, "gain": gain}
    point = {name: bootstrap(values)._asdict() for name, values in found.items()}
    print(f"{method} {at:g}: " + ", ".join(f"{k} {v['mean']:.3f}" for k, v in point.items()), flush=True)
    return {"method": method, "at": at, **point}


def best_of(world: World, pool: int) -> list[dict[str, Any]]:
    """What the reward model picks among walks of the clone, `pool` from each start."""
    starts = len(randomwalks.RandomWalks(int(GRAPH)).starts)
    episodes = walk(world.clone, world.encoder, range(pool * starts))  # seeds go around the starts
    true = np.array([episode.total_reward for episode in episodes]).reshape(pool, starts)
    proxy = np.array(proxies(world, rows_of(world.encoder, episodes))).reshape(pool, starts)
    return picked(proxy, true)


def picked(proxy: np.ndarray, true: np.ndarray) -> list[dict[str, Any]]:
    """Both rewards of the walk with the largest proxy of n, for n = 1, 2, 4, ... up to half of the pool; its divergence
    is log n - (n - 1) / n at most (Stiennon et al. 2020). proxy, true (pool, starts): means over starts, and over all
    draws of n out of the pool."""
    pool = len(proxy)
    order = np.argsort(proxy, axis=0, kind="stable")
    each = {name: np.take_along_axis(x, order, 0).mean(1) for name, x in (("proxy", proxy), ("true", true))}
    points = []
    for n in (2**k for k in range(pool.bit_length()) if 2**k <= pool // 2):
        chance = np.array([math.comb(j, n - 1) / math.comb(pool, n) for j in range(pool)])  # that rank j is the best
        found = {name: float(chance @ x) for name, x in each.items()} | {"kl": math.log(n) - (n - 1) / n}
        points.append({"method": "best of n", "at": n, **{name: {"mean": x} for name, x in found.items()}})
    return points


def curves(folder: Path, short: bool) -> list[dict[str, Any]]:
    """All points."""
    clone, encoder = load(folder / "bc")
    critic, _ = judge(folder / "reward-model")
    label = json.loads((folder / "labelled" / "manifest.json").read_text(encoding="utf-8"))["label"]
    world = World(clone, encoder, critic, label["mean"], label["scale"], 40 if short else EPISODES)
    points = [measure(world, clone, "the clone", 0.0)]
    ilql, _ = load(folder / "ilql")
    points.append(measure(world, ilql, "ILQL", 0.0))
    points += [measure(world, ilql, "ILQL", beta, beta=beta) for beta in BETAS]
    points.append(measure(world, ilql, *CHOICE, beta=CHOICE[1], support_top_p=SUPPORT))
    bold, _ = load(folder / "ilql-bold")
    points += [measure(world, bold, "ILQL without penalty", beta, beta=beta) for beta in BETAS]
    for weight in KL_WEIGHTS:
        ppo, _ = load(folder / f"ppo-{weight:g}")
        points.append(measure(world, ppo, "PPO", weight))
    return points + best_of(world, 16 if short else POOL)


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Learned and true reward against the divergence, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True, sharex=True)
    colors = {"ILQL": "#33658a", "ILQL without penalty": "#86bbd8", "PPO": "#f26419", "best of n": "#2f4858"}
    start = next(point for point in points if point["method"] == "the clone")
    for axis, what in zip(axes, ("proxy", "true"), strict=True):
        for method, color in colors.items():
            line = sorted((p for p in points if p["method"] == method), key=lambda p: p["kl"]["mean"])
            x, y = ([p[name]["mean"] for p in line] for name in ("kl", what))
            axis.plot(x, y, marker="o", markersize=3, color=color, label=method)
            if all("low" in p[what] for p in line):
                axis.fill_between(x, *([p[what][end] for p in line] for end in ("low", "high")), color=color, alpha=0.2)
        axis.axhline(start[what]["mean"], color="black", linewidth=0.7, linestyle="--", label="the clone")
        axis.set_xlabel("KL from the clone, nats a walk")
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set_title({"proxy": "learned reward (deviations of the logs')", "true": "true reward"}[what], fontsize=10)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def lines(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As a table."""
    found = []
    for point in points:
        numbers = {name: point[name] for name in ("kl", "proxy", "true", "gain") if name in point}
        text: dict[str, Any] = {
            name: f"{x['mean']:.3f}" + (f" [{x['low']:.3f}, {x['high']:.3f}]" if "low" in x else "")
            for name, x in numbers.items()
        }
        found.append({"policy": f"{point['method']} {point['at']:g}", "gain": "–", **text})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.rlhf_offline", description=__doc__)
    parser.add_argument("--short", action="store_true", help=f"{SHORT_STEPS} steps a run; shows that all runs")
    parser.add_argument("--measure", action="store_true", help="measure and draw again what --output already holds")
    parser.add_argument("--output", type=Path, default=Path("runs/rlhf-offline"), help="a new folder")
    args = parser.parse_args(argv)
    folder = args.output.resolve()
    if folder.exists() is not args.measure:
        print(
            f"error: {folder} {'does not exist' if args.measure else 'exists'}; name another --output", file=sys.stderr
        )
        return 2
    torch.set_num_threads(1)
    if not args.measure:
        folder.mkdir(parents=True)
        learn(folder, args.short)
    print((folder / "verdicts.log").read_text(encoding="utf-8"))
    points = curves(folder, args.short)
    (folder / "rlhf_offline.json").write_text(json.dumps({"points": points}, indent=1) + "\n", encoding="utf-8")
    draw(points, folder / "rlhf_offline.png")
    print("\n" + table(lines(points)))
    chosen = next(p["gain"] for p in points if (p["method"], p["at"]) == CHOICE)
    print(
        f"\n{CHOICE[0]}, beta {CHOICE[1]:g}: true reward above the clone's by {chosen['mean']:.3f} "
        f"[{chosen['low']:.3f}, {chosen['high']:.3f}] on the same {40 if args.short else EPISODES} starts"
    )
    print(f"{folder / 'rlhf_offline.json'} and rlhf_offline.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
