"""`python -m benchmarks [train] [--pairs N] [--shape WORDS]`: prints ratios, min-median-max over pairs of runs."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys

import torch
import transformers

from benchmarks import train
from ilql.report import table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", default="train", choices=("train",))
    parser.add_argument("--pairs", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--shape", default="", help="only shapes whose name holds this")
    args = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__} with {torch.get_num_threads()} threads, ", end="")
    print(f"transformers {transformers.__version__}; median [min, max] over {args.pairs} pairs\n")
    lines = []
    for shape in train.SHAPES:
        if args.shape not in shape.name:
            continue
        found = train.compare(shape, args.pairs)
        seconds = found["seconds"]
        line = {"training": shape.name, "real of padded tokens": f"{found['tokens']} of {found['padded']}"}
        line["ours, s a step"] = f"{statistics.median(seconds['ours']):.3f}"
        for kind in ("ours", "ours, bf16"):
            for peer in ("trlx style", "Snell style"):
                line[f"{kind}: times {peer}'s speed"] = train.ratio(seconds[kind], seconds[peer])
        lines.append(line)
        print(f"{shape.name}: done", file=sys.stderr)
    print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
