"""A reward model's accuracy and calibration by cross-validation: `python -m examples.preference_folds FILE ...`.

Decision: folds are of conversations, by the builder's `--validation K/N`, so every pair is judged once, by a model that
has not seen its conversation; the table is over all pairs, and its intervals resample conversations. Beside the model
stands a rule without one, the longer reply. Further options go to the training (`--steps 300`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets_prep.build import Options, build
from ilql.command import guard
from ilql.config import load_config
from ilql.report import interval, table
from ilql.rows import Rows
from ilql.trainer import train
from ilql.types import InputError
from ilql.verdicts import Compared, accuracy, lines, read_pairs


def main(argv: Sequence[str] | None = None) -> int:
    return guard(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.preference_folds", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of the corpus preferences")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for datasets, runs and folds.json")
    parser.add_argument("--config", default="examples/taskmaster_reward_model.yaml", help="of the runs")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--tokenizer", default="word:1500")
    args, options = parser.parse_known_args(argv)
    if args.output.exists():
        raise InputError(f"--output {args.output} exists; name a new folder")
    found: list[Compared] = []
    longer: list[float] = []
    for k in range(1, args.folds + 1):
        data, run = args.output / f"data-{k}", args.output / f"run-{k}"
        settings: dict[str, Any] = {"tokenizer": args.tokenizer, "step": "utterance", "seed": args.seed}
        build(Options("preferences", data, args.files, validation=f"{k}/{args.folds}", **settings))
        words = ["--config", args.config, "--data.path", str(data), "--output", str(run), "--seed", str(k), *options]
        train(load_config(words))
        pairs = read_pairs(run, [data], "validation")
        print(f"fold {k}: {len(pairs)} pairs, accuracy {accuracy(np.array([p.gain for p in pairs])):.1f} %", flush=True)
        found += pairs
        longer += _longer(data, pairs)
    print("\n" + "\n\n".join(lines(found)))
    groups = [pair.group for pair in found]
    print("\n" + table([{"rule": "the longer", "accuracy, %": interval(accuracy, [np.array(longer)], groups)}]))
    columns = {"pair": [p.name for p in found], "group": groups, "gain": [p.gain for p in found], "longer": longer}
    (args.output / "folds.json").write_text(json.dumps(columns, indent=1) + "\n", encoding="utf-8")
    return 0


def _longer(data: Path, pairs: Sequence[Compared]) -> list[float]:
    """By how many tokens the preferred reply is the longer one."""
    rows = Rows(data, "validation")
    each: dict[str, dict[float, int]] = {}
    for i in range(len(rows)):
        row = rows[i]
        each.setdefault(row["pair"], {})[float(row["reward"].sum())] = int(row["end"][-1] - row["start"][-1])
    return [float(each[pair.name][1.0] - each[pair.name][0.0]) for pair in pairs]


if __name__ == "__main__":
    sys.exit(main())
