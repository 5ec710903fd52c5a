"""Choosing among candidates: by hand, and whole replies against brute force."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch

from datasets_prep import tokenizer as tk
from datasets_prep.encode import Encoder
from ilql.build import ModelConfig, build
from ilql.closed import values
from ilql.decode import LMPolicy, load, respond
from ilql.generation import Choice
from ilql.model import ILQLModel
from ilql.propose import Proposal, propose
from ilql.rerank import best, pick, rerank
from ilql.types import InputError, Turn
from tests.test_propose import PROMPTS, logp, model, speaker

pytestmark = pytest.mark.filterwarnings("ignore:a proposal did not end", "ignore:no candidate ended")
Q, LOGP = torch.tensor([1.0, 3.0, 2.0, 3.0]), torch.tensor([0.4, 0.1, 0.3, 0.2]).log()
ALL = torch.ones(4, dtype=torch.bool)


def test_the_best_is_that_of_the_largest_value_and_of_equal_ones_the_likeliest():
    assert rerank(Q, LOGP, 1.0) == 3
    assert rerank(Q, LOGP, 1e-9) == 3, "however small beta is"
    assert rerank(Q, LOGP, 0.0) == 0, "without beta the likeliest"
    assert rerank(torch.zeros(4), LOGP, 5.0) == 0
    assert rerank(torch.zeros(4), torch.zeros(4), 5.0) == 0, "all alike: the first"
    assert rerank(Q[:1], LOGP[:1], 5.0) == 0


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_draws_follow_the_softmax(beta):
    weight = [p * math.exp(beta * q) for p, q in zip([0.4, 0.1, 0.3, 0.2], [1, 3, 2, 3], strict=True)]
    draws = 1000
    places = [rerank(Q, LOGP, beta, noise=(i + 0.5) / draws) for i in range(draws)]
    for k in range(4):
        assert places.count(k) / draws == pytest.approx(weight[k] / sum(weight), abs=1.01 / draws)


def test_what_did_not_end_is_left_out_unless_nothing_did():
    ended = torch.tensor([True, False, True, False])
    assert rerank(Q, LOGP, 1.0, ended=ended) == 2
    assert rerank(Q, LOGP, 0.0, ended=~ended) == 3
    assert {rerank(Q, LOGP, 1.0, ended=ended, noise=i / 50) for i in range(50)} == {0, 2}
    assert rerank(Q, LOGP, 1.0, ended=~ALL) == 3
    assert {rerank(Q, LOGP, 1.0, ended=~ALL, noise=i / 200) for i in range(200)} == {0, 1, 2, 3}


def test_what_cannot_be_chosen_from_is_named():
    with pytest.raises(InputError, match="no candidate to choose from"):
        rerank(Q[:0], LOGP[:0], 1.0)
    with pytest.raises(InputError, match="diverged"):
        rerank(Q / 0 - Q / 0, LOGP, 1.0)


def test_a_larger_beta_never_lowers_the_value():
    """The mean value of what is said in a problem whose values are known: solved exactly, state by state."""
    torch.manual_seed(0)
    for _ in range(20):
        q, logp = torch.randn(6).double(), torch.randn(6).double().log_softmax(0)
        ended = torch.rand(6) < 0.7
        mean = []
        for beta in (0.0, 0.3, 1.0, 4.0, 20.0):
            drawn = [rerank(q, logp, beta, ended=ended, noise=(i + 0.5) / 400) for i in range(400)]
            mean.append(float(q[drawn].mean()))
        assert all(b >= a - 0.02 for a, b in pairwise(mean)), mean
        assert float(q[rerank(q, logp, 1.0, ended=ended)]) >= mean[-1] - 1e-9


def brute(made: ILQLModel, prompt: list[int], tokens: list[int]) -> float:
    """Q of an utterance by an uncached pass of the trunk that critics read."""
    trunk: Any = made.critic_trunk or made.lm.base_model
    with torch.no_grad():
        h = trunk(input_ids=torch.tensor([[*prompt, *tokens]]), use_cache=False).last_hidden_state[0]
        if made.config.critic == "scalar":
            return min(float(q(h[-1])) for q in made.judges)
        return min(float(q(h[-2])[tokens[-1]]) for q in made.judges)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("critic", ["scalar", "vocabulary"])
@pytest.mark.parametrize("trunks", [{}, {"critic_trunk": "own"}, {"target_trunk": "average"}])
def test_replies_are_those_of_brute_force(family, critic, trunks):
    made = model(family, vocabulary=23, critic=critic, model=trunks)
    with torch.no_grad():
        for p in [] if made.critic_trunk is None else made.critic_trunk.parameters():
            p.add_(0.1 * torch.randn_like(p))
    policy = speaker(made, 4, ends=[2, 5, 7], batch_size=12)
    offers = propose(policy, PROMPTS, 5, temperature=None)
    answers = [[p.tokens for p in some] for some in offers]
    want = [[brute(made, prompt, tokens) for tokens in some] for prompt, some in zip(PROMPTS, answers, strict=True)]
    for found, each in zip(values(made, PROMPTS, answers), want, strict=True):
        assert found.tolist() == pytest.approx(each, rel=1e-9)
    said = best(policy, PROMPTS, 5, 2.0, None)
    for some, q, reply in zip(offers, want, said, strict=True):
        able = [k for k, p in enumerate(some) if p.ended] or range(len(some))
        assert reply == some[max(able, key=q.__getitem__)].tokens
    likeliest = [next((p for p in some if p.ended), some[0]).tokens for some in offers]
    assert best(policy, PROMPTS, 5, 0.0, None) == likeliest


def test_sampled_replies_are_drawn_among_proposals():
    made, draws = model(vocabulary=23, critic="scalar"), 3000
    prompt, beta = PROMPTS[0], 3.0
    policy = speaker(made, 1, ends=range(23))  # one token each, so that all can be counted
    torch.manual_seed(0)
    said = best(policy, [prompt] * draws, 23, beta, 1.0)
    every: list[Proposal] = propose(policy, [prompt], 23, judged=True)[0]
    chance = torch.tensor([beta * (p.q or 0.0) + p.logp for p in every], dtype=torch.float64).softmax(0)
    for p, c in zip(every, chance.tolist(), strict=True):
        assert said.count(p.tokens) / draws == pytest.approx(c, abs=4 * math.sqrt(c / draws) + 2 / draws)


def test_a_set_that_is_given_is_judged_alike():
    made, some = model(vocabulary=23, critic="scalar"), [[4, 2], [6, 8, 2], [9, 2]]
    q = [brute(made, PROMPTS[0], tokens) for tokens in some]
    choice = Choice(beta=1.0, temperature=None)
    assert pick(made, PROMPTS[:1], [some], choice) == [q.index(max(q))]
    drawn = pick(made, PROMPTS[:1] * 50, [some] * 50, Choice(beta=0.1), (torch.arange(50) + 0.5) / 50)
    chance = torch.tensor([0.1 * a + logp(made, PROMPTS[0], tokens) for a, tokens in zip(q, some, strict=True)])
    assert [drawn.count(k) / 50 for k in range(3)] == pytest.approx(chance.softmax(0).tolist(), abs=1.01 / 50)
    assert pick(made, PROMPTS[:1] * 3, [some] * 3, choice, torch.rand(3)) == [q.index(max(q))] * 3


# ---- the policy ------------------------------------------------------------------------------------------------------

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tk.train("byte", []))


def make(encoder: Encoder, critic: str | None = "scalar") -> ILQLModel:
    torch.manual_seed(0)
    cfg = ModelConfig(layers=1, width=16, heads=2, context=64, dtype="float64")
    ids: dict[str, Any] = {"bos_id": encoder.bos_id, "pad_id": encoder.pad_id, "end_ids": encoder.end_ids}
    made = build(cfg, vocab_size=encoder.vocab_size, critic=critic, **ids).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


@pytest.mark.parametrize("critic", ["scalar", "vocabulary"])
def test_a_policy_of_candidates_says_the_best(encoder, critic):
    made = make(encoder, critic)
    policy = LMPolicy(made, encoder, candidates=6, beta=2.0, greedy=True, max_new_tokens=5)
    dialogue = [Turn("user", "hi")]
    (some,) = propose(policy, [policy.prompt(dialogue)], 6, temperature=None, judged=True)
    able = [p for p in some if p.ended] or some
    want = encoder.text(max(able, key=lambda p: p.q or 0.0).tokens)
    assert policy.respond([dialogue] * 3) == [want] * 3
    torch.manual_seed(0)
    drawn = LMPolicy(made, encoder, candidates=6, beta=0.1, max_new_tokens=5).respond([dialogue] * 8)
    assert len(set(drawn)) > 1
    torch.manual_seed(0)
    small = LMPolicy(made, encoder, candidates=6, beta=0.1, max_new_tokens=5, batch_size=1).respond([dialogue] * 8)
    assert drawn == small, "a reply does not depend on its batch"


def test_the_model_answers_by_itself(tmp_path, encoder):
    made = make(encoder)
    made.save_pretrained(tmp_path / "model")
    encoder.tokenizer.save_pretrained(tmp_path / "model")
    loaded, _ = load(tmp_path, dtype=torch.float64)
    options: dict[str, Any] = {"candidates": 4, "beta": 3.0, "greedy": True, "max_new_tokens": 6}
    assert loaded.respond(HI, **options) == respond(made, HI, encoder, **options)
    assert loaded.respond(HI, greedy=True, max_new_tokens=6) == respond(
        made, HI, encoder, greedy=True, max_new_tokens=6
    )
    with pytest.raises(InputError, match="not loaded from a folder"):
        made.respond(HI)


def test_a_closed_set_is_the_candidates_of_a_policy(encoder):
    made, few = make(encoder), ["yes", "no", "maybe so"]
    policy = LMPolicy(made, encoder, candidates=4, beta=1.0, greedy=True, closed=lambda turns, text: few)
    dialogue = [Turn("user", "hi")]
    q = [brute(made, policy.prompt(dialogue), encoder.action(dialogue, text)) for text in few]
    assert policy.respond([dialogue]) == [few[q.index(max(q))]]


def test_an_actor_that_never_ends_is_named(encoder):
    made = make(encoder)
    with torch.no_grad():  # its end can be said, but never is among the likeliest
        made.lm.get_output_embeddings().weight[encoder.end_ids] = 0
        made.lm.get_output_embeddings().weight[-1] *= 99
    policy = LMPolicy(made, encoder, candidates=3, beta=1.0, greedy=True, max_new_tokens=4)
    with pytest.warns(UserWarning, match="no candidate ended its turn in some states"):
        said = policy.complete([policy.prompt([Turn("user", "hi")])])
    assert len(said[0]) == 4
    assert not set(said[0]) & set(encoder.end_ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy.complete([]) == []


@pytest.mark.parametrize(
    ("critic", "options", "says"),
    [
        ("scalar", {"candidates": 0}, "candidates is 0"),
        (None, {"candidates": 4}, "this model has no critics"),
        ("vocabulary", {"candidates": 4, "support_top_k": 5}, "leave them out with candidates"),
        ("scalar", {"beta": 1.0}, "let them choose among candidates"),
    ],
)
def test_bad_options_are_one_sentence(encoder, critic, options, says):
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        LMPolicy(make(encoder, critic), encoder, **options)
    assert says in str(error.value)
