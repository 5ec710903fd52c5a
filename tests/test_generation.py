"""The decoding loop: greedy answers are those of `generate`, samples those of its distribution, and a row's answer is
its own affair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ilql import generation
from ilql.generation import Choice, Generator, Laid, choose, draw, staying, uniform
from ilql.kv import LeanRows
from ilql.model import ILQLModel
from ilql.scores import candidates
from ilql.types import InputError
from tests.toys import tiny

VOCABULARY, PAD = 23, 1
ENDS = [2, 5, 7]
PROMPTS = [[0, 5, 6, 7, 8], [0, 9], [0, 4, 11], [0, 9], [0, 12, 3, 3], [0]]
BOUNDS: list[dict[str, Any]] = [
    {},
    {"beta": 3.0},
    {"beta": 3.0, "support_top_k": 4},
    {"beta": 3.0, "support_top_p": 0.5},
    {"beta": 3.0, "support_top_k": 6, "support_top_p": 0.6},
]
NAMES = ["actor", "all", "top_k", "top_p", "both"]


def sharp(family: str = "gpt2", dtype: str = "float64", **options: Any) -> ILQLModel:
    """A model whose choices differ between states, tokens and scores."""
    model = tiny(family, VOCABULARY, seed=3, model={"dtype": dtype, **options.pop("model", {})}, **options)
    with torch.no_grad():
        for p in model.lm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def answers(model: ILQLModel, prompts: list[list[int]], choice: Choice, room: int = 9, **given: Any) -> list[list[int]]:
    return Generator(model, pad=PAD, ends=given.pop("ends", ENDS))(prompts, [room] * len(prompts), choice, **given)


def by_transformers(
    model: ILQLModel, prompts: list[list[int]], room: int = 9, ends: list[int] = ENDS, **options: Any
) -> list[list[int]]:
    """Greedy answers of `generate`, left padded, cut after the end token."""
    longest = max(map(len, prompts))
    out = model.generate(
        torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        max_new_tokens=room,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=PAD,
        **options,
    )
    rows = []
    for row in out[:, longest:].tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:stop])
    return rows


# ---- greedy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", BOUNDS, ids=NAMES)
def test_greedy_answers_are_those_of_generate(family, dtype, options):
    model = sharp(family, dtype)
    generator = torch.Generator().manual_seed(1)
    prompts = PROMPTS + [torch.randint(8, 23, (n,), generator=generator).tolist() for n in (1, 4, 9, 16, 2, 7)]
    choice = Choice(temperature=None, **options)
    endless = answers(model, prompts, choice, ends=[])
    assert endless == by_transformers(model, prompts, ends=[], **options)
    ends = [endless[0][1], endless[8][4], endless[9][6]]
    have = answers(model, prompts, choice, ends=ends)
    assert have == by_transformers(model, prompts, ends=ends, **options)
    assert len({len(answer) for answer in have}) > 1, "rows leave at different times"


@pytest.mark.parametrize("head", ["mlp", "tied"])
@pytest.mark.parametrize("options", BOUNDS, ids=NAMES)
def test_either_head_decodes(head, options):
    model = sharp(model={"head": head})
    have = answers(model, PROMPTS, Choice(temperature=None, **options))
    assert have == by_transformers(model, PROMPTS, **options)


def test_each_row_has_its_own_room():
    model = sharp()
    whole = answers(model, PROMPTS, Choice(temperature=None), 12, ends=[])
    rooms = [3, 12, 1, 7, 12, 2]
    have = Generator(model, pad=PAD, ends=[])(PROMPTS, rooms, Choice(temperature=None))
    assert have == [answer[:room] for answer, room in zip(whole, rooms, strict=True)]


def test_a_row_never_goes_beyond_the_context():
    model = sharp(model={"context": 8})
    prompts = [[0, 5, 6, 7, 8], [0]]
    have = Generator(model, pad=PAD, ends=[])(prompts, [3, 7], Choice(temperature=None))
    assert [len(answer) for answer in have] == [3, 7]


def test_finished_rows_are_computed_no_more(monkeypatch):
    sizes: list[int] = []
    step = LeanRows.step

    def counted(self: LeanRows, tokens: Tensor) -> Tensor:
        sizes.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(LeanRows, "step", counted)
    lengths = [len(answer) for answer in answers(sharp(), PROMPTS, Choice(temperature=None))]
    assert min(lengths) < max(lengths)
    assert sizes == [sum(n > t for n in lengths) for t in range(1, max(lengths))]


@pytest.mark.parametrize(
    ("done", "want"),
    [
        ([0, 0, 0], [0, 1, 2]),
        ([1, 0, 0, 0], [3, 1, 2]),
        ([0, 1, 1, 0, 0], [0, 3, 4]),
        ([1, 1, 0, 0], [2, 3]),
        ([0, 0, 1, 1], [0, 1]),
        ([0, 1, 0, 1, 0], [0, 4, 2]),
        ([1, 1], []),
    ],
)
def test_rows_that_stay(done, want):
    assert staying(torch.tensor(done).bool()).tolist() == want


def test_without_critics_of_tokens_beta_is_refused():
    with pytest.raises(ValueError, match="no token critics"):
        answers(tiny(critic=None), PROMPTS, Choice(beta=1.0))


# ---- the support -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("bounds", [{"support_top_k": VOCABULARY}, {"support_top_p": 1.0}, {"support_top_k": 99}])
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_a_support_of_the_whole_vocabulary_is_none(dtype, bounds, temperature):
    model = sharp(dtype=dtype)
    noise = uniform(len(PROMPTS), 9)
    free = answers(model, PROMPTS, Choice(3.0, temperature), noise=noise)
    assert answers(model, PROMPTS, Choice(3.0, temperature, **bounds), noise=noise) == free


@torch.no_grad()
@pytest.mark.parametrize("head", ["mlp", "tied"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("bounds", [{"top_k": 3}, {"top_p": 0.4}, {"top_k": 5, "top_p": 0.6}])
def test_q_of_the_support_is_that_of_all(head, dtype, tolerance, bounds):
    vocabulary = 700
    torch.manual_seed(0)
    model = tiny("gpt2", vocabulary, model={"dtype": dtype, "head": head})
    hidden = torch.randn(2, 4, 16, dtype=getattr(torch, dtype))
    logits = 9 * torch.randn(2, 4, vocabulary, dtype=getattr(torch, dtype))
    token, _ = candidates(logits.log_softmax(-1), **bounds)
    assert token[0, 0].numel() * 8 < vocabulary or "top_k" not in bounds, "a gather, not the table"
    free = model.reweighted(hidden, logits, 2.0)
    bound = model.reweighted(hidden, logits, 2.0, **bounds)
    inside = torch.isfinite(bound)
    assert 8 <= int(inside.sum()) < 8 * vocabulary
    torch.testing.assert_close(bound[inside], free[inside], rtol=tolerance, atol=tolerance)
    every = torch.stack([q(hidden) for q in model.q_target]).amin(0).flatten(0, 1)
    some = torch.randint(0, vocabulary, (8, 5))
    for token in (some, torch.arange(vocabulary).expand(8, -1)):
        laid = Laid(model)
        z, v = laid.features(hidden.flatten(0, 1))
        for have in (model.q_values(hidden.flatten(0, 1), token), laid.q(z, token)):
            torch.testing.assert_close(have, every.gather(1, token), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(v, model.v(hidden).flatten(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(laid.q(z, None), every, rtol=tolerance, atol=tolerance)


def test_the_critics_are_read_over_the_support_only():
    vocabulary, width, rows, k = 4000, 16, 6, 3
    model = tiny("gpt2", vocabulary)
    laid, hidden = Laid(model), torch.randn(rows, width, dtype=torch.float64)

    def work(choice: Choice) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            choose(laid, hidden, hidden, choice, None)
        return int(counter.get_total_flops()) // (2 * rows)

    table = vocabulary * 2 * width  # one critic's products a row
    assert work(Choice(temperature=None)) == vocabulary * width
    assert work(Choice(2.0, None)) > vocabulary * width + 2 * table
    few = work(Choice(2.0, None, support_top_k=k)) - vocabulary * width
    assert few == 2 * k * 2 * width + 3 * width * 2 * width + 2 * width, "k words of two critics, hidden layers, V"


# ---- sampling --------------------------------------------------------------------------------------------------------


def milder(options: dict[str, Any]) -> dict[str, Any]:
    """With a beta that leaves something to chance."""
    return {name: x / 5 if name == "beta" else x for name, x in options.items()}


@pytest.mark.parametrize("options", [*BOUNDS, {"beta": 3.0, "temperature": 0.6}], ids=[*NAMES, "cold"])
def test_samples_are_of_the_policy(options):
    model, count = sharp(), 6000
    options = milder(options)
    torch.manual_seed(0)
    drawn = answers(model, [[0, 3]] * count, Choice(**options), 1)
    temperature = options.pop("temperature", 1.0)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[0, 3]]), **options).logits[0, -1]
    want = torch.softmax(logits / temperature, -1)
    have = torch.bincount(torch.tensor(drawn).flatten(), minlength=VOCABULARY) / count
    assert (have[want == 0] == 0).all()
    spread = (want * (1 - want) / count).sqrt()
    assert ((have - want).abs() <= 5 * spread + 1e-12).all()
    assert want.max() < 0.9


@pytest.mark.parametrize("options", BOUNDS, ids=NAMES)
def test_a_sampled_answer_is_its_rows_own(options):
    torch.manual_seed(2)
    model, choice = sharp(), Choice(**milder(options))
    noise = uniform(len(PROMPTS), 9)
    together = answers(model, PROMPTS, choice, noise=noise)
    assert len({len(answer) for answer in together}) > 1
    apart = [answers(model, [p], choice, noise=noise[i : i + 1])[0] for i, p in enumerate(PROMPTS)]
    assert together == apart
    assert answers(model, PROMPTS[::-1], choice, noise=noise.flip(0)) == together[::-1]
    many = answers(model, [PROMPTS[1]] * 20, choice)
    assert len(set(map(tuple, many))) > 1, "equal prompts are sampled apart"


def test_the_seed_gives_the_samples():
    model = sharp()
    torch.manual_seed(4)
    first, state = answers(model, PROMPTS, Choice()), torch.get_rng_state()
    torch.manual_seed(4)
    assert answers(model, PROMPTS, Choice()) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert answers(model, PROMPTS, Choice()) != first
    before = torch.get_rng_state()
    answers(model, PROMPTS, Choice(temperature=None))
    assert torch.equal(torch.get_rng_state(), before), "greedy answers draw nothing"


def test_draw_by_hand():
    scores = torch.tensor([[0.5, 0.0, 0.25, 0.25, 0.0]]).log()
    at = [(0.0, 0), (0.499, 0), (0.501, 2), (0.749, 2), (0.751, 3), (1 - 2**-40, 3)]
    for noise, place in at:
        assert draw(scores, 1.0, torch.tensor([noise], dtype=torch.float64)).tolist() == [[place]]
    squared = torch.tensor([[2 / 3, 0, 1 / 6, 1 / 6, 0]])
    for noise in (0.1, 0.66, 0.67, 0.83, 0.84):
        u = torch.tensor([noise], dtype=torch.float64)
        assert draw(scores, 0.5, u).tolist() == draw(squared.log(), 1.0, u).tolist()
    assert float(uniform(100, 100).max()) < 1


def test_rare_tokens_of_a_large_vocabulary_keep_their_share():
    # Each is too rare to change a sum of float32 near 1, and together they are a fifth.
    rare = 1 << 22
    scores = torch.full((1, rare + 1), 0.2 / rare).log()
    scores[0, 0] = torch.tensor(0.8).log()
    places = [int(draw(scores, 1.0, torch.tensor([u], dtype=torch.float64))) for u in (0.79, 0.85, 0.95)]
    assert places[0] == 0
    assert places[1] / rare == pytest.approx(0.25, abs=0.01)
    assert places[2] / rare == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_an_error(bad):
    model = sharp()
    with torch.no_grad():
        model.lm.transformer.ln_f.bias[3] = bad
    with pytest.raises(InputError, match="scores are not numbers"):
        answers(model, PROMPTS, Choice())


# ---- the layout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["trunk", "head", "critic", "all words"])
def test_weights_that_change_are_read_anew(part, monkeypatch):
    monkeypatch.setattr("ilql.prepack.LARGE", 1)  # every weight is laid out
    model = sharp(dtype="float32")
    bounds = {} if part == "all words" else {"support_top_k": 4}
    choice = Choice(0.0 if part == "head" else 5.0, None, **bounds)
    generator = Generator(model, pad=PAD, ends=ENDS)

    def ours() -> list[list[int]]:
        return generator(PROMPTS, [9] * len(PROMPTS), choice)

    first = ours()
    assert first == by_transformers(model, PROMPTS, beta=choice.beta, **bounds)
    laid = generator.laid
    assert ours() == first
    assert generator.laid is laid, "and not when they stay"
    torch.manual_seed(1)
    changed = {
        "trunk": [model.lm.transformer.h[0].mlp.c_fc.weight],
        "head": [model.get_output_embeddings().weight],
        "critic": [q.hidden.weight for q in model.q_target],
        "all words": [q.out.weight for q in model.q_target],
    }[part]
    with torch.no_grad():
        for weight in changed:
            weight.add_(torch.randn_like(weight))
    want = by_transformers(model, PROMPTS, beta=choice.beta, **bounds)
    assert want != first
    assert ours() == want


def test_bf16_weights_are_scored_in_float32(monkeypatch):
    model = sharp(dtype="bfloat16")
    seen: list[torch.dtype] = []
    extracted = generation.extracted

    def looked_at(*args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        scores, token = extracted(*args, **options)
        seen.append(scores.dtype)
        return scores, token

    monkeypatch.setattr(generation, "extracted", looked_at)
    low = answers(model, PROMPTS, Choice(3.0, None, support_top_k=4))
    assert set(seen) == {torch.float32}
    high = answers(model.float(), PROMPTS, Choice(3.0, None, support_top_k=4))
    assert [answer[0] for answer in low] == [answer[0] for answer in high]


def test_a_trunk_in_training_mode_decodes_as_it_stands():
    model = sharp()
    want = answers(model, PROMPTS, Choice(temperature=None))
    model.train()
    assert Laid(model).lean is None
    assert answers(model, PROMPTS, Choice(temperature=None)) == want


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_model_trains_on_after_it_decoded(family):
    model = sharp(family)
    answers(model, PROMPTS, Choice(2.0, None, support_top_k=4))
    model.train()
    model(input_ids=torch.tensor(PROMPTS[:1])).logits.square().sum().backward()
    assert all(p.grad is not None for p in model.lm.base_model.parameters())
