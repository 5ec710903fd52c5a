"""Replies chosen among eight candidates: against one reply of the same actor, in alternation.

Prompts of some 64 tokens, replies of 64 new ones that no end token cuts short, so that all do the same work; critics of
utterances judge the candidates. Their log-probabilities and values must be those of a pass over whole dialogues before
anything is timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.decode import NEW, Tokens, prompts
from benchmarks.pairs import agree, clock, say, speedup, spread, times
from benchmarks.report import Section
from benchmarks.shapes import LARGE, SMALL, TINY, Shape, make
from ilql.closed import log_chances, values
from ilql.decode import LMPolicy
from ilql.generation import Choice
from ilql.propose import propose

COUNT = 8
ONE = "one reply"
AMONG = f"the best of {COUNT}"


class Repliers:
    """One reply, and one of several candidates, to the same prompts."""

    def __init__(self, shape: Shape, new: int, rows: int) -> None:
        self.shape, self.new = shape, new
        self.prompts = prompts(shape, new)[:rows]
        self.model = make(replace(shape, most=max(shape.most, 4 * new)), critic="scalar").eval()

    def policy(self, candidates: int | None) -> LMPolicy:
        encoder: Any = Tokens(self.shape.vocabulary)
        beta = 0.0 if candidates is None else 1.0
        return LMPolicy(self.model, encoder, beta=beta, max_new_tokens=self.new, candidates=candidates)

    def check(self) -> None:
        """Raise Disagreement unless proposals are what a pass over them says they are."""
        found = propose(self.policy(COUNT), self.prompts, COUNT, judged=True)
        answers = [[p.tokens for p in some] for some in found]
        chances = torch.cat(log_chances(self.model, self.prompts, answers, Choice())).tolist()
        wanted = torch.cat(values(self.model, self.prompts, answers)).tolist()
        for p, logp, q in zip([p for some in found for p in some], chances, wanted, strict=True):
            agree(f"{self.shape.name}, candidates", {"logp": p.logp, "q": p.q or 0.0}, {"logp": logp, "q": q}, 1e-3)

    def runs(self) -> dict[str, Callable[[], object]]:
        return {
            ONE: partial(self.policy(None).complete, self.prompts),
            AMONG: partial(self.policy(COUNT).complete, self.prompts),
        }


def measure(pairs: int, only: str = "", quick: bool = False) -> Section:
    with warnings.catch_warnings():  # that no reply ends is meant here
        warnings.filterwarnings("ignore", "a proposal did not end|no candidate ended")
        return _measure(pairs, only, quick)


def _measure(pairs: int, only: str, quick: bool) -> Section:
    section = Section("candidates", "Candidates")
    shapes = {"first": (TINY, 8)} if quick else {"first": (LARGE, NEW), "third": (SMALL, NEW)}
    for place, (shape, new) in shapes.items():
        if only not in shape.name:
            continue
        say(f"candidates: {shape.name}")
        for rows in (1, COUNT):
            repliers = Repliers(shape, new, rows)
            repliers.check()
            runs = repliers.runs()
            for run in runs.values():
                run()  # lays the weights out
            seconds = times(runs, pairs, {name: clock(run) for name, run in runs.items()})
            section.rows.append(line(section, place, repliers, seconds))
    section.notes.append(
        "In fp32, sampled. Candidates are sampled without replacement and judged by critics of utterances."
    )
    return section


def line(section: Section, place: str, repliers: Repliers, seconds: dict[str, list[float]]) -> dict[str, str]:
    """A row of the table; notes the figure that a goal is judged by."""
    shape, dialogues = repliers.shape, len(repliers.prompts)
    cost = speedup(seconds[ONE], seconds[AMONG])
    section.figures[f"candidates/{place}/{dialogues}"] = cost
    return {
        "replies": f"{shape.layers} x {shape.width}, V {shape.vocabulary:,}",
        "dialogues": str(dialogues),
        **{f"{name}, seconds": f"{spread(each).value:.3g}" for name, each in seconds.items()},
        "times one reply": f"{cost.value:.2f} [{cost.low:.2f}, {cost.high:.2f}]",
    }
