"""The double-T maze of LMRL-Gym (Abdulhai et al. 2023), text in and text out.

Decision: the published texts, rewards and limit byte for byte, so that published figures can stand beside ours; only
the start is ours. It is taken from the seed and not drawn, so that any 25 consecutive seeds are all the starts once and
a greedy evaluation has no luck in it.

    #############      S is any free cell but the goal G. Moves are "move left\\n", "move right\\n", "move up\\n" and
    #     #     #      "move down\\n"; a move into a wall stays. Reward 0 on reaching the goal ("Success\\n"), -1 for a
    ### ##### ###      move, -4 for an utterance that is none of the four (it counts as a step). After 100 steps one
    ### ##### ###      more returns "Failure\\n" and -1 and ends it: that limit comes from outside, so it truncates.
    ### ##### ###      Returns lie in [-101, 0] for a policy that keeps to the four moves.
    ###       ###
    ###### ######
    ###### ######
    ######G######
    #############
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ilql.types import Episode, InputError, Reply

SEATS = 1
LAYOUT = (
    "#############",
    "#     #     #",
    "### ##### ###",
    "### ##### ###",
    "### ##### ###",
    "###       ###",
    "###### ######",
    "###### ######",
    "######G######",
    "#############",
)
OBSERVATIONS = ("full", "partial")
MOVES: dict[str, tuple[int, int]] = {
    "move left\n": (0, -1),
    "move right\n": (0, 1),
    "move up\n": (-1, 0),
    "move down\n": (1, 0),
}
SIDES = {"to your right": (0, 1), "to your left": (0, -1), "above you": (-1, 0), "below you": (1, 0)}
STEP_LIMIT = 100
PARTIAL_OPTIMUM = -25.75  # published for observation="partial"; not computed here (it needs the belief over cells)

Cell = tuple[int, int]


class Maze:
    """One walk through the maze.

    observation: "full" tells the goal, the position and the walls; "partial" only the walls, so that the position
        has to be told from the history.
    mirror: the rows in reverse order (the goal at 1, 6 and above instead of below): another task in the same words.
        Left and right are not what is swapped: the maze is its own image there.
    Public facts for policies and generators: `cells`, `goal`, `starts` (row by row), `cell` (where the walker is).
    """

    def __init__(self, observation: str = "full", mirror: bool = False) -> None:
        if observation not in OBSERVATIONS:
            raise InputError(f"the maze's observation is {observation!r}, but must be {' or '.join(OBSERVATIONS)}")
        self.observation = observation
        self.mirror = mirror
        rows = LAYOUT[::-1] if mirror else LAYOUT
        grid = {(r, c): mark for r, row in enumerate(rows) for c, mark in enumerate(row) if mark != "#"}
        self.cells = frozenset(grid)
        self.goal: Cell = next(cell for cell, mark in grid.items() if mark == "G")
        self.starts: tuple[Cell, ...] = tuple(sorted(self.cells - {self.goal}))
        self._distance = _distances(self)
        self.start = self.cell = self.starts[0]
        self.steps = 0
        self._over = True

    def reset(self, seed: int) -> str:
        """Start at cell number `seed` modulo 25 of `starts`; returns the first observation."""
        return self.place(self.starts[seed % len(self.starts)])

    def place(self, cell: Cell) -> str:
        """Start at a free cell other than the goal; returns the first observation."""
        if cell not in self.cells or cell == self.goal:
            raise ValueError(f"{cell} is no start: choose one of the maze's `starts`")
        self.start = self.cell = cell
        self.steps = 0
        self._over = False
        return self.describe(cell)

    def step(self, utterance: str) -> Reply:
        """Take a move; white space around the utterance is no matter. RuntimeError after the end."""
        if self._over:
            raise RuntimeError("the walk is over: call reset")
        if self.steps == STEP_LIMIT:
            self._over = True
            return Reply("Failure\n", -1.0, truncated=True)
        action = utterance.strip() + "\n"
        self.steps += 1
        self.cell = self.after(self.cell, action)
        if self.cell == self.goal:
            self._over = True
            return Reply("Success\n", 0.0, terminated=True)
        return Reply(self.describe(self.cell), -1.0 if action in MOVES else -4.0)

    def after(self, cell: Cell, action: str) -> Cell:
        """The cell that an action leads to; a wall, or an utterance that is no move, stays."""
        down, right = MOVES.get(action, (0, 0))
        target = (cell[0] + down, cell[1] + right)
        return target if target in self.cells else cell

    def steps_to_goal(self, cell: Cell) -> int:
        """Length of the shortest path, in moves."""
        return self._distance[cell]

    def shortest_move(self, cell: Cell) -> str:
        """The move that begins the shortest path. It is the only one: the maze has no loops."""
        return min(MOVES, key=lambda action: self._distance[self.after(cell, action)])

    def describe(self, cell: Cell) -> str:
        """The observation at a cell, newline included."""
        walls = [side for side, (r, c) in SIDES.items() if (cell[0] + r, cell[1] + c) not in self.cells]
        if not walls:
            text = "There are no walls near you.\n"
        elif len(walls) == 1:
            text = f"There is a wall {walls[0]}.\n"
        else:
            text = f"There are walls {', '.join(walls)}.\n"
        if self.observation == "partial":
            return text
        here, goal = (f"{row}, {column}" for row, column in (cell, self.goal))
        return f"The goal is at position {goal}. Your current position is at position {here}. {text}"

    def facts(self) -> dict[str, Any]:
        """What a transcript records of the walk so far."""
        return {"start": list(self.start), "success": self.cell == self.goal, "steps": self.steps}


def _distances(maze: Maze) -> dict[Cell, int]:
    """Moves from every free cell to the goal, breadth first."""
    distance = {maze.goal: 0}
    queue = [maze.goal]
    for cell in queue:
        for down, right in MOVES.values():
            neighbour = (cell[0] + down, cell[1] + right)
            if neighbour in maze.cells and neighbour not in distance:
                distance[neighbour] = distance[cell] + 1
                queue.append(neighbour)
    return distance


def optimal_return(maze: Maze | None = None) -> float:
    """Mean undiscounted return of shortest paths over the 25 starts: -6.84 (the move into the goal costs nothing)."""
    maze = maze or Maze()
    return sum(1 - maze.steps_to_goal(cell) for cell in maze.starts) / len(maze.starts)


def make(observation: str = "full", mirror: bool = False) -> Callable[[], Maze]:
    """A factory of mazes, as `rollout` asks for."""
    Maze(observation, mirror)  # a bad option fails here, with one sentence, and not in the middle of a rollout
    return lambda: Maze(observation, mirror)


def summary(episodes: Sequence[Episode]) -> dict[str, list[float | None]]:
    """Extra columns of an evaluation: whether the goal was reached (in %), and the number of moves made."""
    return {
        "success %": [100.0 * episode.meta["success"] for episode in episodes],
        "steps": [float(sum(turn.is_action for turn in episode.turns)) for episode in episodes],
    }
