"""What a policy says beside its prior: which contexts, whose words, how far away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import replies
from ilql import decode
from ilql.decode import LMPolicy
from ilql.types import AGENT, PARTNER, Turn
from tests.prep.test_casino import DEAL, WALK
from tests.test_export import saved
from tests.toys import tiny


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "valid.json"
    path.write_text(json.dumps([DEAL, WALK]))
    return path


def test_contexts_are_the_states_of_both_seats_and_know_the_other(file: Path) -> None:
    found = replies.contexts(file, 1)
    dialogue, turns, other = found[0]
    assert dialogue == "7"
    assert [t.role for t in turns] == [PARTNER, AGENT, PARTNER]
    assert turns[0].text.startswith("High: Food")
    assert other.text.startswith("High: Water")
    assert all(t[-1].role == PARTNER for _, t, _ in found)
    assert replies.contexts(file, 2) == found[::2]


def test_the_partner_hears_the_same_with_the_roles_exchanged(file: Path) -> None:
    _, turns, other = replies.contexts(file, 1)[0]
    assert replies.exchanged(turns, "well", other) == [
        other,
        Turn(PARTNER, "hi "),
        Turn(AGENT, "hello"),
        Turn(PARTNER, "well"),
    ]


def test_distinct_words_and_pairs() -> None:
    assert replies.distinct(["a b a", "A b"], 1) == 2 / 5
    assert replies.distinct(["a b a", "A b"], 2) == 2 / 3


def test_the_divergence_is_that_of_whole_tables(tmp_path: Path) -> None:
    _, encoder = decode.load(saved(tmp_path / "run"))
    model = tiny(vocab=encoder.vocab_size, prior=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.lm.parameters():
            p.add_(0.1 * torch.randn_like(p))
    policy: Any = LMPolicy(model, encoder, max_new_tokens=4)
    turns = [Turn(PARTNER, "hi"), Turn(AGENT, "yo"), Turn(PARTNER, "so")]
    prompt = encoder.state(turns)[0]
    said = encoder.state([*turns, Turn(AGENT, "ok"), Turn(PARTNER, "")])[0]
    ids = torch.tensor([said])
    with torch.no_grad():
        own, prior = (lm(input_ids=ids).logits[0].log_softmax(-1) for lm in (model.lm, model.prior))
    every = (own.exp() * (own - prior)).sum(-1)[len(prompt) - 1 : len(prompt) + 2]  # o, k and the end
    assert replies.divergences(policy, turns, "ok") == pytest.approx(float(every.mean()), rel=1e-9)
    assert float(np.min(every.numpy())) > 1e-4


def test_a_policy_with_its_prior_for_an_actor() -> None:
    model = tiny(prior=True)
    with torch.no_grad():
        model.lm.get_output_embeddings().weight.add_(1.0)
    ids = torch.tensor([[0, 4, 5]])
    assert torch.equal(replies.near_its_prior(model).lm(input_ids=ids).logits, model.prior(input_ids=ids).logits)
