"""The nouns that every other file speaks in. Decision: plain frozen dataclasses and no dependency at all, so that a
corpus or an environment can be written and tested without torch, transformers or Arrow.

A dialogue is a partially observed Markov decision process: the *history of turns is the state*. A turn of the agent is
an action, every other turn is an observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

AGENT = "assistant"
PARTNER = "user"


class InputError(ValueError):
    """What a stranger gave us (option, config, file, dataset, checkpoint) cannot be used.

    Its text is one sentence that names the file, line or field and the mend. The commands print it without a traceback
    and exit with status 2.
    """


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue.

    role: "assistant" is the agent; "user", "system" and "tool" are observation.
    reward: received on completing this turn; only a turn of the agent may carry one.
    logp: log-probability under the behaviour policy, where the log has it: a number for the whole utterance (at token
        steps only where it is one token), or one number a token.
    act: False makes a turn of the agent an observation (`loss_mask: 0` of a log); observations are never acts.
    tool_calls: the calls of an agent's turn, as in `messages`; a part of the action.
    name, tool_call_id: of a tool's answer (or a speaker), for chat templates that write them.
    """

    role: str
    text: str
    reward: float = 0.0
    logp: float | Sequence[float | None] | None = None
    act: bool = True
    tool_calls: Sequence[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None

    @property
    def is_action(self) -> bool:
        return self.role == AGENT and self.act


@dataclass(frozen=True, slots=True)
class Episode:
    """One dialogue as one side saw it.

    terminated: True where the task ended; False where the log or a time limit cut it off (a truncation: the value of
        the state that follows is *not* zero).
    meta: facts for filters and reports, JSON-able. `meta["group"]`, where given, is what splits keep together.
    tools: JSON schemas of the tools that the agent could call, for the chat template.
    pair: what two dialogues share that somebody compared: the one that was preferred has reward 1, the other 0.
    prefix: numbers that the agent is given with the dialogue, such as an image's features.
    """

    id: str
    turns: Sequence[Turn]
    terminated: bool = True
    meta: dict[str, Any] = field(default_factory=dict)
    tools: Sequence[dict[str, Any]] | None = None
    pair: str | None = None
    prefix: Sequence[float] | None = None

    @property
    def total_reward(self) -> float:
        """The undiscounted return of the whole dialogue."""
        return sum(turn.reward for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment answers to an utterance.

    terminated: the task is over by its own rules, nothing follows (its value is 0).
    truncated: a limit from outside cut it off; `text` is then a message, not a state's observation.
    """

    text: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


class Env(Protocol):
    """One partner or world, text in and text out. The same seed gives the same episode for the same utterances."""

    def reset(self, seed: int) -> str: ...

    def step(self, utterance: str) -> Reply: ...


class Game(Protocol):
    """Two seats and a referee: `rollout` lets a policy play each seat, so that partners can be batched too."""

    def reset(self, seed: int) -> tuple[str, str]:
        """The first observation of seat 0, who speaks first, and of seat 1."""
        ...

    @property
    def mover(self) -> int:
        """The seat that speaks next."""
        ...

    def move(self, utterance: str) -> tuple[Reply, Reply]:
        """Play the mover's utterance: what seat 0 and seat 1 are told. A reply with empty text tells nothing."""
        ...


class Policy(Protocol):
    """Answers a batch of dialogues; each is the agent's history, ending where the agent is to speak."""

    def respond(self, dialogues: Sequence[Sequence[Turn]]) -> list[str]: ...
