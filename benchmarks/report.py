"""What a run of the benchmarks found: tables for people, figures for goals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.pairs import Measured


@dataclass
class Section:
    """name: of the command. title: of the table. rows: of the table. figures: name -> what a goal is judged by. notes:
    sentences below the table. extra: further tables by title."""

    name: str
    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Measured] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
