"""What a history is worth: the three partially observed tasks, learned from the whole dialogue and from the last
observation alone, beside the best that any policy of that memory can get.

Decision: it runs the commands that a user would type, each shown as it starts, and keeps what they wrote; the figure is
drawn from `memory.json` beside it. `python -m examples.memory [--seeds 1-3] [--short] [--output DIR]`; --short trains a
few steps only and claims nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.maze_demo import command, finish, interval
from ilql.seeds import numbers

SHORT_STEPS = 5
BETA = "32"


@dataclass(frozen=True)
class Task:
    """corpus: arguments of the builder. options: of the training. episodes: dialogues played by each run. best: what
    deterministic policies can get, by history (`tests/pomdps.py`)."""

    title: str
    env: str
    corpus: tuple[str, ...]
    options: tuple[str, ...]
    episodes: int
    best: dict[str, float]


TASKS = {
    "recall": Task("recall: a word of nine turns ago", "recall", ("recall",), (), 400, {"full": 1.0, "1": 0.25}),
    "listen": Task("door: listen before opening", "door", ("door",), (), 1000, {"full": 0.58, "1": 0.15}),
    "corridor": Task(
        "door: a corridor of places alike",
        "door",
        ("door", "--variant", "corridor"),
        ("--data.reward_scale", "0.1"),
        100,
        {"full": -3.0, "1": -100.0},
    ),
}


def learn(folder: Path, name: str, history: str, seeds: str, short: bool) -> None:
    """Train a run a seed."""
    task = TASKS[name]
    options = ["--config", f"examples/{task.env}_ilql.yaml", "--data.path", str(folder / f"data-{name}")]
    options += [
        *task.options,
        "--data.history",
        history,
        "--seeds",
        seeds,
        "--output",
        str(folder / f"{name}-{history}"),
    ]
    options += ["--steps", str(SHORT_STEPS)] if short else []
    log = folder / f"{name}-{history}.log"
    finish(command("train.py", *options, log=log), log)


def play(folder: Path, name: str, history: str, seeds: str, short: bool) -> dict[str, Any]:
    """The returns of the runs of a task and history, played together; greedily, since a policy that draws may be better
    than any that does not."""
    task, output = TASKS[name], folder / f"eval-{name}-{history}"
    runs = [str(folder / f"{name}-{history}" / f"seed-{seed}") for seed in numbers(seeds)]
    options = ["--env", task.env, "--episodes", str(8 if short else task.episodes), "--max-new-tokens", "1", "--greedy"]
    options += ["--beta", BETA, "--quiet", "--output", str(output)]
    log = output.with_suffix(".log")
    finish(command("eval.py", *runs, *options, log=log), log)
    found: dict[str, Any] = json.loads((output / "eval.json").read_text())["rows"][0]["metrics"]["return"]
    return found


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel a task: what was learned with its interval, and the best that such a policy can get as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(TASKS), figsize=(10, 3.2), constrained_layout=True)
    for axis, (name, task) in zip(axes, TASKS.items(), strict=True):
        for place, history in enumerate(("full", "1")):
            row = next(row for row in rows if row["task"] == name and row["history"] == history)
            spread = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            axis.bar(place, row["mean"], width=0.6, yerr=spread, capsize=4, color=("#33658a", "#bbbbbb")[place])
            axis.hlines(task.best[history], place - 0.4, place + 0.4, colors="black", linewidth=2)
        axis.axhline(0, color="black", linewidth=0.5)
        axis.set_xticks([0, 1], ["whole dialogue", "last observation"])
        axis.set_title(task.title, fontsize=9)
        axis.set_ylabel("return")
    figure.suptitle(
        "ILQL by what it sees; lines: the best that a deterministic policy which sees it can get", fontsize=9
    )
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.memory", description=__doc__)
    parser.add_argument("--seeds", default="1-3", help="training seeds, 1-3 or 1,5")
    parser.add_argument("--short", action="store_true", help=f"{SHORT_STEPS} steps a run; shows that all runs")
    parser.add_argument("--output", type=Path, default=Path("runs/memory"), help="a new folder")
    args = parser.parse_args(argv)
    folder = args.output.resolve()
    if folder.exists():
        print(f"error: {folder} exists; name a new folder by --output", file=sys.stderr)
        return 2
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for name, task in TASKS.items():
        log = folder / f"data-{name}.log"
        build = ["-m", "datasets_prep", *task.corpus, "--output", str(folder / f"data-{name}")]
        finish(command(*build, "--tokenizer", "word", "--turn-tokens", log=log), log)
        for history, best in task.best.items():
            learn(folder, name, history, args.seeds, args.short)
            found = play(folder, name, history, args.seeds, args.short)
            rows.append({"task": name, "history": history, **found, "best": best})
            print(f"{name}, history {history}: {interval(found)}, best {best}", flush=True)
    (folder / "memory.json").write_text(
        json.dumps({"seeds": numbers(args.seeds), "beta": float(BETA), "rows": rows}, indent=1) + "\n"
    )
    draw(rows, folder / "memory.png")
    print(f"{folder / 'memory.json'} and memory.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
