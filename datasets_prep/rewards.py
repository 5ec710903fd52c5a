"""Implicit rewards: what the partner's next reply says of an utterance of the agent (Jaques et al. 2019, 2020), where
nobody rated anything. `--reward sentiment=.5,reply_length=.5` gives every action their weighted sum in place of the
log's reward; with `--zscore` each is first made of mean 0 and deviation 1 over the replies of the train split.

Decision: a reward is a pure function of texts, and what nobody said is not guessed at. An action that the partner did
not answer (the last one of most dialogues, or one that another action follows at once) gets 0, with `--zscore` the mean
of the answered ones, and the manifest counts them. A reply is all that the partner says before the agent's next turn.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from datasets_prep.columns import Columns
from datasets_prep.rejects import Reject
from datasets_prep.talks import Talks
from ilql.types import AGENT, PARTNER, InputError


class Heard(NamedTuple):
    """What a reward may look at. reply: the partner's, to this action; before: its last turn before it, None where
    there is none."""

    reply: str
    before: str | None


def sentiment(heard: Heard) -> float:
    """How glad the reply is, from -1 to 1: VADER's compound score (Hutto and Gilbert 2014)."""
    return _polarity(heard.reply)


def transition(heard: Heard) -> float:
    """How much gladder the reply is than what the partner had said before, from -2 to 2; 0 for its first words."""
    return 0.0 if heard.before is None else _polarity(heard.reply) - _polarity(heard.before)


def reply_length(heard: Heard) -> float:
    """Words of the reply."""
    return float(len(_words(heard.reply)))


def laughter(heard: Heard) -> float:
    """Words of the reply that laugh: haha, hehe, lol and their kin."""
    return float(sum(LAUGHS.fullmatch(word) is not None for word in _words(heard.reply)))


def questions(heard: Heard) -> float:
    """Questions that the reply asks: runs of question marks."""
    return float(len(re.findall(r"\?+", heard.reply)))


def politeness(heard: Heard) -> float:
    """Polite phrases of the reply: please, thanks, sorry and their kin."""
    return float(len(POLITE.findall(heard.reply.lower().replace("\u2019", "'"))))


def conversation_length(heard: Heard) -> float:
    """1: the partner goes on talking. Its sum over a dialogue is how many of the agent's utterances were answered."""
    return 1.0


LAUGHS = re.compile(r"(?:b?(?:ha){2,}h?|b?a?(?:h+a+){2,}h?|(?:he){2,}h?|(?:hi){2,}|lo+l|(?:lol)+|lmf?ao|rofl)")
POLITE = re.compile(
    r"\b(?:please|thank you|thanks|thank|appreciate[sd]?|grateful|sorry|excuse me|pardon|you're welcome|my pleasure)\b"
)
REWARDS: dict[str, Callable[[Heard], float]] = {
    "sentiment": sentiment,
    "transition": transition,
    "reply_length": reply_length,
    "laughter": laughter,
    "questions": questions,
    "politeness": politeness,
    "conversation_length": conversation_length,
}
LOGGED = "logged"  # the log's own reward, which stays where it is, answered or not


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'\u2019]+", text.lower())


def _polarity(text: str) -> float:
    return float(_analyzer().polarity_scores(text)["compound"])


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise InputError(
            "--reward: sentiment and transition need the package vaderSentiment, whose lexicon lies inside it; "
            "install it: pip install 'ilql[rewards]'"
        ) from None
    return SentimentIntensityAnalyzer()


# ---- what the command line says --------------------------------------------------------------------------------------


def parse(text: str) -> dict[str, float]:
    """The weights of `sentiment=.5,reply_length=.5`. Raises InputError; whatever needs a package is looked for now."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        if name not in REWARDS and name != LOGGED:
            near = difflib.get_close_matches(name, [*REWARDS, LOGGED], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join([*REWARDS, LOGGED])}"
            raise InputError(f"--reward: there is no reward {name!r}; {hint}")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or not weight:
            raise InputError(
                f"--reward: {name} needs a weight other than 0, {name}=0.5, and not {number if equals else 'none'!r}"
            )
        if name in weights:
            raise InputError(f"--reward: {name} stands twice")
        weights[name] = weight
    if weights.keys() & {"sentiment", "transition"}:
        _analyzer()
    return weights


# ---- dialogues -------------------------------------------------------------------------------------------------------


class Rated(NamedTuple):
    """The rewards of some dialogues' actions. turn (A): which turns these are, among all; answered (A): whether the
    partner replied; values: of each reward (A), 0 where it did not; faults: dialogues that cannot be rewarded."""

    turn: np.ndarray
    answered: np.ndarray
    values: dict[str, np.ndarray]
    faults: dict[int, Reject]


def rate(talks: Talks, names: Iterable[str]) -> Rated:
    """Every action's rewards. An empty reply is a fault of its dialogue: nobody knows what it would have said."""
    if talks.pair is not None:
        raise InputError("--reward: pairs are rewarded for having been preferred, and by nothing else; leave it out")
    names = list(names)
    turns: list[int] = []
    answered: list[bool] = []
    values: dict[str, list[float]] = {name: [] for name in names}
    faults: dict[int, Reject] = {}
    for i in range(len(talks)):
        first, end = int(talks.first[i]), int(talks.first[i + 1])
        for k in range(first, end):
            if not talks.is_action[k]:
                continue
            reply = _after(talks, k, end)
            if reply is not None and not reply.strip():
                faults[i] = Reject("", 0, f"messages[{k + 1 - first}].content", "the partner's reply is empty")
                break
            turns.append(k)
            answered.append(reply is not None)
            heard = None if reply is None else Heard(reply, _before(talks, first, k))
            for name in names:
                logged = name == LOGGED
                values[name].append(
                    float(talks.reward[k]) if logged else 0.0 if heard is None else REWARDS[name](heard)
                )
    made = {name: np.array(found, np.float64) for name, found in values.items()}
    return Rated(np.array(turns, np.int64), np.array(answered, bool), made, faults)


def _after(talks: Talks, k: int, end: int) -> str | None:
    """What the partner says between an action and the agent's next turn."""
    said = []
    for j in range(k + 1, end):
        if talks.role[j] == AGENT:
            break
        if talks.role[j] == PARTNER:
            said.append(talks.text[j])
    return " ".join(said) if said else None


def _before(talks: Talks, first: int, k: int) -> str | None:
    """What the partner had said last before an action."""
    return next((talks.text[j] for j in range(k - 1, first - 1, -1) if talks.role[j] == PARTNER), None)


class Scale(NamedTuple):
    """How a reward enters the sum: weight * (value - mean) / deviation."""

    weight: float
    mean: float = 0.0
    deviation: float = 1.0


def give(talks: Talks, scales: Mapping[str, Scale]) -> dict[int, Reject]:
    """Put the weighted sums in the place of the dialogues' rewards; returns what is wrong with some, by their place."""
    if not scales:
        return {}
    rated = rate(talks, scales)
    total = np.zeros(len(rated.turn))
    for name, scale in scales.items():
        counts = rated.answered | (name == LOGGED)
        total += np.where(counts, scale.weight * (rated.values[name] - scale.mean) / scale.deviation, 0.0)
    talks.reward = [0.0] * len(talks.reward)
    for k, value in zip(rated.turn.tolist(), total.tolist(), strict=True):
        talks.reward[k] = value
    return rated.faults


def without(rows: Columns, faults: dict[int, Reject], late: dict[int, Reject]) -> tuple[Columns, dict[int, Reject]]:
    """The rows of dialogues less those that a later look found faults with."""
    if not late:
        return rows, faults
    total = len(faults) + len(rows)
    kept = [i for i in range(total) if i not in faults]
    return rows.take([k for k, i in enumerate(kept) if i not in late]), late | faults


class Tally:
    """Statistics of rewards over the dialogues that train: counts, means and deviations of the answered actions."""

    def __init__(self, names: Iterable[str]) -> None:
        self.values: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self.actions = self.answered = 0

    def add(self, talks: Talks) -> None:
        rated = rate(talks, self.values)
        self.actions += len(rated.turn)
        self.answered += int(rated.answered.sum())
        for name, found in self.values.items():
            values = rated.values[name]
            found.append(values if name == LOGGED else values[rated.answered])

    def scales(self, weights: Mapping[str, float], zscore: bool) -> tuple[dict[str, Scale], dict[str, Any]]:
        """How each reward enters the sum, and what the manifest says of them. Raises InputError where z-scores of a
        reward that never varies are asked for."""
        scales: dict[str, Scale] = {}
        told: dict[str, Any] = {"actions": self.actions, "unanswered": self.actions - self.answered}
        for name, weight in weights.items():
            all_of_them = np.concatenate([np.zeros(0), *self.values[name]])
            mean, deviation = (float(all_of_them.mean()), float(all_of_them.std())) if len(all_of_them) else (0.0, 0.0)
            if zscore and not deviation:
                raise InputError(
                    f"--zscore: the reward {name} is {mean:g} in all {len(all_of_them)} places of the train split; "
                    "leave it or --zscore out"
                )
            scales[name] = Scale(weight, mean, deviation) if zscore else Scale(weight)
            low, high = (float(all_of_them.min()), float(all_of_them.max())) if len(all_of_them) else (0.0, 0.0)
            told[name] = {"weight": weight, "mean": mean, "deviation": deviation, "lowest": low, "highest": high}
        return scales, told
