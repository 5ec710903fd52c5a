"""The model as one of transformers': decoding against an uncached loop, saving, loading, and which trunks it takes."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, StaticCache

from ilql.build import ModelConfig, build
from ilql.model import ILQLConfig, ILQLModel
from ilql.types import InputError
from tests.toys import tiny

SHAPES = ("gpt2", "llama")
BETA = 3.0
PAD = 1
PROMPTS = [[0, 5, 6, 7, 8], [0, 9], [0, 4, 11]]
SUPPORTS: list[dict[str, Any]] = [{}, {"support_top_k": 4}, {"support_top_p": 0.3}]


def plain_support(logp: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Which tokens are allowed, by a loop over the sorted vocabulary of one state."""
    ranked = sorted(range(len(logp)), key=lambda i: -logp[i].item())
    allowed, mass = set(), 0.0
    for rank, token in enumerate(ranked):
        if (top_k is None or rank < top_k) and (top_p is None or mass < top_p):
            allowed.add(token)
        mass += logp[token].exp().item()
    return torch.tensor([i in allowed for i in range(len(logp))])


def plain_scores(
    model: ILQLModel, ids: list[int], beta: float, support_top_k: int | None = None, support_top_p: float | None = None
) -> Tensor:
    """log pi_b + beta (min_k Qtarget_k - V) of the next token (V), everything computed anew from the bare trunk."""
    h = model.lm.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
    logp = torch.log_softmax(model.lm.get_output_embeddings().weight @ h, -1)
    q = torch.stack(
        [c.out.weight @ torch.relu(c.hidden.weight @ h + c.hidden.bias) + c.out.bias for c in model.q_target]
    )
    v = model.v.out.weight @ torch.relu(model.v.hidden.weight @ h + model.v.hidden.bias) + model.v.out.bias
    scores = logp + beta * (q.min(0).values - v)
    return torch.where(plain_support(logp, support_top_k, support_top_p), scores, -torch.inf)


def plain_greedy(model: ILQLModel, prompt: list[int], steps: int, beta: float, **support: Any) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(plain_scores(model, ids, beta, **support).argmax()))
    return ids[len(prompt) :]


def padded(prompts: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
    }


def generate(model: ILQLModel, prompts: list[list[int]], steps: int = 8, **options: Any) -> Any:
    options = {"do_sample": False, "max_new_tokens": steps, "eos_token_id": None, "pad_token_id": PAD, **options}
    return model.generate(**padded(prompts), **options)


def sharp(architecture: str, vocab: int = 23, seed: int = 3) -> ILQLModel:
    """A model whose choices differ between states, tokens and scores; a fresh one hardly looks at its input."""
    model = tiny(architecture, vocab, seed=seed)
    with torch.no_grad():
        for p in model.lm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


# ---- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("support", SUPPORTS, ids=["all", "top_k", "top_p"])
def test_generate_equals_an_uncached_loop(architecture, support):
    model = sharp(architecture)
    want = [plain_greedy(model, p, 8, BETA, **support) for p in PROMPTS]
    assert len({tuple(w) for w in want}) == 3
    assert want != [plain_greedy(model, p, 8, 0.0) for p in PROMPTS], "beta must matter here"
    for cached in (True, False):
        for prompt, tokens in zip(PROMPTS, want, strict=True):
            alone = generate(model, [prompt], beta=BETA, use_cache=cached, **support)
            assert alone[0, len(prompt) :].tolist() == tokens
        batch = generate(model, PROMPTS, beta=BETA, use_cache=cached, **support)
        assert batch[:, 5:].tolist() == want, "left padding must not matter"


@pytest.mark.parametrize("architecture", SHAPES)
def test_the_scores_are_those_of_the_loop_to_1e_9(architecture):
    model = sharp(architecture)
    out = generate(model, PROMPTS, 6, beta=BETA, support_top_k=5, output_logits=True, return_dict_in_generate=True)
    for t, logits in enumerate(out.logits):
        for i, prompt in enumerate(PROMPTS):
            ids = prompt + out.sequences[i, 5 : 5 + t].tolist()
            want = plain_scores(model, ids, BETA, support_top_k=5)
            torch.testing.assert_close(logits[i].double(), want, rtol=1e-6, atol=1e-6)  # generate keeps float32
            exact = model(input_ids=torch.tensor([ids]), beta=BETA, support_top_k=5).logits[0, -1]
            torch.testing.assert_close(exact, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", SHAPES)
def test_the_supports_best_is_not_the_best_of_all(architecture):
    model = sharp(architecture)
    free = plain_scores(model, PROMPTS[0], 50.0)
    bound = plain_scores(model, PROMPTS[0], 50.0, support_top_k=2)
    assert free.argmax() != bound.argmax()
    assert generate(model, PROMPTS[:1], 1, beta=50.0)[0, -1] == free.argmax()
    assert generate(model, PROMPTS[:1], 1, beta=50.0, support_top_k=2)[0, -1] == bound.argmax()


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("beta", [0, 0.0, None])
def test_beta_0_is_the_plain_language_model_to_the_bit(architecture, beta):
    model = sharp(architecture).float()
    batch = padded(PROMPTS)
    assert torch.equal(model(**batch, beta=beta).logits, model.lm(**batch).logits)
    options = {"do_sample": True, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": PAD}
    torch.manual_seed(3)
    ours = model.generate(**batch, **options, beta=beta)
    torch.manual_seed(3)
    assert torch.equal(ours, model.lm.generate(**batch, **options))


@pytest.mark.parametrize("architecture", SHAPES)
def test_only_the_asked_positions_are_scored(architecture):
    model = sharp(architecture)
    ids = torch.tensor([[0, 4, 5, 6, 7]])
    whole = model(input_ids=ids, beta=BETA).logits
    torch.testing.assert_close(model(input_ids=ids, beta=BETA, logits_to_keep=2).logits, whole[:, -2:])
    picked = model(input_ids=ids, beta=BETA, logits_to_keep=torch.tensor([1, 3])).logits
    torch.testing.assert_close(picked, whole[:, [1, 3]])


@pytest.mark.parametrize("architecture", SHAPES)
def test_a_static_cache_gives_the_same(architecture):
    model = sharp(architecture)
    want = plain_greedy(model, PROMPTS[0], 4, BETA)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=16)
    assert generate(model, PROMPTS[:1], 4, beta=BETA, past_key_values=cache)[0, 5:].tolist() == want


def best_sequence(model: ILQLModel, prompt: list[int], steps: int, beta: float, vocab: int) -> tuple[list[int], float]:
    """The sequence with the largest sum of normalised log-probabilities, by enumeration."""
    best: tuple[list[int], float] = ([], -float("inf"))
    for tail in itertools.product(range(vocab), repeat=steps):
        total = 0.0
        for t, token in enumerate(tail):
            ids = [*prompt, *tail[:t]]
            total += torch.log_softmax(plain_scores(model, ids, beta), -1)[token].item()
        if total > best[1]:
            best = (list(tail), total)
    return best


@pytest.mark.parametrize("architecture", SHAPES)
def test_beams_find_the_best_sequence(architecture):
    model = sharp(architecture, vocab=5, seed=2)
    prompts = [[0, 3, 4], [0, 2]]
    out = generate(
        model,
        prompts,
        2,
        beta=1.0,
        num_beams=5,  # all first tokens stay, so a beam search of two steps is exhaustive
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for i, prompt in enumerate(prompts):
        tokens, total = best_sequence(model, prompt, 2, 1.0, 5)
        assert out.sequences[i, 3:].tolist() == tokens
        assert out.sequences_scores[i].item() == pytest.approx(total, abs=1e-5)


def test_the_best_beam_is_not_the_greedy_sequence():
    model = sharp("llama", vocab=5)
    best, _ = best_sequence(model, [0, 3], 2, 0.5, 5)
    assert best != plain_greedy(model, [0, 3], 2, 0.5)
    assert generate(model, [[0, 3]], 2, beta=0.5, num_beams=5)[0, 2:].tolist() == best
    assert generate(model, [[0, 3]], 2, beta=0.5, num_beams=1)[0, 2:].tolist() != best


def test_sampling_draws_from_the_reweighted_policy():
    model = sharp("gpt2", vocab=5)
    want = torch.softmax(plain_scores(model, [0, 3], BETA / 5), -1)
    assert want.max() < 0.9, "a distribution to tell apart from its argmax"
    n = 4000
    drawn = model.generate(
        torch.tensor([[0, 3]] * n), beta=BETA / 5, do_sample=True, top_k=0, max_new_tokens=1, eos_token_id=None,
        attention_mask=torch.ones(n, 2, dtype=torch.long), pad_token_id=PAD,
    )[:, -1]  # fmt: skip
    seen = torch.bincount(drawn, minlength=5) / n
    assert (seen - want).abs().max() < 4 * (0.25 / n) ** 0.5
    actor = torch.softmax(plain_scores(model, [0, 3], 0.0), -1)
    assert (actor - want).abs().max() > 0.1, "not the actor's distribution"


@pytest.mark.parametrize("architecture", SHAPES)
def test_top_k_and_top_p_of_transformers_act_on_the_reweighted_policy(architecture):
    model = sharp(architecture)
    scores = plain_scores(model, PROMPTS[0], BETA)
    prob, order = torch.softmax(scores, -1).sort(descending=True)
    nucleus = set(order[: int((prob.cumsum(0) < 0.9).sum()) + 1].tolist())
    best = set(scores.topk(3).indices.tolist())
    actors = set(plain_scores(model, PROMPTS[0], 0.0).topk(3).indices.tolist())
    assert best != actors
    for options, allowed in (({"top_k": 3}, best), ({"top_k": 0, "top_p": 0.9}, nucleus)):
        out = generate(
            model,
            PROMPTS[:1],
            1,
            beta=BETA,
            do_sample=True,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
        assert set(out.scores[0][0].isfinite().nonzero().flatten().tolist()) == allowed


def test_an_actor_alone_refuses_beta():
    model = tiny(critic=None, algo="bc")
    assert torch.isfinite(model(input_ids=torch.tensor([[0, 3]]), beta=0.0).logits).all()
    with pytest.raises(InputError, match=r"no token critics \(bc\)"):
        generate(model, [[0, 3]], beta=1.0)


def test_a_policy_that_is_its_actor_refuses_beta():
    model = tiny(scores="actor", algo="awac")
    assert torch.isfinite(model(input_ids=torch.tensor([[0, 3]]), beta=0.0).logits).all()
    with pytest.raises(InputError, match="awac decodes by its actor alone"):
        generate(model, [[0, 3]], beta=1.0)


def test_critics_of_utterances_refuse_beta():
    with pytest.raises(InputError, match=r"judge whole utterances and no tokens \(ilql_utterance\): .*--candidates"):
        generate(tiny(critic="scalar", algo="ilql_utterance"), [[0, 3]], beta=1.0)


# ---- saving and loading ----------------------------------------------------------------------------------------------


@pytest.fixture(params=SHAPES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ILQLModel, Path]:
    model = tiny(request.param, history=2, reward_scale=0.5, algo="ilql")
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def loaders() -> list[Any]:
    return [ILQLModel.from_pretrained, AutoModelForCausalLM.from_pretrained]


def test_loading_gives_the_same_model_with_frozen_targets(saved):
    model, folder = saved
    for loader in loaders():
        again = loader(folder, dtype=torch.float64)
        assert isinstance(again, ILQLModel)
        trainable = {n for n, p in again.named_parameters() if p.requires_grad}
        assert trainable == {n for n, _ in again.named_parameters() if not n.startswith("q_target")}
        mine, theirs = model.state_dict(), again.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)
        assert not torch.equal(again.q[0].out.weight, again.q_target[0].out.weight), "targets keep what was saved"
        ids = torch.tensor([[0, 4, 5]])
        assert torch.equal(again.eval()(input_ids=ids, beta=BETA).logits, model(input_ids=ids, beta=BETA).logits)
        assert (again.config.history, again.config.reward_scale, again.config.algo) == (2, 0.5, "ilql")
        assert again.generation_config.eos_token_id == [2]


def test_the_dtype_is_the_one_asked_for(saved):
    _, folder = saved
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("lost", ["v.out.weight", "q_target.1.hidden.bias", "q.0.out.weight"])
def test_a_checkpoint_without_a_head_is_an_error(saved, lost):
    _, folder = saved
    tensors = load_file(folder / "model.safetensors")
    assert tensors.pop(lost) is not None
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for loader in loaders():
        with pytest.raises(InputError, match=f"lacks the weight {lost}"):
            loader(folder)


def test_a_second_critic_that_was_not_saved_is_an_error(saved):
    model, folder = saved
    model.config.critics = 3
    model.config.save_pretrained(folder)
    with pytest.raises(InputError, match=r"lacks the weight q.2.*\(8 in all\)"):
        ILQLModel.from_pretrained(pretrained_model_name_or_path=folder)


def test_loading_tells_what_it_loaded_where_asked(saved):
    model, info = ILQLModel.from_pretrained(saved[1], output_loading_info=True)
    assert isinstance(model, ILQLModel)
    assert not info["missing_keys"]


# ---- building --------------------------------------------------------------------------------------------------------


def make(**options: Any) -> ILQLModel:
    sizes = {"vocab_size": 23, "bos_id": 0, "pad_id": 1, "end_ids": [2, 5], **options.pop("sizes", {})}
    fields = {"layers": 1, "width": 16, "heads": 2, "context": 32, **options.pop("model", {})}
    return build(ModelConfig(**fields), **sizes, **options)


@pytest.mark.parametrize("critic", ["vocabulary", "scalar"])
def test_the_targets_begin_as_a_copy_of_the_critics(critic):
    model = make(critic=critic)
    pairs = list(zip(model.q.parameters(), model.q_target.parameters(), strict=True))
    assert len(pairs) == 8
    for online, target in pairs:
        assert torch.equal(online, target)
        assert online.data_ptr() != target.data_ptr()
        assert (online.requires_grad, target.requires_grad) == (True, False)
    assert not torch.equal(model.q[0].out.weight, model.q[1].out.weight), "two critics are drawn apart"


def test_training_from_scratch_has_the_shape_asked_for():
    for architecture in SHAPES:
        model = make(model={"architecture": architecture, "layers": 2, "width": 24, "critics": 1, "head_width": 7})
        text = model.config.text_config
        assert (text.hidden_size, text.num_hidden_layers, text.max_position_embeddings) == (24, 2, 32)
        assert len(model.q) == len(model.q_target) == 1
        assert model.q[0].hidden.out_features == 7
        assert make().q[0].hidden.out_features == 32, "twice the width"
        assert model.generation_config.eos_token_id == [2, 5]
        assert (model.generation_config.bos_token_id, model.generation_config.pad_token_id) == (0, 1)
    assert len(make(critic=None).q) == 0
    assert make(critic=None).v is None


def test_dropout_is_the_one_asked_for():
    def drops(model: ILQLModel) -> dict[str, float]:
        return {n: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}

    assert set(drops(make()).values()) == {0.0}
    found = drops(make(model={"dropout": 0.25}))
    assert len(found) == 4
    assert {n: p for n, p in found.items() if p != 0.25} == {"lm.transformer.h.0.attn.attn_dropout": 0.0}


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=32)).save_pretrained(tmp_path)
    return tmp_path


def test_a_pretrained_trunk_keeps_its_weights_and_grows_to_the_tokenizer(pretrained):
    plain = GPT2LMHeadModel.from_pretrained(pretrained).eval()
    same = make(model={"pretrained": str(pretrained)}, sizes={"vocab_size": 20}).eval()
    ids = torch.tensor([[0, 4, 19]])
    assert torch.equal(same(input_ids=ids).logits, plain(ids).logits)
    grown = make(model={"pretrained": str(pretrained)}, sizes={"vocab_size": 23}).eval()
    assert grown.config.get_text_config().vocab_size == 23
    assert grown.q[0].out.out_features == grown.get_output_embeddings().out_features == 23
    torch.testing.assert_close(grown(input_ids=ids).logits[..., :20], plain(ids).logits)
    assert grown(input_ids=torch.tensor([[22]]), beta=1.0).logits.shape == (1, 1, 23)
    larger = make(model={"pretrained": str(pretrained)}, sizes={"vocab_size": 18})
    assert larger.q[0].out.out_features == 20, "a trunk with more tokens than the tokenizer keeps them"
    assert (
        make(model={"pretrained": str(pretrained), "dtype": "float64"}, sizes={"vocab_size": 20}).dtype == torch.float64
    )


def test_a_grown_trunk_is_loaded_as_it_was_saved(pretrained, tmp_path):
    grown = make(model={"pretrained": str(pretrained)}).eval()
    grown.save_pretrained(tmp_path / "grown")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "grown").eval()
    ids = torch.tensor([[0, 22]])
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), grown.parameters(), strict=True))
    torch.testing.assert_close(again(input_ids=ids, beta=1.0).logits, grown(input_ids=ids, beta=1.0).logits)


def test_a_model_of_ours_can_be_the_pretrained_trunk(tmp_path):
    first = make().eval()
    first.save_pretrained(tmp_path)
    second = make(model={"pretrained": str(tmp_path)}).eval()
    ids = torch.tensor([[0, 4, 19]])
    assert torch.equal(second(input_ids=ids).logits, first(input_ids=ids).logits)
    assert not torch.equal(second.v.out.weight, first.v.out.weight), "heads are fresh"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"pretrained": "/no/such/folder"}, "model.pretrained: '/no/such/folder' is no causal LM"),
        ({"architecture": "nonsense"}, "model.architecture: 'nonsense' cannot be built"),
        ({"architecture": "gtp2"}, "'gtp2' cannot be built, no such family; try gpt2"),
        ({"extra": {"n_hea": 3}}, "model.extra: 'gpt2' has no field 'n_hea'; did you mean 'n_head'?"),
        ({"width": 15, "heads": 2}, "model.architecture: 'gpt2' cannot be built"),
        ({"critics": 3}, "model.critics is 3"),
        ({"critics": 0}, "model.critics is 0"),
        ({"dtype": "int32"}, "model.dtype is 'int32'"),
        ({"dtype": "double precision"}, "model.dtype is"),
        # A cap that fresh logits are too small to feel, a factor on them, an offset before the head.
        ({"architecture": "gemma2", "extra": {"head_dim": 8}}, "'gemma2' changes its logits"),
        ({"architecture": "cohere"}, "'cohere' changes its logits"),
        ({"architecture": "granite", "extra": {"logits_scaling": 3.0}}, "'granite' changes its logits"),
        (
            {"architecture": "gemma2", "extra": {"head_dim": 8, "final_logit_softcapping": None}},
            "'gemma2' cannot train on packed dialogues",
        ),
    ],
)
def test_what_cannot_be_built_is_one_sentence(model, says):
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        make(model=model)
    assert says in str(error.value)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "mistral", "gpt_neox"])
def test_families_that_are_taken(architecture):
    model = make(model={"architecture": architecture}).eval()
    prompt = [0, 4, 5]
    assert generate(model, [prompt], 2, beta=BETA)[0, 3:].tolist() == plain_greedy(model, prompt, 2, BETA)


def test_the_vocabulary_cannot_be_resized_under_the_critics():
    with pytest.raises(InputError, match="--action-token"):
        make().resize_token_embeddings(30)


def test_an_unknown_score_is_refused():
    with pytest.raises(InputError, match="not one of advantage"):
        ILQLConfig(text_config=AutoConfig.for_model("gpt2"), scores="argmax")


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_tied_critics_come_back_as_they_were_saved(tmp_path, architecture):
    model = make(model={"architecture": architecture, "layers": 1, "width": 16, "heads": 2, "head": "tied"})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    names = set(model.state_dict())
    assert {n for n in names if n.startswith("q.0.")} == {f"q.0.{n}" for n in WEIGHTS}
    model.save_pretrained(tmp_path)
    again = ILQLModel.from_pretrained(tmp_path)
    hidden = torch.randn(3, 16)
    torch.testing.assert_close(again.q_values(hidden), model.q_values(hidden))
    twin = copy.deepcopy(again)
    with torch.no_grad():
        again.get_output_embeddings().weight.add_(1.0)
    assert not torch.allclose(again.q_values(hidden), model.q_values(hidden)), "the critics read the model's own words"
    torch.testing.assert_close(twin.q_values(hidden), model.q_values(hidden))


WEIGHTS = ("bias", "hidden.bias", "hidden.weight", "out.bias", "out.weight")


def test_an_unknown_head_is_refused():
    with pytest.raises(InputError, match="head is 'tide', not mlp or tied"):
        ILQLConfig(head="tide")
