"""A run as Markdown and as JSON, and its place in a page. Decision: the measured part of a page stands between two
markers and is written by the command that measured it, never by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import scaling
from benchmarks.goals import verdicts
from benchmarks.pairs import Measured
from benchmarks.report import Section
from ilql.atomic import write_text
from ilql.report import table
from ilql.types import InputError

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def figures(sections: Sequence[Section]) -> dict[str, Measured]:
    return {name: value for section in sections for name, value in section.figures.items()}


def as_json(head: dict[str, Any], sections: Sequence[Section], bf16: bool) -> str:
    """Everything that a run found; `goals` as shown, `figures` as numbers: value, lowest, highest."""
    found = {
        **head,
        "goals": verdicts(figures(sections), bf16) if head["goals"] else [],
        "figures": {name: list(value) for name, value in figures(sections).items()},
        "sections": {s.name: {k: v for k, v in asdict(s).items() if k != "figures"} for s in sections},
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def markdown(head: dict[str, Any], sections: Sequence[Section], bf16: bool) -> str:
    """The tables: goals where the run was a whole one, then each section."""
    machine = ", ".join(f"{name} {value}" for name, value in head["machine"].items())
    parts = [f"`{head['command']}` took {head['minutes']:.1f} minutes, {head['pairs']} pairs; {machine}."]
    if head["goals"]:
        parts += ["### Goals", table(verdicts(figures(sections), bf16))]
    for section in sections:
        parts += [f"### {section.title}", table(section.rows) if section.rows else ""]
        parts += [" ".join(section.notes)]
        parts += [text for title, rows in section.extra.items() for text in (f"{title}:", table(rows))]
    return "\n\n".join(part for part in parts if part) + "\n"


def check(path: Path) -> None:
    """Raise InputError unless the page has a place for a run: before hours are spent on one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--write: {path} cannot be read ({error.strerror}); name a page that exists") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"--write: {path} must have one line {BEGIN} and below it one line {END}")


def write(path: Path, text: str, sections: Sequence[Section]) -> None:
    """Put a run between the markers, the plot of growth beside the page."""
    check(path)
    grown = [s for s in sections if s.name == "scaling"]
    if grown:
        picture = path.with_name(f"{path.stem}-scaling.png")
        scaling.plot(grown[0], picture)
        text += f"\n![Seconds a step over dialogues, T, V and D, ours and trlx style]({picture.name})\n"
    page = path.read_text(encoding="utf-8")
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    write_text(path, f"{before}\n\n{text}\n{after}")
