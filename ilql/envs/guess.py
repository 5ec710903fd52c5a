"""Two agents and an object that one of them sees: the other asks, and guesses it (Das et al. 2017, the toy world).

Decision: it is text in, text out, so that people's dialogues, scripted ones and those of two policies look alike, and
the guess is a part of what the questioner says: `GUESS GUESS QUESTION`. One game of two rounds, rewards in brackets:

    to the questioner    Find colour and shape.
    questioner           which colour                          to the answerer    filled red star / which colour
    answerer             red                                   to the questioner  red
    questioner           red any which style    [0.5]          to the answerer    which style
    answerer             filled                                to the questioner  filled
    questioner           red square             [-0.5]

An object is one of 64: a shape, a colour and a style, of four each. The task is an ordered pair of these, which only
the questioner knows. Its guess after round t is a value for each, or `any`, as one-hot vectors y_t with `any` as zeros;
the distance to the true ones is d_t = |y_t - y|^2 / 2, so a right value adds 0, `any` 1/2, a wrong one 1. Both seats
are paid r_t = d_{t-1} - d_t (equation 1 of the paper) when the guess is said. Before anything is heard nothing is
guessed: d_0 = 1. So a game is worth 1 - d_T, at most 1, and 0 to those who never guess.

What is not of this form is worth what no guess is worth: a word that is no value of its attribute counts as `any`. The
answerer hears what stands behind the two guesses, whatever it is. A limit of rounds is the game's own end.

`GuessGame` seats two policies. `Guess` plays one seat against a simulated partner, scripted as the people of the logs
are, who err: see `Person`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

from ilql.types import Episode, InputError, Reply

SEATS = 1
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "style": ("filled", "dashed", "dotted", "solid"),
    "colour": ("red", "green", "blue", "purple"),
    "shape": ("square", "circle", "triangle", "star"),
}
OBJECTS = tuple(itertools.product(*ATTRIBUTES.values()))
TASKS = tuple(itertools.permutations(ATTRIBUTES, 2))
ANY, ASK, SILENCE = "any", "which", "..."
QUESTIONER, ANSWERER = ROLES = "questioner", "answerer"


class GuessGame:
    """Seat 0 asks and guesses, seat 1 answers. rounds: questions that are answered.

    Public facts: `object` (its style, colour and shape), `task` (two of ATTRIBUTES), `guess`, `distance`.
    """

    def __init__(self, rounds: int = 2) -> None:
        if not 1 <= rounds <= 20:
            raise InputError(f"guess' number of rounds is {rounds}, but must be from 1 to 20")
        self.rounds = rounds
        self.object, self.task = OBJECTS[0], TASKS[0]
        self._start()
        self._over = True

    def _start(self) -> None:
        self.guess = (ANY, ANY)
        self.distance = self._distance(self.guess)
        self.asked = 0
        self._mover, self._over = 0, False

    def reset(self, seed: int) -> tuple[str, str]:
        """Draw an object and a task; the answerer hears of its object with the first question."""
        rng = random.Random(f"guess {seed}")
        self.object, self.task = rng.choice(OBJECTS), rng.choice(TASKS)
        self._start()
        return f"Find {self.task[0]} and {self.task[1]}.", ""

    @property
    def mover(self) -> int:
        return self._mover

    @property
    def truth(self) -> tuple[str, str]:
        """The values that are asked for."""
        named = dict(zip(ATTRIBUTES, self.object, strict=True))
        return named[self.task[0]], named[self.task[1]]

    def _distance(self, guess: tuple[str, str]) -> float:
        known = zip(guess, self.truth, strict=True)
        return sum(0.5 if said == ANY else float(said != true) for said, true in known)

    def move(self, utterance: str) -> tuple[Reply, Reply]:
        """Play the mover's utterance. RuntimeError after the end."""
        if self._over:
            raise RuntimeError("the game is over: call reset")
        if self._mover == 1:
            self._mover = 0
            return Reply(utterance.strip() or SILENCE), Reply("")
        reward, said = 0.0, utterance.split()
        if self.asked:  # nothing was heard before the first question, so nothing is guessed with it
            self.guess = self._read(said)
            before, self.distance = self.distance, self._distance(self.guess)
            reward, said = before - self.distance, said[2:]
        if self.asked == self.rounds:
            self._over = True
            return Reply("", reward, terminated=True), Reply("", reward, terminated=True)
        question = " ".join(said) or SILENCE
        self.asked += 1
        self._mover = 1
        heard = question if self.asked > 1 else f"{' '.join(self.object)}\n{question}"
        return Reply("", reward), Reply(heard, reward)

    def _read(self, said: Sequence[str]) -> tuple[str, str]:
        words = [*said[:2], ANY, ANY]
        first, second = (
            word if word in ATTRIBUTES[name] else ANY for word, name in zip(words, self.task, strict=False)
        )
        return first, second

    def facts(self, seat: int) -> dict[str, Any]:
        """What a seat's transcript records."""
        return {
            "role": ROLES[seat],
            "object": " ".join(self.object),
            "task": " ".join(self.task),
            "guess": " ".join(self.guess),
            "distance": self.distance,
        }


class Person:
    """A scripted seat, which errs. The questioner asks for the first of its two attributes that it has not heard of,
    but with chance `slip` for any attribute; it guesses what it was answered, and never what it was not. The answerer
    names the value that it is asked for, but with chance `lie` another one; it answers no other question.

    Every utterance depends on `rng` and on what this seat was told.
    """

    def __init__(self, role: str, rng: random.Random, slip: float = 0.3, lie: float = 0.2) -> None:
        for name, chance in (("slip", slip), ("lie", lie)):
            if not 0 <= chance <= 1:
                raise InputError(f"guess' {name} is {chance}, but must be from 0 to 1")
        self.role, self.rng, self.slip, self.lie = role, rng, slip, lie

    def say(self, heard: Sequence[str], said: Sequence[str], last: bool) -> str:
        """The next utterance. heard, said: all that this seat heard and said so far, in order; last: whether the
        questioner only guesses."""
        return self._answer(heard) if self.role == ANSWERER else self._ask(heard, said, last)

    def _answer(self, heard: Sequence[str]) -> str:
        seen = heard[0].split("\n")[0].split()
        question = heard[-1].split()
        name = next((word for word in question if word in ATTRIBUTES), None)
        if name is None:
            return SILENCE
        true = next((word for word in seen if word in ATTRIBUTES[name]), SILENCE)
        if self.rng.random() >= self.lie:
            return true
        return self.rng.choice([value for value in ATTRIBUTES[name] if value != true])

    def _ask(self, heard: Sequence[str], said: Sequence[str], last: bool) -> str:
        words = [word.strip(".") for word in heard[0].split()]
        task = [word for word in words if word in ATTRIBUTES]
        known = {name: answer for answer in heard[1:] for name, values in ATTRIBUTES.items() if answer in values}
        guess = " ".join(known.get(name, ANY) for name in task) if said else ""
        if last:
            return guess
        wanted = next((name for name in task if name not in known), task[-1])
        if self.rng.random() < self.slip:
            wanted = self.rng.choice(list(ATTRIBUTES))
        return f"{guess} {ASK} {wanted}".strip()


class Guess:
    """One seat of the game, the other a simulated partner, `Person`."""

    def __init__(self, seat: str = QUESTIONER, rounds: int = 2, slip: float = 0.3, lie: float = 0.2) -> None:
        if seat not in ROLES:
            raise InputError(f"guess' seat is {seat!r}, but must be {' or '.join(ROLES)}")
        self.game = GuessGame(rounds)
        self.seat = ROLES.index(seat)
        self._chances = slip, lie
        Person(ROLES[1 - self.seat], random.Random(0), slip, lie)  # a bad option fails here
        self._heard: list[list[str]] = [[], []]
        self._said: list[list[str]] = [[], []]
        self._ready = False

    def reset(self, seed: int) -> str:
        """Begin a game; the answerer first hears the object and a question."""
        first = self.game.reset(seed)
        self._heard = [[text] if text else [] for text in first]
        self._said = [[], []]
        self._partner = Person(ROLES[1 - self.seat], random.Random(f"partner {seed}"), *self._chances)
        self._ready = True
        if self.seat == 1:
            self._play(self._next())
        return self._heard[self.seat][-1]

    def step(self, utterance: str) -> Reply:
        """Say something, and hear the partner. RuntimeError after the end."""
        if not self._ready:
            raise RuntimeError("the game is over: call reset")
        before = len(self._heard[self.seat])
        over, reward = self._play(utterance)
        if not over:
            more = self._play(self._next())
            over, reward = more[0], reward + more[1]
        self._ready = not over
        return Reply("\n".join(self._heard[self.seat][before:]), reward, terminated=over)

    def _next(self) -> str:
        mover = self.game.mover
        return self._partner.say(self._heard[mover], self._said[mover], self.game.asked == self.game.rounds)

    def _play(self, utterance: str) -> tuple[bool, float]:
        self._said[self.game.mover].append(utterance)
        replies = self.game.move(utterance)
        for heard, reply in zip(self._heard, replies, strict=True):
            if reply.text:
                heard.append(reply.text)
        return replies[0].over, replies[self.seat].reward

    def facts(self) -> dict[str, Any]:
        """What a transcript records."""
        return self.game.facts(self.seat)


def make(seat: str = QUESTIONER, rounds: int = 2, slip: float = 0.3, lie: float = 0.2) -> Callable[[], Guess]:
    """A factory, as `rollout` asks for. seat: whose turns are the agent's; slip, lie: the partner's, see `Person`."""
    Guess(seat, rounds, slip, lie)  # a bad option fails here, with one sentence, and not in the middle of a rollout
    return lambda: Guess(seat, rounds, slip, lie)


def summary(episodes: Sequence[Episode]) -> dict[str, list[float | None]]:
    """Extra columns of an evaluation: the last guess' distance, and whether it was right (in %)."""
    return {
        "distance": [float(episode.meta["distance"]) for episode in episodes],
        "right %": [100.0 * (episode.meta["distance"] == 0) for episode in episodes],
    }
