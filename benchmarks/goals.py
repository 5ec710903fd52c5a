"""What is to be reached, and whether a run reached it. Decision: a goal names the figure that judges it, so that no
miss can be left out: a figure that was not measured is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.pairs import Measured

Figures = Mapping[str, Measured]


def _times(m: Measured) -> str:
    return f"{m.value:.2f}x [{m.low:.2f}, {m.high:.2f}]"


def _part(m: Measured) -> str:
    return f"1/{m.value:.2f}"


def _gigabytes(m: Measured) -> str:
    return f"{m.value:.3f} GB"


def _percent(m: Measured) -> str:
    return f"{100 * m.value:.0f} % [{100 * m.low:.0f}, {100 * m.high:.0f}]"


def _growth(m: Measured) -> str:
    return f"{100 * m.value:+.1f} %"


def _share(m: Measured) -> str:
    return f"{100 * m.value:.2f} %"


def _number(m: Measured) -> str:
    return f"{m.value:.2f}"


@dataclass(frozen=True)
class Goal:
    """figures: names of what judges it; of several the best counts, and its name's last part is shown. bound: at least,
    or where `most`, at most. bf16: holds only where the processor has instructions for it. beside: figures that are
    shown with it and judge nothing."""

    work: str
    against: str
    goal: str
    figures: tuple[str, ...]
    bound: float
    show: Callable[[Measured], str] = _times
    most: bool = False
    bf16: bool = False
    beside: tuple[tuple[str, str], ...] = ()


FIRST = "4 x 768, V 50,257, 8 dialogues"
BEST = ("fp32", "bf16")
GOALS = (
    Goal(f"train, {FIRST}, in bf16", "trlx style fp32", "≥ 5x", ("train/first/bf16",), 5, bf16=True),
    Goal(f"train, {FIRST}, in fp32", "trlx style fp32", "≥ 2.5x", ("train/first/fp32",), 2.5),
    Goal(
        "train, 4 x 256, V 10,000, 16 dialogues",
        "trlx style",
        "≥ 8x",
        tuple(f"train/second/{b}" for b in BEST),
        8,
    ),
    Goal(
        "its peak memory",
        "trlx style",
        "≤ 1/3",
        tuple(f"memory/second/{b}/peak" for b in BEST),
        3,
        _part,
    ),
    Goal(
        "train, 4 x 128, V 50, game logs of 60-100 tokens",
        "trlx style",
        "≥ 2x",
        tuple(f"train/third/{b}" for b in BEST),
        2,
    ),
    Goal(
        "heads from cached h_t read from disk, 4 x 768, V 50,257",
        "trlx style",
        "≥ 8x",
        tuple(f"cache/first/{b}" for b in BEST),
        8,
    ),
    Goal(
        "heads from cached h_t read from disk, 4 x 128, V 50",
        "trlx style",
        "≥ 12x",
        tuple(f"cache/third/{b}" for b in BEST),
        12,
    ),
    Goal(
        "any size of the table of growth",
        "trlx style",
        "never below 1x",
        tuple(f"scaling/lowest/{b}" for b in BEST),
        1,
        beside=(("fp32", "scaling/lowest/fp32"),),
    ),
    Goal(
        "memory above weights, gradients, optimizer and interpreter, 4 x 768, V 50,257",
        "trlx style",
        "≤ 1/7",
        ("memory/first/fp32/above",),
        7,
        _part,
        beside=(("bf16", "memory/first/bf16/above"),),
    ),
    Goal(
        "the same in gigabytes",
        "–",
        "≤ 0.5 GB",
        ("memory/first/fp32/GB",),
        0.5,
        _gigabytes,
        most=True,
        beside=(("bf16", "memory/first/bf16/GB"),),
    ),
    Goal(
        "the same, V 151,936 at 1,025 decisions",
        "trlx style",
        "≤ 1/20",
        ("memory/wide/fp32/above",),
        20,
        _part,
    ),
    Goal(
        "decode, 4 x 768, V 50,257, batch 8, 64 new tokens, in bf16",
        "trlx style",
        "≥ 10x",
        ("decode/first/bf16/trlx style",),
        10,
        bf16=True,
    ),
    Goal("the same in fp32", "trlx style", "≥ 6x", ("decode/first/fp32/trlx style",), 6),
    Goal("the same in fp32", "Snell style", "≥ 12x", ("decode/first/fp32/Snell style",), 12),
    Goal("decode, 4 x 128, V 50", "trlx style", "≥ 3x", tuple(f"decode/third/{b}/trlx style" for b in BEST), 3),
    Goal(
        "decode, 4 x 768, V 50,257: weights read a second, in bf16",
        "memory bandwidth of the run",
        "≥ 40 %",
        ("decode/first/bf16/bandwidth",),
        0.4,
        _percent,
        bf16=True,
        beside=(("fp32", "decode/first/fp32/bandwidth"),),
    ),
    Goal(
        "the best of 8 candidates for one dialogue, 4 x 768, V 50,257",
        "one reply",
        "≤ 2.5x",
        ("candidates/first/1",),
        2.5,
        most=True,
        beside=(("8 dialogues", "candidates/first/8"),),
    ),
    Goal("the same, 4 x 128, V 50", "one reply", "≤ 2.5x", ("candidates/third/1",), 2.5, most=True),
    Goal("build, 20,000 synthetic dialogues, byte-level BPE", "per-row Python", "≥ 10x", ("build/synthetic/rows",), 10),
    Goal("the same", "`datasets.map`", "≥ 25x", ("build/synthetic/map",), 25),
    Goal("build, Deal or No Deal", "per-row Python", "≥ 5x", ("build/real/rows",), 5),
    Goal("the same", "`datasets.map`", "≥ 12x", ("build/real/map",), 12),
    Goal(
        f"train, {FIRST}: share of the bf16 GEMM peak",
        "the limit",
        "≥ 50 %",
        ("train/first/bf16/share",),
        0.5,
        _percent,
        bf16=True,
    ),
    Goal(
        "growth of a step with dialogues, exponent",
        "linear",
        "≤ 1.1",
        ("scaling/dialogues/exponent",),
        1.1,
        _number,
        most=True,
    ),
    Goal(
        "growth of a step with decisions, as dialogues grow longer, exponent",
        "linear",
        "≤ 1.1",
        ("scaling/decisions/exponent",),
        1.1,
        _number,
        most=True,
    ),
    Goal(
        "memory of training on ten times as many rows",
        "the same peak",
        "≤ 5 % more",
        ("memory/dataset/own",),
        0.05,
        _growth,
        most=True,
        beside=(("with the mapped files' pages", "memory/dataset/peak"),),
    ),
    Goal("checksums and checks, of an epoch", "–", "≤ 2 %", ("trust/epoch",), 0.02, _share, most=True),
    Goal("checksums and checks, of a build", "–", "≤ 5 %", ("trust/build",), 0.05, _share, most=True),
)


def verdicts(figures: Figures, bf16: bool) -> list[dict[str, Any]]:
    """A row for each goal: work, against, goal, measured, and whether it was met."""
    return [_verdict(goal, figures, bf16) for goal in GOALS]


def _verdict(goal: Goal, figures: Figures, bf16: bool) -> dict[str, Any]:
    row = {"work": goal.work, "against": goal.against, "goal": goal.goal}
    known = [name for name in goal.figures if name in figures]
    if not known:
        return {**row, "measured": "not in this run", "": "–"}
    best = (min if goal.most else max)(known, key=lambda name: figures[name].value)
    measured = goal.show(figures[best])
    if len(goal.figures) > 1:
        measured += next(f" in {b}" for b in BEST if b in best.split("/"))
    for what, name in goal.beside:
        if name in figures:
            measured += f"; {what}: {goal.show(figures[name])}"
    if goal.bf16 and not bf16:
        return {**row, "measured": measured, "": "not judged: no bf16 instructions"}
    met = figures[best].value <= goal.bound if goal.most else figures[best].value >= goal.bound
    return {**row, "measured": measured, "": "met" if met else "missed"}
