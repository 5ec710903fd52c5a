"""What happens to one bad dialogue. Decision: a fault in a line is a value that is counted and written down, not a
crash; `Reject` is both the exception that the encoder raises and the value that a corpus yields in an episode's place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ilql.types import Episode

SAID = 1000  # characters of each of a reject's texts


class Reject(Exception):
    """One dialogue that cannot be used, and why.

    file: base name of the file; line: its line, counted from 1 (0 where unknown); field: the field at fault;
    reason: a plain sentence; id: the dialogue's id, where it is known. What a stranger wrote is repeated in part only.
    """

    def __init__(self, file: str, line: int, field: str, reason: str, id: str | None = None) -> None:
        field, reason, id = field[:SAID], reason[:SAID], id if id is None else id[:SAID]
        super().__init__(file, line, field, reason, id)  # all of them, so that it pickles between processes
        self.file, self.line, self.field, self.reason, self.id = file, line, field, reason, id

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else (f"dialogue {self.id!r}" if self.id else "dialogue")
        return ": ".join(part for part in (where, self.field, self.reason) if part)

    def as_dict(self) -> dict[str, Any]:
        """The line of `rejected.jsonl`."""
        return {"file": self.file, "line": self.line, "field": self.field, "reason": self.reason, "id": self.id}

    def of(self, id: str | None, place: tuple[str, int]) -> Reject:
        """The same fault, of a dialogue and the file and line where that comes from."""
        return Reject(*place, self.field, self.reason, id)


def at(turn: int, field: str) -> str:
    """A field of a turn, counted from 0, as a reject names it."""
    return f"messages[{turn}].{field}"


@dataclass(frozen=True, slots=True)
class Placed(Episode):
    """An episode that knows its file (base name) and line, so that a fault found later can be traced to them."""

    file: str = ""
    line: int = 0
