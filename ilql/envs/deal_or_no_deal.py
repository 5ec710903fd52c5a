"""Deal or No Deal (Lewis et al. 2017) as a game of two seats, in the words of the corpus.

Two people share books, hats and balls. Each sees six numbers, the count and the own value of each kind ("1 0 4 2 1 2":
one book worth 0, four hats worth 2, one ball worth 2), and all the items together are worth 10 to each. They talk in
turns; an utterance that starts with "<selection>" closes the talk and carries that seat's own pick,
"<selection> item0=1 item1=0 item2=1" or "<selection> no agreement"; the other seat hears "<selection>" and answers
with its own pick in the same form. A deal: both picks are numbers and add up to the counts exactly; then each side gets
what its own pick is worth to it, else both get 0.

Decision: the observations are the corpus builder's, turn for turn, so that a transcript is training data and a policy
meets in a game what it met in the logs. A selection that cannot be read counts as no agreement. The limit on the talk
is scored by the task (no selection, no deal: 0 for both), so it terminates and does not truncate.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ilql.types import Episode, InputError, Reply, Turn

SEATS = 2
ITEMS = ("book", "hat", "ball")
TOTAL = 10  # what all the items are worth to each side
SELECTION = "<selection>"
NO_AGREEMENT = f"{SELECTION} no agreement"

Numbers = tuple[int, int, int, int, int, int]
Items = tuple[int, int, int]
Scenario = tuple[Numbers, Numbers]

_PICK = re.compile(rf"{SELECTION}\s+item0=(\d+)\s+item1=(\d+)\s+item2=(\d+)", re.ASCII)
_INPUT = re.compile(r"<input> (.*?) </input>.*<partner_input> (.*?) </partner_input>")


def parse_numbers(text: str) -> Numbers:
    """Six numbers from text. ValueError says what is wrong: not six, not numbers, or not worth 10."""
    words = text.split()
    if len(words) != 6 or not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"{text!r} is not six numbers (count and value of book, hat and ball)")
    a, b, c, d, e, f = (int(word) for word in words)
    worth = a * b + c * d + e * f
    if worth != TOTAL:
        raise ValueError(f"{text!r}: the items are worth {worth} together, not {TOTAL}")
    return a, b, c, d, e, f


def parse_scenario(first: str, second: str) -> Scenario:
    """The two sides' numbers, with equal counts. ValueError says what is wrong."""
    one, two = parse_numbers(first), parse_numbers(second)
    if counts(one) != counts(two):
        raise ValueError(f"the sides {first!r} and {second!r} count different items")
    return one, two


def spell(numbers: Sequence[int]) -> str:
    """Six numbers as a seat's first observation."""
    return " ".join(map(str, numbers))


def counts(numbers: Numbers) -> Items:
    return numbers[0], numbers[2], numbers[4]


def points(numbers: Numbers, items: Items) -> int:
    """What a pick is worth to the side that has these numbers."""
    return numbers[1] * items[0] + numbers[3] * items[1] + numbers[5] * items[2]


def group(scenario: Scenario) -> str:
    """The name of a scenario, whichever side comes first: what a split keeps together."""
    return " | ".join(sorted(map(spell, scenario)))


def parse_selection(utterance: str) -> Items | None:
    """The items of a selection; None for "no agreement" and for what cannot be read."""
    match = _PICK.fullmatch(utterance.strip())
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def spell_selection(items: Items | None) -> str:
    """A selection in the corpus' words; None is "no agreement"."""
    if items is None:
        return NO_AGREEMENT
    return f"{SELECTION} item0={items[0]} item1={items[1]} item2={items[2]}"


def feasible_allocations(total: Items) -> Iterator[Items]:
    """Every pick that one side may make of the counts; the other side gets the rest."""
    books, hats, balls = (range(count + 1) for count in total)
    return itertools.product(books, hats, balls)


def closed(turns: Sequence[Turn], utterance: str) -> list[str] | None:
    """All selections of the seat whose dialogue this is: where it has heard that the talk is closed, and where it is
    about to close it. None where it may talk, and where the dialogue does not begin with its numbers.
    """
    heard = bool(turns) and not turns[-1].is_action and turns[-1].text.strip() == SELECTION
    if not heard and not utterance.lstrip().startswith(SELECTION):
        return None
    try:
        numbers = parse_numbers(turns[0].text)
    except (IndexError, ValueError):
        return None
    return [*map(spell_selection, feasible_allocations(counts(numbers))), NO_AGREEMENT]


def pareto_optimal(scenario: Scenario, scores: tuple[float, float]) -> bool:
    """Whether no division of the items is better for one side and no worse for the other (Lewis et al. 2017)."""
    mine, theirs = scenario
    total = counts(mine)
    for items in feasible_allocations(total):
        rest = (total[0] - items[0], total[1] - items[1], total[2] - items[2])
        a, b = points(mine, items), points(theirs, rest)
        if a >= scores[0] and b >= scores[1] and a + b > sum(scores):
            return False
    return True


@functools.cache
def _order(size: int) -> list[int]:
    order = list(range(size))
    random.Random(0).shuffle(order)
    return order


class DealOrNoDeal:
    """One negotiation.

    scenarios: pairs of six numbers; seed modulo their number picks one, in an order shuffled once and for all (files
        are sorted, and the first hundred would all be of one kind). Consecutive seeds play every scenario once.
    max_turns: utterances of both seats together, without the closing selections.
    """

    def __init__(self, scenarios: Sequence[Scenario], max_turns: int = 20) -> None:
        if not scenarios:
            raise InputError("deal_or_no_deal: there is no scenario to play; give a file that has some")
        if max_turns < 1:
            raise InputError(f"deal_or_no_deal: max_turns is {max_turns}, but must be at least 1")
        self.scenarios = scenarios
        self.max_turns = max_turns
        self._order = _order(len(scenarios))
        self.scenario = scenarios[0]
        self._start()
        self.outcome = "over"

    def _start(self) -> None:
        self._mover = 0
        self.talk = 0
        self.picks: list[Items | None] = []  # the first is that of the seat that closed the talk
        self.outcome = ""
        self.points = (0, 0)

    def reset(self, seed: int) -> tuple[str, str]:
        """Deal the scenario of a seed; returns both seats' numbers. Seat 0 speaks first."""
        self._start()
        self.scenario = self.scenarios[self._order[seed % len(self._order)]]
        return spell(self.scenario[0]), spell(self.scenario[1])

    @property
    def mover(self) -> int:
        return self._mover

    def move(self, utterance: str) -> tuple[Reply, Reply]:
        """Play the mover's utterance. RuntimeError after the end."""
        if self.outcome:
            raise RuntimeError("the game is over: call reset")
        closes = utterance.lstrip().startswith(SELECTION)
        if self.picks:  # the talk is closed: whatever comes now is the second selection
            self.picks.append(parse_selection(utterance))
            return self._score()
        self._mover = 1 - self._mover
        if closes:
            self.picks.append(parse_selection(utterance))
            return self._tell(Reply(SELECTION))
        self.talk += 1
        if self.talk == self.max_turns:
            self.outcome = "turn_limit"
            heard = Reply(utterance.strip(), terminated=True)
        else:
            heard = Reply(utterance.strip())
        return self._tell(heard)

    def _tell(self, heard: Reply) -> tuple[Reply, Reply]:
        """What the seat that moves next hears; the other one hears nothing."""
        nothing = Reply("", terminated=heard.terminated)
        return (heard, nothing) if self._mover == 0 else (nothing, heard)

    def _score(self) -> tuple[Reply, Reply]:
        second, first = self.picks.pop(), self.picks.pop()
        mine, theirs = (second, first) if self._mover == 0 else (first, second)  # of seat 0, of seat 1
        if mine is None or theirs is None:
            self.outcome = "no_agreement"
        elif tuple(a + b for a, b in zip(mine, theirs, strict=True)) != counts(self.scenario[0]):
            self.outcome = "disagree"
        else:
            self.outcome = "deal"
            self.points = (points(self.scenario[0], mine), points(self.scenario[1], theirs))
        one, two = self.points
        return Reply("", float(one), terminated=True), Reply("", float(two), terminated=True)

    def facts(self, seat: int) -> dict[str, Any]:
        """What a seat's transcript records: the corpus builder's `meta`."""
        facts: dict[str, Any] = {"group": group(self.scenario), "partner": spell(self.scenario[1 - seat]), "seat": seat}
        if self.outcome:
            facts["outcome"] = self.outcome
        if self.outcome == "deal":
            facts["points"] = self.points[seat]
        return facts


def summary(pairs: Sequence[tuple[Episode, Episode]]) -> dict[str, list[float | None]]:
    """One number a game, for pairs (ours, partner's) of a game or of a corpus dialogue.

    "agreement %" counts deals; "points (agreed)" and "Pareto-optimal %" have a meaning for deals only.
    """
    columns: dict[str, list[float | None]] = {
        name: []
        for name in (
            "agreement %",
            "points (all)",
            "partner's points (all)",
            "points (agreed)",
            "partner's points (agreed)",
            "Pareto-optimal %",
            "turns",
        )
    }
    for ours, theirs in pairs:
        deal = ours.meta["outcome"] == "deal"
        mine, other = float(ours.meta.get("points", 0)), float(theirs.meta.get("points", 0))
        scenario = parse_scenario(ours.turns[0].text, ours.meta["partner"])
        columns["agreement %"].append(100.0 * deal)
        columns["points (all)"].append(mine)
        columns["partner's points (all)"].append(other)
        columns["points (agreed)"].append(mine if deal else None)
        columns["partner's points (agreed)"].append(other if deal else None)
        columns["Pareto-optimal %"].append(100.0 * pareto_optimal(scenario, (mine, other)) if deal else None)
        # the six numbers are no utterance, and neither is a selection, of which each side sees its own last
        columns["turns"].append(float(sum(not turn.text.startswith(SELECTION) for turn in ours.turns[1:])))
    return columns


def metrics(pairs: Sequence[tuple[Episode, Episode]]) -> dict[str, float]:
    """The means of `summary`; nan where no game gives a value."""
    means = {}
    for name, values in summary(pairs).items():
        known = [value for value in values if value is not None]
        means[name] = sum(known) / len(known) if known else float("nan")
    return means


def load_scenarios(path: str | Path) -> list[Scenario]:
    """The scenarios of a file, in its order: `selfplay.txt` (two lines a pair, kept as they are), `val.txt` and
    `data.txt` (several perspectives share a scenario, which is taken once). InputError names file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read scenarios from {path}: {getattr(error, 'strerror', None) or error}") from None
    if not any(line.strip() for line in lines):
        raise InputError(f"{path} is empty; give selfplay.txt, val.txt or data.txt of the corpus")
    if "<input>" not in lines[0] and len(lines[0].split()) == 6:
        return _pairs(path, lines)
    found: dict[str, Scenario] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        match = _INPUT.search(line)
        sides = (match[1], match[2]) if match else (" ".join(words[:6]), " ".join(words[-6:]))
        scenario = _checked(path, number, *sides)
        found.setdefault(group(scenario), scenario)
    return list(found.values())


def _pairs(path: Path, lines: Sequence[str]) -> list[Scenario]:
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if len(numbered) % 2:
        raise InputError(f"{path}, line {numbered[-1][0]}: this side has no partner; two lines make a scenario")
    sides = iter(numbered)
    return [_checked(path, number, first, second) for (number, first), (_, second) in zip(sides, sides, strict=True)]


def _checked(path: Path, number: int, first: str, second: str) -> Scenario:
    try:
        return parse_scenario(first, second)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: {error}") from None


def make(scenarios: str = "", exclude: str = "", max_turns: int = 20) -> Callable[[], DealOrNoDeal]:
    """A factory of games.

    scenarios: a file that `load_scenarios` reads. exclude: another one; scenarios that occur in it are left out (what
    remains of selfplay.txt without data.txt is what no training dialogue has seen).
    """
    if not scenarios:
        raise InputError("deal_or_no_deal needs scenarios to play: give --scenarios FILE (selfplay.txt or val.txt)")
    playable = load_scenarios(scenarios)
    if exclude:
        seen = {group(scenario) for scenario in load_scenarios(exclude)}
        playable = [scenario for scenario in playable if group(scenario) not in seen]
        if not playable:
            raise InputError(f"every scenario of {scenarios} occurs in {exclude} too: nothing is left to play")
    DealOrNoDeal(playable, max_turns)  # a bad option fails here, and not in the middle of a rollout
    return lambda: DealOrNoDeal(playable, max_turns)
