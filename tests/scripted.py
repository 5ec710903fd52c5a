"""Policies that need no model: a walker that knows the maze and negotiators that keep to a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ilql.envs.deal_or_no_deal import SELECTION, Items, counts, parse_numbers, spell_selection
from ilql.envs.maze import Maze
from ilql.types import Turn


class Scripted:
    """A policy of a function of one dialogue; `batches` holds the size of every batch it was asked."""

    def __init__(self, answer: Callable[[Sequence[Turn]], str]) -> None:
        self.answer = answer
        self.batches: list[int] = []

    def respond(self, dialogues: Sequence[Sequence[Turn]]) -> list[str]:
        self.batches.append(len(dialogues))
        return [self.answer(turns) for turns in dialogues]


def walker(mirror: bool = False) -> Scripted:
    """Takes the shortest path of the fully observed maze."""
    maze = Maze(mirror=mirror)
    known = {maze.describe(cell): maze.shortest_move(cell) for cell in maze.starts}
    return Scripted(lambda turns: known[turns[-1].text])


def negotiator(wants: bool) -> Scripted:
    """Says what it wants and selects that: everything or nothing. Who only answers says "deal" and takes the rest."""

    def answer(turns: Sequence[Turn]) -> str:
        everything = counts(parse_numbers(turns[0].text))
        talk = [turn for turn in turns[1:] if turn.text != SELECTION]
        first = not talk or talk[0].is_action
        takes = wants if first else "you take" in talk[0].text
        items: Items = everything if takes else (0, 0, 0)
        if turns[-1].text == SELECTION or (first and len(talk) == 2):
            return spell_selection(items)
        return "deal" if not first else "i take all ." if wants else "you take all ."

    return Scripted(answer)


def grabber() -> Scripted:
    """Closes the talk at once and takes everything."""
    return Scripted(lambda turns: spell_selection(counts(parse_numbers(turns[0].text))))
