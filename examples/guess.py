"""Two agents that learn to ask, answer and guess from each other (Das et al. 2017), from supervised to reinforced.

Decision: it is the package's own road, round after round: two policies play, their games are written as logs, the logs
become a dataset for each seat, and each seat trains on its own, from its last run onwards. Nothing is online that the
commands could not do apart; each dataset and each run stays in the folder.

The curriculum is the paper's. Both agents begin as clones of scripted people. In an epoch the first K rounds of every
game are played by these people and learned by cloning, the others by the agents and learned by REINFORCE from the
rewards r_t = d_{t-1} - d_t; K begins one below the number of rounds and falls by one each epoch, to 0. What people say
in a game is observation to REINFORCE, what agents say is left out of cloning.

    python -m examples.guess --output runs/guess --seed 1

prints and writes (`results.jsonl`) the mean reward of games that the agents play alone, after every epoch, on the same
objects each time; the first line is the supervised start.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from datasets_prep.build import Options, build
from ilql.command import guard
from ilql.config import load_config
from ilql.decode import load_policy
from ilql.envs.guess import ROLES, GuessGame, Person
from ilql.report import Interval, bootstrap, table
from ilql.rollout import selfplay, to_log
from ilql.trainer import train
from ilql.types import AGENT, Episode, InputError, Policy, Turn

EXAMPLES = Path(__file__).resolve().parent
LONGEST = 8  # tokens of an utterance
JUDGED = 10**9  # first seed of the games that judge; those that teach count from the run's own


@dataclass(frozen=True)
class Plan:
    """seed: of people, games, weights. rounds: of a game. dialogues: people's, to begin with. times: rounds of play and
    training in an epoch. games: played in each. more: epochs behind the first with K = 0. judged: games that judge.
    steps, start: of each training and of the first one; None as in the recipes."""

    output: Path
    seed: int
    rounds: int
    dialogues: int
    times: int
    games: int
    more: int
    judged: int
    steps: int | None = None
    start: int | None = None


class Opening:
    """A policy whose first utterances of a dialogue are a scripted person's."""

    def __init__(self, person: Person, utterances: int, policy: Policy) -> None:
        self.person, self.utterances, self.policy = person, utterances, policy

    def respond(self, dialogues: Sequence[Sequence[Turn]]) -> list[str]:
        said = [[turn.text for turn in turns if turn.role == AGENT] for turns in dialogues]
        late = [i for i, own in enumerate(said) if len(own) >= self.utterances]
        answers = self.policy.respond([dialogues[i] for i in late]) if late else []
        found = dict(zip(late, answers, strict=True))
        for i, own in enumerate(said):
            if i not in found:
                heard = [turn.text for turn in dialogues[i] if turn.role != AGENT]
                found[i] = self.person.say(heard, own, last=False)
        return [found[i] for i in range(len(dialogues))]


def reinforced(episode: Episode, opening: int) -> Episode:
    """The episode whose first `opening` utterances, a person's, are observation."""
    turns, number = [], 0
    for turn in episode.turns:
        if turn.role == AGENT:
            turn = replace(turn, act=False, reward=0.0) if number < opening else turn
            number += 1
        turns.append(turn)
    return replace(episode, turns=tuple(turns))


def supervised(episode: Episode, opening: int) -> Episode:
    """The first `opening` utterances, a person's, and what was heard before each."""
    own = [k for k, turn in enumerate(episode.turns) if turn.role == AGENT]
    return replace(episode, turns=tuple(episode.turns[: own[opening - 1] + 1]), terminated=False)


class School:
    """The two agents' latest runs, and how they get others."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.number = plan, 0
        self.runs: dict[str, Path] = {}

    def begin(self) -> None:
        """Clone the people."""
        plan = self.plan
        for role in ROLES:
            data = plan.output / "data" / f"people-{role}"
            own: dict[str, Any] = {"seat": role, "dialogues": plan.dialogues, "rounds": plan.rounds}
            build(Options("guess", data, tokenizer="word", step="utterance", seed=plan.seed, corpus_options=own))
            self._train("guess_bc", role, data, f"start-{role}", plan.start)

    def time(self, opening: int, games: int) -> None:
        """Play, with people's first `opening` rounds, and train both seats on what was played."""
        self.number += 1
        name = f"{self.number:03d}-people-{opening}"
        first = self.plan.seed * 10**4 + self.number * games  # other objects each time
        pairs = self.play(range(first, first + games), opening)
        for seat, role in enumerate(ROLES):
            played = [pair[seat] for pair in pairs]
            if opening:
                data = self._dataset(f"{name}-cloned-{role}", role, [supervised(e, opening) for e in played])
                self._train("guess_bc", role, data, f"{name}-cloned-{role}", self.plan.steps or 8, lr=0.0001)
            data = self._dataset(f"{name}-{role}", role, [reinforced(e, opening) for e in played])
            self._train("guess_reinforce", role, data, f"{name}-{role}", self.plan.steps)

    def play(self, seeds: Sequence[int], opening: int = 0) -> list[tuple[Episode, Episode]]:
        """Games of the latest agents."""
        torch.manual_seed(self.plan.seed + self.number)
        seated: list[Policy] = []
        for role in ROLES:
            person = Person(role, random.Random(f"{role} {self.plan.seed} {self.number}"))
            policy = load_policy(self.runs[role], max_new_tokens=LONGEST, batch_size=512)
            seated.append(Opening(person, opening, policy))
        rounds = self.plan.rounds
        return selfplay((seated[0], seated[1]), lambda: GuessGame(rounds), seeds, progress=False)

    def judge(self) -> list[float]:
        """What games of the agents alone are worth."""
        pairs = self.play(range(JUDGED, JUDGED + self.plan.judged))
        return [1 - asks.meta["distance"] for asks, _ in pairs]

    def _dataset(self, name: str, role: str, episodes: Sequence[Episode]) -> Path:
        logs, data = self.plan.output / "logs" / f"{name}.jsonl", self.plan.output / "data" / name
        logs.parent.mkdir(exist_ok=True)
        logs.write_text("".join(json.dumps(to_log(episode)) + "\n" for episode in episodes), encoding="utf-8")
        build(Options("chat", data, [logs], tokenizer=str(self.runs[role] / "model"), step="utterance"))
        return data

    def _train(self, recipe: str, role: str, data: Path, name: str, steps: int | None, lr: float | None = None) -> None:
        options: dict[str, Any] = {"data.path": data, "output": self.plan.output / name, "device": "cpu"}
        options |= {"seed": self.plan.seed, "steps": steps, "optim.lr": lr, "init_from": self.runs.get(role)}
        words = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
        self.runs[role] = train(load_config(["--config", str(EXAMPLES / f"{recipe}.yaml"), *words]))


def run(plan: Plan) -> list[dict[str, Any]]:
    """Play the whole curriculum; returns a row for the start and for each epoch, as they stand in `results.jsonl`."""
    if plan.output.exists():
        raise InputError(f"--output {plan.output} exists; name a new folder")
    plan.output.mkdir(parents=True)
    school = School(plan)
    school.begin()
    rows: list[dict[str, Any]] = []
    for epoch in range(1 + plan.rounds + plan.more):
        people = plan.rounds if epoch == 0 else max(0, plan.rounds - epoch)
        if epoch:
            for _ in range(plan.times):
                school.time(people, plan.games)
        worth = school.judge()
        right = [100.0 * (each == 1) for each in worth]
        row = {"epoch": epoch, "people's rounds": people, "reward": bootstrap(worth), "right %": bootstrap(right)}
        rows.append({"seed": plan.seed, **row})
        with (plan.output / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({k: v._asdict() if isinstance(v, Interval) else v for k, v in rows[-1].items()}) + "\n"
            )
        print(table([rows[-1]]), flush=True)
    return rows


def parse(argv: Sequence[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m examples.guess", description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="a new folder")
    add("--seed", type=int, default=1)
    add("--rounds", type=int, default=2, help="questions of a game (default 2)")
    add("--dialogues", type=int, default=4000, help="people's, to begin with (default 4000)")
    add("--times", type=int, default=8, help="rounds of play and training an epoch (default 8)")
    add("--games", type=int, default=1024, help="of each (default 1024)")
    add("--more", type=int, default=2, help="epochs behind the first without people (default 2)")
    add("--judged", type=int, default=500, help="games that judge (default 500)")
    add("--steps", type=int, help="of each training (default: as in the recipes)")
    add("--start", type=int, help="steps of the first training (default: as in the recipe)")
    found = parser.parse_args(argv)
    for name in ("rounds", "dialogues", "times", "games", "judged"):
        if getattr(found, name) < 1:
            raise InputError(f"--{name} is {getattr(found, name)}, but must be at least 1")
    return Plan(**vars(found))


def _main(argv: Sequence[str]) -> int:
    rows = run(parse(argv))
    print("\n" + table(rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guard(lambda: _main(words))


if __name__ == "__main__":
    sys.exit(main())
