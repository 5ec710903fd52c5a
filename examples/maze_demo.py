"""The main job from end to end, on the maze: logs -> four algorithms -> a table, and one dialogue with its values.

Decision: it runs the commands that a user would type, each shown as it starts, two trainings side by side on one thread
each, so that what `make demo` shows can be repeated by hand. `python -m examples.maze_demo [--seed S] [--mirror]
[--short] [--output DIR]`; --short trains a few steps only and claims nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilql.decode import load, score
from ilql.envs.maze import MOVES, Maze, optimal_return
from ilql.report import bootstrap, table
from ilql.rows import Rows
from ilql.types import Episode, Turn

ROOT = Path(__file__).resolve().parent.parent
ALGORITHMS = ("ilql", "bc", "filtered_bc", "mc")
BETAS = (0, 1, 4, 16)
SAMPLED = 100
SHORT_STEPS = 20


def command(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a command of the checkout, shown as it would be typed; what it prints goes to a file."""
    print("$ python " + shlex.join(arguments), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a command; on failure show what it printed and stop."""
    if process.wait() != 0:
        sys.exit(f"{log.read_text(errors='replace')}\nerror: the command failed with status {process.returncode}")


def train_all(folder: Path, data: Path, short: bool) -> None:
    """ILQL, the longest, on one core; the three others behind each other on the second."""

    def start(algo: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = folder / f"{algo}.log"
        options = ["--data.path", str(data), "--output", str(folder / algo)]
        options += ["--steps", str(SHORT_STEPS)] if short else []
        return command("train.py", "--config", f"examples/maze_{algo}.yaml", *options, log=log), log

    longest = start("ilql")
    for algo in ALGORITHMS[1:]:
        finish(*start(algo))
    finish(*longest)


def evaluate_all(folder: Path, short: bool) -> list[dict[str, Any]]:
    """Play every start once, greedily, and 100 sampled dialogues, for each algorithm and beta: the table's rows."""
    rows = []
    sampled = str(10 if short else SAMPLED)
    for algo in ALGORITHMS[1:] + ALGORITHMS[:1]:
        betas = [str(b) for b in BETAS] if algo in ("mc", "ilql") else ["0"]
        found: dict[str, list[dict[str, Any]]] = {}
        for name, options in (("greedy", ["--episodes", "25", "--greedy"]), ("sampled", ["--episodes", sampled])):
            log, output = folder / f"{algo}-{name}.log", folder / algo / "eval" / name
            arguments = ["eval.py", str(folder / algo), "--env", "maze", *options, "--beta", *betas, "--quiet"]
            arguments += ["--max-new-tokens", "1"]  # a move is one token
            finish(command(*arguments, "--output", str(output), log=log), log)
            found[name] = json.loads((output / "eval.json").read_text())["rows"]
        for greedy, played in zip(found["greedy"], found["sampled"], strict=True):
            metrics = greedy["metrics"]
            rows.append(
                {
                    "policy": f"{algo}, beta {greedy['beta']:g}",
                    "greedy, 25 starts": f"{metrics['return']['mean']:.2f}",
                    "reaches the goal": f"{metrics['success %']['mean']:.0f} %",
                    "sampled": interval(played["metrics"]["return"]),
                }
            )
    return rows


def interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def transcript(run: Path, mirror: bool) -> str:
    """An optimal walk from the first start, with the value of each state and the advantage of each of the moves."""
    model, encoder = load(run)
    maze = Maze(mirror=mirror)
    text = maze.reset(0)
    lines = ["state                                        V      advantage of: " + "  ".join(map(str.strip, MOVES))]
    for _ in range(30):
        scores = [score(model, Episode("walk", [Turn("user", text), Turn("assistant", m)]), encoder)[-1] for m in MOVES]
        chosen = max(range(4), key=lambda i: scores[i].advantage)  # type: ignore[arg-type, return-value]
        numbers = "  ".join(f"{s.advantage:+10.2f}{'*' if i == chosen else ' '}" for i, s in enumerate(scores))
        lines.append(f"{f'at {maze.cell}':<40} {scores[0].v:7.2f}  {numbers}")
        reply = maze.step(list(MOVES)[chosen])
        if reply.over:
            lines.append(
                f"{reply.text.strip()} after {maze.steps} moves; the shortest path has {maze.steps_to_goal(maze.start)}"
            )
            break
        text = reply.text
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.maze_demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the generated logs")
    parser.add_argument("--mirror", action="store_true", help="the maze upside down: another task in the same words")
    parser.add_argument("--short", action="store_true", help=f"{SHORT_STEPS} steps an algorithm; shows that all runs")
    parser.add_argument("--output", type=Path, help="a new folder (default: the next free runs/maze-demo-N)")
    args = parser.parse_args(argv)
    number = 1
    while args.output is None and (ROOT / "runs" / f"maze-demo-{number}").exists():
        number += 1
    folder = (args.output or ROOT / "runs" / f"maze-demo-{number}").resolve()
    if folder.exists():
        print(f"error: {folder} exists; name a new folder by --output", file=sys.stderr)
        return 2
    folder.mkdir(parents=True)
    begin = time.monotonic()
    data = folder / "data"
    moves = [move.strip() for move in MOVES]
    options = ["--seed", str(args.seed), *(["--mirror"] if args.mirror else [])]
    build = ["-m", "datasets_prep", "maze", "--output", str(data), "--tokenizer", "word", "--action-token", *moves]
    log = folder / "build.log"
    finish(command(*build, *options, log=log), log)
    print(f"\n{log.read_text().strip()}\n")
    train_all(folder, data, args.short)
    rows = evaluate_all(folder, args.short)
    returns = Rows(data).returns
    data_row = {"policy": "the logs", "sampled": interval(bootstrap(returns.tolist())._asdict())}
    optimum = {"policy": "optimum", "greedy, 25 starts": f"{optimal_return(Maze(mirror=args.mirror)):.2f}"}
    blank = dict.fromkeys(rows[0], "")
    text = table([{**blank, **data_row}, *rows, {**blank, **optimum}])
    (folder / "table.md").write_text(text + "\n")
    print(f"\nMean return of a dialogue (0 at best; 95 % bootstrap intervals over dialogues):\n\n{text}\n")
    print(f"ILQL, its values in rewards, * the chosen move:\n\n{transcript(folder / 'ilql', args.mirror)}\n")
    print(f"{time.monotonic() - begin:.0f} s; everything is in {folder}")
    if args.short:
        print(
            f"--short: {SHORT_STEPS} steps an algorithm; its numbers mean nothing. Run `make demo` for the real ones."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
