"""Growth: seconds a step, ours and trlx style, as one of dialogues, T, V and D grows. Decision: dialogues of equal
length, so that no padding is saved: the case that suits us least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pairs import Measured, say, speedup, spread
from benchmarks.report import Section
from benchmarks.shapes import Shape
from benchmarks.train import BF16, FP32, TRLX, Trainers, compare

BASE = Shape("growth", 4, 128, 4, 2_000, 16, mean=128, spread=None)
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "dialogues": ("dialogues", (4, 8, 16, 32, 64)),
    "T": ("mean", (64, 128, 256, 512, 1024)),
    "V": ("vocabulary", (50, 2_000, 10_000, 151_936)),
    "D": ("width", (64, 128, 256, 512)),
}
QUICK: dict[str, tuple[str, tuple[int, ...]]] = {"dialogues": ("dialogues", (2, 4)), "V": ("vocabulary", (50, 500))}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size, by least squares: 1 is linear growth."""
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measure(pairs: int, quick: bool = False) -> Section:
    """The table; its figures are the lowest ratio of all and the exponents."""
    section = Section("scaling", "Growth")
    gains: dict[str, list[Measured]] = {FP32: [], BF16: []}
    base = replace(BASE, width=32, layers=2, mean=32) if quick else BASE
    for axis, (field, sizes) in (QUICK if quick else AXES).items():
        ours, decisions = [], []
        for size in sizes:
            say(f"scaling: {axis} {size:,}")
            changed: dict[str, Any] = {field: size}
            trainers = Trainers(replace(base, **changed), (FP32, BF16, TRLX))
            seconds = compare(trainers, pairs)
            ours.append(spread(seconds[FP32]).value)
            decisions.append(trainers.batch().n)
            line = {"growing": axis, "size": f"{size:,}", "decisions": f"{decisions[-1]:,}"}
            line |= {f"{kind}: seconds a step": f"{spread(seconds[kind]).value:.4f}" for kind in (FP32, BF16, TRLX)}
            for kind, each in gains.items():
                each.append(speedup(seconds[kind], seconds[TRLX]))
                line[f"times trlx style's speed, {kind[-4:]}"] = "{:.2f} [{:.2f}, {:.2f}]".format(*each[-1])
            section.rows.append(line)
            for kind in (FP32, BF16, TRLX):
                section.figures[f"scaling/{axis}/{size}/{kind}"] = spread(seconds[kind])
        found = exponent(sizes, ours)
        section.figures[f"scaling/{axis}/exponent"] = Measured(found, found, found)
        if axis == "T":
            found = exponent(decisions, ours)
            section.figures["scaling/decisions/exponent"] = Measured(found, found, found)
    section.figures |= {f"scaling/lowest/{kind[-4:]}": min(each) for kind, each in gains.items()}
    fits = [axis for axis in AXES if f"scaling/{axis}/exponent" in section.figures]
    shown = ", ".join(f"{axis} {section.figures[f'scaling/{axis}/exponent'].value:.2f}" for axis in fits)
    section.notes.append(
        f"What does not grow: {base.layers} layers, D {base.width}, V {base.vocabulary:,}, {base.dialogues} dialogues "
        f"of {base.mean} tokens, about half of which are decisions. Exponents of our fp32 over the size: {shown}; a "
        "step has fixed costs, so one below 1 says that they still count, and attention grows with the square of T."
    )
    return section


def plot(section: Section, path: Path) -> None:
    """Seconds over size on logarithmic axes, one panel an axis, as a PNG."""
    from matplotlib import use

    use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(AXES), figsize=(10, 2.6), sharey=True, layout="constrained")
    for panel, (axis, (_, sizes)) in zip(panels, AXES.items(), strict=True):
        for kind, mark in ((FP32, "o-"), (BF16, "^-"), (TRLX, "s--")):
            found = [section.figures[f"scaling/{axis}/{size}/{kind}"] for size in sizes]
            panel.plot(sizes, [f.value for f in found], mark, label=kind, markersize=3, linewidth=1)
            panel.fill_between(sizes, [f.low for f in found], [f.high for f in found], alpha=0.2)
        panel.set(xscale="log", yscale="log", xlabel=axis, xticks=sizes, xticklabels=[_short(s) for s in sizes])
        panel.minorticks_off()
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds a step")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _short(size: int) -> str:
    return f"{size / 1000:.0f}k" if size >= 10_000 else str(size)
