"""Proposals against brute force: every utterance of a small vocabulary, its probability by an uncached pass."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ilql.generation import Generator
from ilql.model import ILQLModel
from ilql.propose import Proposal, propose
from ilql.types import InputError
from tests.toys import tiny

VOCABULARY, ENDS = 5, (2, 3)
PROMPTS = [[0, 4, 1, 0, 4], [0, 1], [0], [0, 1], [0, 4, 4]]
FAMILIES = ["gpt2", "llama", "gpt_neox"]  # the last has no plain functions here: it decodes as in transformers
pytestmark = pytest.mark.filterwarnings("ignore:a proposal did not end")


def model(family: str = "gpt2", dtype: str = "float64", vocabulary: int = VOCABULARY, **options: Any) -> ILQLModel:
    """An actor whose probabilities differ between states and tokens."""
    made = tiny(family, vocabulary, seed=3, model={"dtype": dtype, **options.pop("model", {})}, **options)
    with torch.no_grad():
        for p in made.lm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made


def speaker(made: ILQLModel, room: int = 3, *, ends: Any = ENDS, batch_size: int = 64) -> Any:
    generator = Generator(made, pad=1, ends=ends)
    return SimpleNamespace(generator=generator, batch_size=batch_size, room=lambda prompt: room)


@torch.no_grad()
def logp(made: ILQLModel, prompt: list[int], tokens: list[int], temperature: float = 1.0) -> float:
    """By one uncached pass."""
    logits = made(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return float((logits / temperature).log_softmax(-1)[torch.arange(len(tokens)), tokens].sum())


def utterances(room: int = 3, begun: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """All that may be said, those that are cut off among them."""
    out = []
    for token in range(VOCABULARY):
        said = (*begun, token)
        out += [said] if token in ENDS or len(said) == room else utterances(room, said)
    return out


def said(proposals: list[Proposal]) -> list[tuple[int, ...]]:
    return [tuple(p.tokens) for p in proposals]


def without_replacement(probability: dict[Any, float], n: int) -> dict[frozenset[Any], float]:
    """The chance of each set of n, drawn one after the other from what is left."""
    out: dict[frozenset[Any], float] = {}
    for drawn in itertools.permutations(probability, n):
        chance, left = 1.0, 1.0
        for one in drawn:
            chance *= probability[one] / left
            left -= probability[one]
        out[frozenset(drawn)] = out.get(frozenset(drawn), 0.0) + chance
    return out


def differs(counts: Counter[Any], want: dict[Any, float], draws: int) -> float:
    """Standard deviations of chi squared above its mean, over what is expected at least 5 times."""
    common = [k for k, p in want.items() if p * draws >= 5]
    chi = sum((counts[k] - draws * want[k]) ** 2 / (draws * want[k]) for k in common)
    assert (
        sum(counts[k] for k in want if k not in common) < 2 * draws * sum(want[k] for k in want if k not in common) + 9
    )
    return (chi - len(common)) / math.sqrt(2 * len(common))


@pytest.mark.parametrize(("family", "n", "temperature"), [("gpt2", 2, 1.0), ("llama", 3, 1.0), ("gpt2", 2, 0.5)])
def test_they_are_samples_without_replacement(family, n, temperature):
    made, prompt, draws = model(family), PROMPTS[0], 6000
    room = 3 if n == 2 else 2
    probability = {u: math.exp(logp(made, prompt, list(u), temperature)) for u in utterances(room)}
    assert sum(probability.values()) == pytest.approx(1.0)
    torch.manual_seed(0)
    found = propose(speaker(made, room, batch_size=2000), [prompt] * draws, n, temperature=temperature)
    counts = Counter(frozenset(said(some)) for some in found)
    assert abs(differs(counts, without_replacement(probability, n), draws)) < 4


@pytest.mark.parametrize("temperature", [1.0, 0.7, None])
def test_all_that_may_be_said_is_proposed_once(temperature):
    made = model()
    (found,) = propose(speaker(made), PROMPTS[:1], 100, temperature=temperature)
    assert sorted(said(found)) == sorted(utterances())
    assert sum(math.exp(p.logp) for p in found) == pytest.approx(1.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, None])
def test_log_probabilities_are_those_of_an_uncached_pass(family, dtype, tolerance, temperature):
    made = model(family, dtype, 23)
    found = propose(speaker(made, 6, ends=[2, 5, 7]), PROMPTS, 6, temperature=temperature)
    for prompt, some in zip(PROMPTS, found, strict=True):
        assert len(set(said(some))) == len(some) == 6
        assert [p.logp for p in some] == sorted((p.logp for p in some), reverse=True)
        for p in some:
            assert p.logp == pytest.approx(logp(made, prompt, p.tokens), rel=tolerance, abs=tolerance)
            assert p.ended == (p.tokens[-1] in (2, 5, 7))
            assert not set(p.tokens[:-1]) & {2, 5, 7}
            assert p.ended or len(p.tokens) == 6


def beam_search(made: ILQLModel, prompt: list[int], n: int, room: int) -> list[tuple[int, ...]]:
    beams: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(room):
        grown = {b: v for b, v in beams.items() if b and b[-1] in ENDS}
        for b in beams.keys() - grown.keys():
            grown |= {(*b, t): logp(made, prompt, [*b, t]) for t in range(VOCABULARY)}
        beams = dict(sorted(grown.items(), key=lambda each: -each[1])[:n])
    return list(beams)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_temperature_it_is_a_beam_search(family):
    made = model(family)
    before = torch.get_rng_state()
    found = propose(speaker(made), PROMPTS, 4, temperature=None)
    assert [said(some) for some in found] == [beam_search(made, prompt, 4, 3) for prompt in PROMPTS]
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("judged", [False, True])
def test_they_do_not_depend_on_their_batch(family, judged):
    made = model(family, vocabulary=23, critic="scalar")
    rooms = {5: 2, 2: 7, 1: 5, 3: 4}

    def drawn(batch_size: int) -> list[list[Proposal]]:
        torch.manual_seed(1)
        policy = speaker(made, ends=[2, 5, 7], batch_size=batch_size)
        policy.room = lambda prompt: rooms[len(prompt)]
        return propose(policy, PROMPTS, 5, judged=judged)

    together, alone = drawn(64), drawn(1)
    assert [said(some) for some in together] == [said(some) for some in alone]
    assert said(together[1]) != said(together[3]), "equal prompts draw their own"
    some, same = ([(p.logp, p.q or 0.0) for each in found for p in each] for found in (together, alone))
    assert np.allclose(some, same, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("critic", ["scalar", "vocabulary"])
@pytest.mark.parametrize("head", ["mlp", "tied"])
def test_values_are_those_of_an_uncached_pass(family, critic, head):
    made = model(family, vocabulary=23, critic=critic, model={"head": head})
    found = propose(speaker(made, 6, ends=[2, 5, 7]), PROMPTS, 6, judged=True)
    for prompt, some in zip(PROMPTS, found, strict=True):
        assert {p.ended for p in some} == {True, False} or len(prompt) > 1
        for p in some:
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *p.tokens]])
                h = made.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
                if critic == "scalar":
                    want = min(float(q(h[-1])) for q in made.q_target)
                else:
                    want = min(float(q(h[-2])[p.tokens[-1]]) for q in made.q_target)
            assert p.q == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, None])
def test_fewer_where_the_actor_has_fewer_to_say(temperature):
    made = model()
    with torch.no_grad():  # a head that allows three tokens
        lm: Any = made.lm
        weight, bias = lm.lm_head.weight, torch.tensor([-torch.inf, -torch.inf, 0.0, 0.0, 0.0], dtype=torch.float64)
        lm.lm_head = torch.nn.Linear(weight.shape[1], VOCABULARY, dtype=torch.float64)
        lm.lm_head.weight.copy_(weight)
        lm.lm_head.bias.copy_(bias)
    found = propose(speaker(made, 2), PROMPTS, 20, temperature=temperature)
    every = {(2,), (3,), (4, 2), (4, 3), (4, 4)}
    assert [set(said(some)) for some in found] == [every] * len(PROMPTS)
    assert all(math.isfinite(p.logp) for some in found for p in some)


def test_far_from_likely_utterances_are_drawn_all_the_same():
    """Hundreds of tokens: probabilities that no float holds."""
    made = model(vocabulary=23)
    found = propose(speaker(made, 200, ends=[24]), PROMPTS[:2], 4)
    for prompt, some in zip(PROMPTS, found, strict=False):
        assert len(set(said(some))) == 4
        assert all(p.logp == pytest.approx(logp(made, prompt, p.tokens), rel=1e-9) for p in some)
        assert all(p.logp < -400 for p in some)


def test_a_cut_off_proposal_is_told_of_once():
    made = model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        propose(speaker(made, 1), PROMPTS, 5)
    assert [str(w.message) for w in caught] == ["a proposal did not end its turn within its room and is cut off there"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(p.ended for some in propose(speaker(made, 1, ends=range(5)), PROMPTS, 5) for p in some)
        assert propose(speaker(made), [], 5) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n": 0}, "candidates is 0"),
        ({"n": 2, "temperature": 0.0}, "temperature is 0.0"),
        ({"n": 2, "temperature": math.inf}, "temperature is inf"),
    ],
)
def test_bad_options_are_one_sentence(options, says):
    with pytest.raises(InputError, match=says):
        propose(speaker(model()), PROMPTS, **options)


def test_a_diverged_actor_is_named():
    made = model()
    with torch.no_grad():
        for p in made.lm.parameters():
            p.fill_(torch.nan)
    with pytest.raises(InputError, match="diverged in training"):
        propose(speaker(made), PROMPTS, 3)
