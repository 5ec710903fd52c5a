"""Deal or No Deal? negotiations between people (Lewis et al. 2017), CC BY-NC 4.0,
https://github.com/facebookresearch/end-to-end-negotiator (`data.txt`).

One raw line, which is one side of a dialogue (cut here into three):

    1 0 4 2 1 2 YOU: i would like 4 hats and you can have the rest . <eos> THEM: deal <eos>
    YOU: <selection> item0=0 item1=4 item2=0 <eos>
    reward=8 agree 1 4 4 1 1 2

Count and own value of book, hat and ball; the talk; the own selection (also after `THEM: <selection>`, which only says
who closed the talk), its worth, whether the two selections fit, the partner's numbers. A selection can also be
`no agreement` or `disconnect`, and then `reward=` repeats these words.

Decision: the reward is the true one. The printed one is what the side would have got; it was paid only where items were
chosen *and* `agree` is printed (`agree` alone also stands on lines without a deal). Everything that a line says twice
is checked, so a line that contradicts itself is a reject. The turns are those of the environment of the same name.

Nothing in a negotiation depends on which kind of item is called book, so `--permute-items` tells each dialogue under
all six orders of the three: the same talk, worth the same, six times as much to learn reading from.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets_prep.files import opened, refuse_others, stem
from datasets_prep.lines import bounded
from datasets_prep.rejects import Placed, Reject
from ilql.envs.deal_or_no_deal import (
    ITEMS,
    SELECTION,
    Items,
    Numbers,
    Scenario,
    counts,
    group,
    load_scenarios,
    parse_scenario,
    parse_selection,
    points,
    spell,
    spell_selection,
)
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

LONGEST = 2**16  # bytes of a line, which the pattern may have to go over many times
_LINE = re.compile(
    r"(?P<own>\d+(?: \d+){5}) (?P<talk>.*?)(?P<closer>YOU|THEM): <selection> (?P<pick>[^<>]*?) <eos> "
    r"reward=(?P<reward>.*?) (?P<flag>agree|disagree) (?P<partner>\d+(?: \d+){5})",
    re.ASCII,
)
_PICK = re.compile(r"item0=(\d+) item1=(\d+) item2=(\d+)", re.ASCII)
_NO_ITEMS = {"no agreement": "no_agreement", "disconnect": "disconnect"}
_WORD = re.compile(rf"\b(?:({'|'.join(ITEMS)})|basket(ball))(s?)\b")

Order = tuple[int, int, int]  # the kind that each of book, hat and ball becomes
_ORDERS: tuple[Order, ...] = tuple(itertools.permutations(range(3)))  # type: ignore[arg-type]  # the first: as they are


class _Line(NamedTuple):
    """One side of a dialogue, read and checked."""

    scenario: Scenario  # own numbers first
    talk: tuple[tuple[str, str], ...]  # (YOU | THEM, utterance)
    closer: str
    selection: str  # the agent's last utterance
    outcome: str
    points: int | None  # of a deal


def episodes(inputs: Sequence[Path], *, permute_items: bool = False, seed: int) -> Iterator[Episode | Reject]:
    """One episode a line of files in `data.txt`'s form; `seed` is not used, since nothing is drawn.

    permute_items: behind each its five copies under the other orders of book, hat and ball.

    Ids are `FILE-N:a` and, where the next line is the same dialogue seen from the other side, `FILE-N:b`; of copies
    `FILE-N.1:a` to `FILE-N.5:a`. meta: group (the scenario, which both sides and all copies share, so that a split
    keeps them together), outcome (deal | disagree | no_agreement | disconnect), points (of a deal), partner (the
    partner's six numbers); of a copy also order (what book, hat and ball became).
    """
    if not inputs:
        raise InputError("deal_or_no_deal needs a file: give --input data.txt")
    return _episodes(inputs, permute_items)


def _episodes(inputs: Sequence[Path], permute_items: bool) -> Iterator[Episode | Reject]:
    for path in inputs:
        before: _Line | None = None  # the line before, as long as nobody is its other side
        number = 0
        refuse_others(path, "deal_or_no_deal")
        with opened(path) as file:
            for number, (text, _) in enumerate(bounded(file, LONGEST), 1):
                try:
                    line = _read(path.name, number, text.decode("utf-8", "surrogateescape"))
                except Reject as reject:
                    before = None
                    yield reject
                    continue
                second = before is not None and _other_side(before, line)
                before = None if second else line
                named, side = (number - 1, "b") if second else (number, "a")
                yield _episode(f"{stem(path.name)}-{named}:{side}", line, path.name, number)
                for copy, order in enumerate(_ORDERS[1:] if permute_items else (), 1):
                    yield _copy(f"{stem(path.name)}-{named}.{copy}:{side}", line, order, path.name, number)
        if not number:
            raise InputError(f"{path} is empty: it holds no dialogue")


def groups(path: Path) -> set[str]:
    """The scenarios of a file (`val.txt`, `data.txt` or `selfplay.txt`), as they stand in `meta["group"]`."""
    return {group(scenario) for scenario in load_scenarios(path)}


def _read(file: str, number: int, text: str) -> _Line:
    def reject(field: str, reason: str) -> Reject:
        return Reject(file, number, field, reason)

    if len(text) > LONGEST:
        raise reject("line", f"it is longer than {LONGEST:,} characters")
    text = text.rstrip("\r\n").rstrip(" ")
    if any("\udc80" <= char <= "\udcff" for char in text):
        raise reject("line", "it is not UTF-8")
    if not text:
        raise reject("line", "it is empty")
    if "<input>" in text:
        raise reject("line", "this is val.txt's form, without the selections of a disagreement; --validation reads it")
    match = _LINE.fullmatch(text)
    if not match:
        raise reject(
            "line", "it is not `six numbers, talk, <selection> ... <eos> reward=... agree|disagree, six numbers`"
        )
    try:
        scenario = parse_scenario(match["own"], match["partner"])
    except ValueError as error:
        raise reject("numbers", str(error)) from None
    talk = _talk(match["talk"], reject)
    deal = match["flag"] == "agree"
    if match["pick"] in _NO_ITEMS:
        if match["reward"] != match["pick"]:
            raise reject("reward", f"it is {match['reward']!r}, but the selection is {match['pick']!r}")
        selection = f"{SELECTION} {match['pick']}"
        return _Line(scenario, talk, match["closer"], selection, _NO_ITEMS[match["pick"]], None)
    items = _items(match["pick"], counts(scenario[0]), reject)
    worth = points(scenario[0], items)
    if match["reward"] != str(worth):
        raise reject("reward", f"it is {match['reward']!r}, but the selection is worth {worth}")
    outcome, paid = ("deal", worth) if deal else ("disagree", None)
    return _Line(scenario, talk, match["closer"], spell_selection(items), outcome, paid)


def _talk(text: str, reject: Any) -> tuple[tuple[str, str], ...]:
    """`YOU: ... <eos> THEM: ... <eos> ` -> speakers and utterances."""
    pieces = text.split(" <eos> ")
    if pieces.pop():
        raise reject("talk", "its last utterance has no <eos>")
    talk = []
    for position, piece in enumerate(pieces, 1):
        speaker, mark, utterance = piece.partition(": ")
        if not mark or speaker not in ("YOU", "THEM"):
            raise reject("talk", f"utterance {position} begins with neither YOU nor THEM")
        if not utterance.strip():
            raise reject("talk", f"utterance {position} is empty")
        if SELECTION in utterance:
            raise reject("talk", f"utterance {position} is a selection, but the talk goes on")
        talk.append((speaker, utterance))
    return tuple(talk)


def _items(text: str, total: Items, reject: Any) -> Items:
    match = _PICK.fullmatch(text)
    if not match:
        raise reject("selection", f"{text!r} is neither items nor `no agreement` nor `disconnect`")
    items = (int(match[1]), int(match[2]), int(match[3]))
    if any(item > count for item, count in zip(items, total, strict=True)):
        raise reject("selection", f"{text!r} takes more than there is")
    return items


def _other_side(one: _Line, two: _Line) -> bool:
    """Whether two lines are the two sides of one dialogue."""
    flipped = tuple(("THEM" if speaker == "YOU" else "YOU", text) for speaker, text in two.talk)
    return one.scenario == two.scenario[::-1] and one.talk == flipped and one.closer != two.closer


def _episode(name: str, line: _Line, file: str, number: int) -> Episode:
    own, partner = line.scenario
    turns = [Turn(PARTNER, spell(own))]
    turns += [Turn(AGENT if speaker == "YOU" else PARTNER, text) for speaker, text in line.talk]
    if line.closer == "THEM":
        turns.append(Turn(PARTNER, SELECTION))
    turns.append(Turn(AGENT, line.selection, float(line.points or 0)))
    meta: dict[str, Any] = {"group": group(line.scenario), "outcome": line.outcome, "partner": spell(partner)}
    if line.points is not None:
        meta["points"] = line.points
    return Placed(name, tuple(turns), True, meta, file=file, line=number)


def _copy(name: str, line: _Line, order: Order, file: str, number: int) -> Episode:
    """The episode of a line whose items take other places; it stays in the group of the line as it is."""
    own = _episode(name, permuted(line, order), file, number)
    meta = {**own.meta, "group": group(line.scenario), "order": " ".join(ITEMS[kind] for kind in order)}
    return Placed(name, own.turns, True, meta, file=file, line=number)


def permuted(line: _Line, order: Order) -> _Line:
    """A line in which each kind of item has become another, in its numbers, words and selection alike."""
    first, second = (_moved_numbers(numbers, order) for numbers in line.scenario)
    talk = tuple((speaker, rename(text, order)) for speaker, text in line.talk)
    items = parse_selection(line.selection)
    selection = line.selection if items is None else spell_selection(_moved(items, order))
    return line._replace(scenario=(first, second), talk=talk, selection=selection)


def rename(text: str, order: Order) -> str:
    """The words for the items, whole and in lower case as the corpus writes them; a basketball is a ball."""

    def word(match: re.Match[str]) -> str:
        kind = ITEMS.index(match[1] or match[2])
        return match[0] if order[kind] == kind else ITEMS[order[kind]] + match[3]

    return _WORD.sub(word, text)


def _moved(items: Items, order: Order) -> Items:
    """What stood at kind k stands at order[k]."""
    moved = [0, 0, 0]
    for kind, count in zip(order, items, strict=True):
        moved[kind] = count
    return moved[0], moved[1], moved[2]


def _moved_numbers(numbers: Numbers, order: Order) -> Numbers:
    (a, c, e), (b, d, f) = _moved(counts(numbers), order), _moved((numbers[1], numbers[3], numbers[5]), order)
    return a, b, c, d, e, f
