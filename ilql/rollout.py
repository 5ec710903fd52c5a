"""Policies in environments. Every episode takes a step before any takes its next, so that a policy answers in batches.

Decision: what comes back are the builders' own `Episode`s, and `to_log` writes them in the general log format: a
transcript is training data, a simulator is a corpus.

Where an episode ends: the task's own end is `terminated`, and the last reply's text follows as an observation if it
says anything. A limit from outside truncates: the text that announces it is no state of the task and goes to
`meta["last_reply"]`. `max_turns` of the caller truncates too, but there the last observation is a state and stays.

An environment may have `facts() -> dict`, a game `facts(seat) -> dict`: JSON-able facts for the episode's `meta`; and
`prefix()` or `prefix(seat)`: the numbers that the agent is given with the dialogue, asked for at its start.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from ilql.types import AGENT, PARTNER, Env, Episode, Game, Policy, Reply, Turn


class _Side:
    """One dialogue as it grows, seen from the agent's side."""

    def __init__(self, first: str, prefix: Sequence[float] | None = None) -> None:
        self.prefix = prefix
        self.turns: list[Turn] = [Turn(PARTNER, first)] if first else []
        self.actions = 0
        self.terminated = False
        self.last_reply = ""

    def say(self, utterance: str) -> None:
        self.turns.append(Turn(AGENT, utterance))
        self.actions += 1

    def hear(self, reply: Reply) -> None:
        """Book the reward on the agent's latest utterance, and what was heard as an observation."""
        if reply.reward:
            self._pay(reply.reward)
        self.terminated = reply.terminated
        if reply.truncated and not reply.terminated:
            self.last_reply = reply.text
        elif reply.text:
            self.turns.append(Turn(PARTNER, reply.text))

    def _pay(self, reward: float) -> None:
        for i in range(len(self.turns) - 1, -1, -1):
            if self.turns[i].is_action:
                self.turns[i] = replace(self.turns[i], reward=self.turns[i].reward + reward)
                return
        raise RuntimeError("the environment rewards a side that has not spoken yet")

    def episode(self, name: str, meta: dict[str, Any]) -> Episode:
        meta = {"group": name, **meta}
        if self.last_reply:
            meta["last_reply"] = self.last_reply
        return Episode(name, tuple(self.turns), self.terminated, meta, prefix=self.prefix)


def rollout(
    policy: Policy,
    env: Env | Callable[[], Env],
    seeds: Sequence[int],
    *,
    max_turns: int | None = None,
    progress: bool = True,
) -> list[Episode]:
    """One episode a seed, in the order of `seeds`.

    env: an environment, of which every seed gets a copy, or what makes one (a class, a factory).
    max_turns: utterances of the agent after which an episode is cut off (truncated), on top of the task's own limits.
    Rewards, ends and texts are the environment's. Ids are `seed-S`; a seed that comes again is numbered `seed-S-2`.
    """
    envs: list[Env] = _copies(env, len(seeds))
    sides = [_Side(each.reset(seed), _prefix(each)) for each, seed in zip(envs, seeds, strict=True)]
    running = list(range(len(envs)))
    with tqdm(total=len(envs), desc="episodes", disable=not progress, leave=False) as bar:
        while running:
            answers = _ask(policy, [sides[i] for i in running])
            still = []
            for i, utterance in zip(running, answers, strict=True):
                sides[i].say(utterance)
                reply = envs[i].step(utterance)
                sides[i].hear(reply)
                if not reply.over and sides[i].actions != max_turns:
                    still.append(i)
            bar.update(len(running) - len(still))
            running = still
    names = _names(seeds)
    return [
        side.episode(name, {"seed": seed, **_facts(each)})
        for side, each, name, seed in zip(sides, envs, names, seeds, strict=True)
    ]


def selfplay(
    policies: tuple[Policy, Policy],
    game: Game | Callable[[], Game],
    seeds: Sequence[int],
    *,
    max_turns: int | None = None,
    progress: bool = True,
) -> list[tuple[Episode, Episode]]:
    """One game a seed, policies[k] in seat k; returns both seats' episodes (ids `seed-S:a`, `seed-S:b`).

    game: as `env` of `rollout`.
    A reward that reaches a seat while the other one moves belongs to its own latest utterance. max_turns: utterances of
    both seats together after which a game is cut off (truncated).
    """
    games: list[Game] = _copies(game, len(seeds))
    sides = [
        tuple(_Side(first, _prefix(each, seat)) for seat, first in enumerate(each.reset(seed)))
        for each, seed in zip(games, seeds, strict=True)
    ]
    running = list(range(len(games)))
    with tqdm(total=len(games), desc="games", disable=not progress, leave=False) as bar:
        while running:
            # the same object in both seats answers all of them in one batch
            batches: dict[int, list[int]] = {}
            for i in running:
                batches.setdefault(id(policies[games[i].mover]), []).append(i)
            over = set()
            for members in batches.values():
                policy = policies[games[members[0]].mover]
                answers = _ask(policy, [sides[i][games[i].mover] for i in members])
                for i, utterance in zip(members, answers, strict=True):
                    sides[i][games[i].mover].say(utterance)
                    replies = games[i].move(utterance)
                    for side, reply in zip(sides[i], replies, strict=True):
                        side.hear(reply)
                    if any(reply.over for reply in replies) or sum(s.actions for s in sides[i]) == max_turns:
                        over.add(i)
            bar.update(len(over))
            running = [i for i in running if i not in over]
    pairs = []
    for (one, two), each, name, seed in zip(sides, games, _names(seeds), seeds, strict=True):
        a = one.episode(f"{name}:a", {"group": name, "seed": seed, **_facts(each, 0)})
        b = two.episode(f"{name}:b", {"group": name, "seed": seed, **_facts(each, 1)})
        pairs.append((a, b))
    return pairs


def _copies(world: Any, count: int) -> list[Any]:
    """Worlds that share nothing: one for each seed, since all run in lock step."""
    return [world() if callable(world) else copy.deepcopy(world) for _ in range(count)]


def _ask(policy: Policy, sides: Sequence[_Side]) -> list[str]:
    dialogues, prefixes = [side.turns for side in sides], [side.prefix for side in sides]
    if any(prefix is not None for prefix in prefixes):
        answers = policy.respond(dialogues, prefix=prefixes)  # type: ignore[call-arg]  # policies of texts have none
    else:
        answers = policy.respond(dialogues)
    if len(answers) != len(dialogues):
        raise RuntimeError(f"the policy gave {len(answers)} answers to {len(dialogues)} dialogues")
    return answers


def _prefix(world: object, *seat: int) -> Sequence[float] | None:
    prefix = getattr(world, "prefix", None)
    return prefix(*seat) if prefix else None


def _facts(world: object, *seat: int) -> dict[str, Any]:
    facts = getattr(world, "facts", None)
    return facts(*seat) if facts else {}


def _names(seeds: Sequence[int]) -> list[str]:
    count: dict[int, int] = {}
    names = []
    for seed in seeds:
        count[seed] = count.get(seed, 0) + 1
        names.append(f"seed-{seed}" if count[seed] == 1 else f"seed-{seed}-{count[seed]}")
    return names


def to_log(episode: Episode) -> dict[str, Any]:
    """The episode as one line of the general log format, for `json.dumps`; `python -m datasets_prep chat` reads it."""
    messages = []
    for turn in episode.turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if turn.tool_calls:
            message["tool_calls"] = list(turn.tool_calls)
        message |= {key: getattr(turn, key) for key in ("name", "tool_call_id") if getattr(turn, key) is not None}
        if turn.is_action:
            message["reward"] = turn.reward
        elif turn.role == AGENT:
            message["loss_mask"] = 0
        if turn.logp is not None:
            message["logp"] = turn.logp if isinstance(turn.logp, int | float) else list(turn.logp)
        messages.append(message)
    line: dict[str, Any] = {"id": episode.id, "messages": messages, "terminated": episode.terminated}
    if episode.tools:
        line["tools"] = list(episode.tools)
    if episode.meta:
        line["meta"] = episode.meta
    if episode.prefix is not None:
        line["prefix"] = list(episode.prefix)
    return line
