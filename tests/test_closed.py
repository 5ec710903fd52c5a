"""Choosing an utterance of a closed set, against brute force: every answer by itself, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ilql import closed
from ilql.closed import choose, log_chances
from ilql.generation import Choice
from ilql.model import ILQLModel
from tests.toys import tiny

CHOICES = [
    Choice(),
    Choice(beta=4.0),
    Choice(beta=4.0, support_top_k=3),
    Choice(beta=2.0, support_top_p=0.9),
]


def brute(model: ILQLModel, prompt: list[int], answer: list[int], choice: Choice) -> float:
    """The chance of an answer by one uncached pass for each of its tokens."""
    total = 0.0
    bounds: Any = {"support_top_k": choice.support_top_k, "support_top_p": choice.support_top_p}
    for k, token in enumerate(answer):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer[:k]]]), beta=choice.beta, **bounds).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
    return total


def states(prompts: int = 5, longest: int = 40) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts of unequal length, and answers that share beginnings, among them some that begin another."""
    rng = np.random.default_rng(0)
    asked = [rng.integers(3, 23, rng.integers(1, longest)).tolist() for _ in range(prompts)]
    asked.append(asked[0])
    answers = [
        [[a, b, *rest, 2] for a in (5, 6) for b in (7, 8, 9) for rest in ([], rng.integers(3, 23, 3).tolist())]
        for _ in asked
    ]
    answers[1] = [[4]]
    return asked, answers


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("choice", CHOICES)
def test_chances_are_those_of_brute_force(monkeypatch, architecture, choice):
    monkeypatch.setattr(closed, "READ", 7)
    model = tiny(architecture)
    prompts, answers = states()
    got = log_chances(model, prompts, answers, choice)
    for prompt, some, chances in zip(prompts, answers, got, strict=True):
        want = torch.tensor([brute(model, prompt, answer, choice) for answer in some], dtype=torch.float64)
        assert torch.allclose(chances, want, rtol=1e-9, atol=1e-12)
    assert bool(torch.isfinite(got[0]).all()) == (choice.support_top_k is None and choice.support_top_p is None)


def test_a_prompt_is_read_once(monkeypatch):
    model, read = tiny(), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, *rest: (read.append(len(ids)), hidden(ids, *rest))[1])
    prompt = list(range(3, 23)) * 3
    answers = [[a, b, 2] for a in range(3, 9) for b in range(3, 9)]
    log_chances(model, [prompt], [answers], Choice())
    assert read == [len(prompt) + 6 + 36], "nor does an answer repeat what another began with"


def test_the_likeliest_or_a_draw_by_the_chances():
    model, choice = tiny(), Choice(beta=0.5, temperature=3.0)
    prompt, some = states(1)[0][0], [[a, b, 2] for a in (5, 6) for b in (7, 8, 9)]
    chances = torch.tensor([brute(model, prompt, answer, choice) for answer in some], dtype=torch.float64)
    greedy = Choice(beta=0.5, temperature=None)
    assert choose(model, [prompt], [some], greedy) == [int(chances.argmax())]
    draws = 400
    noise = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    chosen = choose(model, [prompt] * draws, [some] * draws, choice, noise)
    share = torch.bincount(torch.tensor(chosen), minlength=len(some)) / draws
    assert torch.allclose(share.double(), (chances / 3).softmax(0), atol=1.01 / draws)
    assert int((share > 0).sum()) > 3


def test_outside_the_support_the_actor_chooses():
    model = tiny()
    prompts, answers = states()
    choice = Choice(beta=4.0, temperature=None, support_top_k=1)
    alone = [int(logp.argmax()) for logp in log_chances(model, prompts, answers, Choice())]
    inside = [bool(torch.isfinite(logp).any()) for logp in log_chances(model, prompts, answers, choice)]
    assert not all(inside)
    for chosen, actor, reachable in zip(choose(model, prompts, answers, choice), alone, inside, strict=True):
        assert reachable or chosen == actor
