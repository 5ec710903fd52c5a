"""Memory of a training step, of training over a dataset ten times as large, and of the shapes of heads. Decision: each
figure comes from a process of its own, so that nothing left over from another is counted; see `benchmarks.probe`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.dataset import byte_encoder, write
from benchmarks.pairs import Measured, say
from benchmarks.probe import STATUS
from benchmarks.report import Section
from benchmarks.shapes import LARGE, MIDDLE, TINY, Shape, dialogues
from benchmarks.train import BF16, FP32, TRLX
from ilql.model import ILQLConfig, ILQLModel

WIDE = Shape("2 x 256, V 151,936, 1,025 decisions", 2, 256, 4, 151_936, 8, mean=268, spread=None)
ROWS, STEPS = 2_000, 8
MIB = 1 << 20


def probe(**asked: Any) -> dict[str, int]:
    """The answer of `benchmarks.probe` in a new process."""
    command = [sys.executable, "-m", "benchmarks.probe", json.dumps(asked)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:3])} failed on {asked}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(only: str = "", quick: bool = False) -> Section:
    section = Section("memory", "Memory of a training step")
    if not STATUS.exists():
        section.notes.append("Not measured: this system has no /proc/self/status.")
        return section
    for place, shape in ({"first": TINY} if quick else {"first": LARGE, "second": MIDDLE, "wide": WIDE}).items():
        if only in shape.name:
            step(section, place, shape, (FP32, TRLX) if quick or shape is WIDE else (FP32, BF16, TRLX))
    if only in "dataset":
        dataset(section, quick)
    if only in "heads":
        section.extra["Shapes of heads"] = heads(section.figures)
    return section


def step(section: Section, place: str, shape: Shape, kinds: tuple[str, ...]) -> None:
    """One step of each trainer."""
    found = {}
    for kind in kinds:
        say(f"memory: {shape.name}, {kind}")
        found[kind] = probe(kind=kind, shape=asdict(shape))
    theirs = found[TRLX]
    for kind, each in found.items():
        above = each["peak"] - each["base"]
        line = {"a step of": shape.name, "by": kind, "peak, MiB": f"{each['peak'] / MIB:,.0f}"}
        line["above weights, gradients, optimizer and interpreter, MiB"] = f"{above / MIB:,.0f}"
        if kind != TRLX:
            peak, beyond = theirs["peak"] / each["peak"], (theirs["peak"] - theirs["base"]) / max(1, above)
            line["peak, of trlx style's"] = f"1/{peak:.2f}"
            line["above, of trlx style's"] = f"1/{beyond:.2f}"
            name = f"memory/{place}/{'bf16' if kind == BF16 else 'fp32'}"
            for key, value in (("peak", peak), ("above", beyond), ("GB", above / 1e9)):
                section.figures[f"{name}/{key}"] = Measured(value, value, value)
        section.rows.append(line)


def dataset(section: Section, quick: bool) -> None:
    """Peaks of training on a dataset and on one of ten times as many rows."""
    rows, steps = (50, 2) if quick else (ROWS, STEPS)
    lines, found = [], []
    for count in (rows, 10 * rows):
        say(f"memory: training on {count:,} rows")
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = byte_encoder().vocab_size
            shape = replace(MIDDLE, vocabulary=vocabulary, dialogues=count)
            size = write(Path(folder) / "data", dialogues(shape), vocabulary)
            found.append(probe(dataset=str(Path(folder) / "data"), steps=steps))
        line = {
            "rows": f"{count:,}",
            "dataset, MiB": f"{size / MIB:.1f}",
            "peak, MiB": f"{found[-1]['peak'] / MIB:,.1f}",
        }
        line["without pages of files, MiB"] = f"{found[-1]['own'] / MIB:,.1f}"
        lines.append(line)
    for key in ("peak", "own"):
        growth = found[1][key] / found[0][key] - 1
        section.figures[f"memory/dataset/{key}"] = Measured(growth, growth, growth)
    section.extra["Training on ten times as many rows"] = lines


def heads(figures: dict[str, Measured]) -> list[dict[str, Any]]:
    """Bytes of weights and of AdamW's state in float32 by the shape of heads, counted, on a model that has no storage:
    V 151,936, D 1,536, 28 layers, as the smallest Qwen2 models of that width."""
    lines = []
    for head in ("mlp", "tied"):
        text = AutoConfig.for_model(
            "qwen2",
            vocab_size=151_936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        with torch.device("meta"):
            model = ILQLModel(ILQLConfig(text_config=text, head=head))
        everything = {id(p): p.numel() for p in model.parameters()}
        learned = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
        weights, state = 4 * sum(everything.values()), 8 * sum(learned.values())
        figures[f"heads/{head}"] = Measured(*(3 * [(weights + state) / 1e9]))
        line = {"model.head": head, "weights, GB": f"{weights / 1e9:.1f}", "AdamW's state, GB": f"{state / 1e9:.1f}"}
        lines.append({**line, "together, GB": f"{(weights + state) / 1e9:.1f}"})
    return lines
