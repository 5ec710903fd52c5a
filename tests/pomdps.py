"""Small partially observed problems as tables, and what policies of different memory are worth in them: models of our
own simulators that share no code with them, planned by enumeration and by dynamic programming over beliefs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pomdp:
    """begin (S) probabilities; move (A, S, S'), whose rows sum to less than 1 where the task may end; reward (A, S)
    expected; first (S, O) and heard (A, S', O) probabilities of observations; limit: utterances after which it is cut
    off."""

    begin: np.ndarray
    move: np.ndarray
    reward: np.ndarray
    first: np.ndarray
    heard: np.ndarray
    limit: int = 100


def listen(accuracy: float = 0.85, cost: float = 0.1, won: float = 1.0, lost: float = -4.0) -> Pomdp:
    """States: the prize is left, right. Actions: listen, open left, open right. Observations: nothing, left, right."""
    move = np.zeros((3, 2, 2))
    move[0] = np.eye(2)
    reward = np.array([[-cost, -cost], [won, lost], [lost, won]])
    first = np.array([[1.0, 0, 0], [1, 0, 0]])
    heard = np.array([[[0, accuracy, 1 - accuracy], [0, 1 - accuracy, accuracy]]] * 3)
    return Pomdp(np.array([0.5, 0.5]), move, reward, first, heard)


def corridor() -> Pomdp:
    """States: the three places. Actions: left, right. One observation."""
    move = np.zeros((2, 3, 3))
    move[0, [0, 1, 2], [0, 2, 1]] = 1
    move[1, [0, 1], [1, 0]] = 1  # and right in the third place leads out
    ones = np.ones((3, 1))
    return Pomdp(np.array([1.0, 0, 0]), move, -np.ones((2, 3)), ones, np.stack([ones, ones]))


def recall(delay: int, cues: int) -> Pomdp:
    """States: (utterances so far, word). Actions: the words. Observations: the words, wait, the question."""
    states = (delay + 1) * cues
    move = np.zeros((cues, states, states))
    for s in range(delay * cues):
        move[:, s, s + cues] = 1
    reward = np.zeros((cues, states))
    reward[range(cues), range(delay * cues, states)] = 1
    seen = np.zeros((states, cues + 2))
    seen[range(cues), range(cues)] = 1
    seen[cues : delay * cues, cues] = 1
    seen[delay * cues :, cues + 1] = 1
    begin = np.zeros(states)
    begin[:cues] = 1 / cues
    return Pomdp(begin, move, reward, seen, np.stack([seen] * cues), delay + 1)


def memoryless(world: Pomdp, policy: Tensor) -> Tensor:
    """Expected return of a policy of the last observation alone (O, A), float64, were there no limit; gradients flow.
    Policies that may never end the task have none: see `cut_off`."""
    move, reward, heard = (torch.from_numpy(x) for x in (world.move, world.reward, world.heard))
    states, observations = world.first.shape
    step = torch.einsum("oa,ast,atp->sotp", policy, move, heard)
    size = states * observations
    paid = (policy @ reward).T.reshape(size)  # of every state and observation
    begin = torch.from_numpy(world.begin[:, None] * world.first).reshape(size)
    eye = torch.eye(size, dtype=torch.float64)
    return begin @ torch.linalg.solve(eye - step.reshape(size, size), paid)


def cut_off(world: Pomdp, policy: np.ndarray) -> float:
    """The same within the limit, step by step."""
    mass = world.begin[:, None] * world.first  # (S, O)
    total = 0.0
    for _ in range(world.limit):
        acted = mass @ policy  # (S, A)
        total += float((acted * world.reward.T).sum())
        mass = np.einsum("sa,ast,ato->to", acted, world.move, world.heard)
    return total


def best_deterministic(world: Pomdp) -> float:
    """The best policy that always says the same after the same observation, by enumeration."""
    actions, observations = len(world.move), world.first.shape[1]
    choices = itertools.product(range(actions), repeat=observations)
    return max(cut_off(world, np.eye(actions)[list(choice)]) for choice in choices)


def best_stochastic(world: Pomdp, starts: int = 3, steps: int = 150) -> tuple[float, np.ndarray]:
    """The best that Adam finds among policies that draw after the last observation, from several beginnings."""
    best, found = -np.inf, np.zeros(0)
    rng = torch.Generator().manual_seed(0)
    for _ in range(starts):
        shape = (world.first.shape[1], len(world.move))
        logits = torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_(True)
        optimizer = torch.optim.Adam([logits], lr=0.2)
        for _ in range(steps):
            optimizer.zero_grad()
            value = memoryless(world, logits.softmax(1))
            (-value).backward()
            optimizer.step()
        if value.item() > best:
            best, found = value.item(), logits.detach().softmax(1).numpy()
    return best, found


def with_memory(world: Pomdp) -> float:
    """The best policy of the whole history: dynamic programming over beliefs."""
    known: dict[tuple[int, bytes], float] = {}

    def value(belief: np.ndarray, left: int) -> float:
        """belief (S): probabilities of being there with the task not over, not normalised."""
        if left == 0 or belief.sum() < 1e-12:
            return 0.0
        scale = belief.sum()
        key = (left, np.round(belief / scale, 9).tobytes())
        if key not in known:
            each = []
            for move, reward, heard in zip(world.move, world.reward, world.heard, strict=True):
                after = (belief / scale) @ move
                each.append((belief / scale) @ reward + sum(value(after * seen, left - 1) for seen in heard.T))
            known[key] = max(each)
        return scale * known[key]

    return sum(value(world.begin * seen, world.limit) for seen in world.first.T)
