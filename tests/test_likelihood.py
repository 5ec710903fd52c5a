"""Critics whose values are probabilities: they answer as any other critic, and their loss reads the whole softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilql.data import collate
from ilql.generation import Choice, Generator
from ilql.learner import Out
from ilql.likelihood import RESTS
from ilql.model import ILQLModel
from ilql.types import InputError
from tests.toys import BOS, chat_row, logits, tiny

LOW, HIGH = -2.0, 3.0


def model_of(rest: str, head: str = "mlp") -> ILQLModel:
    how = {"low": LOW, "high": HIGH, "rest": rest, "support": 0.1}
    return tiny(critic="likelihood", likelihood=how, model={"head": head})


def probabilities(table: torch.Tensor, rest: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the tokens, and of the dummy action, by the definition."""
    extra = torch.zeros(*table.shape[:-1], 1).double() if rest == "dummy" else torch.full((*table.shape[:-1], 1), -1e9)
    p = torch.cat([table, extra.double()], -1).softmax(-1)
    return p[..., :-1], p[..., -1]


@pytest.mark.parametrize("head", ["mlp", "tied"])
@pytest.mark.parametrize("rest", RESTS)
def test_a_critic_answers_with_probabilities_as_values(rest, head):
    model = model_of(rest, head)
    h = torch.randn(6, 16, dtype=torch.float64)
    action = torch.randint(0, 23, (6, 4))
    for critic, inner in zip([*model.q, *model.q_target], logits(model), strict=True):
        p, left = probabilities(inner(h), rest)
        assert ((left > 1e-4).all(), (left == 0).all()) == (rest == "dummy", rest == "uniform")
        want = LOW + (HIGH - LOW) * p
        torch.testing.assert_close(critic(h), want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(critic.taken(h, action[:, 0]), want.gather(1, action[:, :1]).squeeze(1))
        torch.testing.assert_close(critic.among(critic.features(h), action), want.gather(1, action))
        torch.testing.assert_close(critic.mean_logit(h), inner(h).mean(1))


@pytest.mark.parametrize("rest", RESTS)
def test_a_loss_reads_the_action_and_what_gets_the_rest(rest):
    model = model_of(rest)
    rng = np.random.default_rng(0)
    rows = [chat_row(rng, 23, 2, name=f"d{i}") for i in range(3)]
    batch = collate(rows + rows, gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    out = Out(model, model.hidden(*batch.run), batch)
    h = out.hidden[batch.where[batch.state]]
    for k, inner in enumerate(logits(model)[:2]):
        p, left = probabilities(inner(h), rest)
        taken = p.gather(1, batch.action[:, None]).squeeze(1)
        others = (p.log().sum(1) - taken.log()) / 22
        want = left.log() if rest == "dummy" else others
        torch.testing.assert_close(out.q_logp[k], taken.log(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out.q_rest[k], want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out.q[k], LOW + (HIGH - LOW) * taken, rtol=1e-10, atol=1e-10)
    fresh = Out(model, out.hidden, batch)
    torch.testing.assert_close(fresh.q, out.q)  # without the whole softmax
    both = torch.stack([c.taken(h, batch.action) for c in model.q_target])
    torch.testing.assert_close(fresh.q_target, both.min(0).values)


def test_it_is_saved_and_loaded_and_decodes(tmp_path):
    model = model_of("dummy")
    model.save_pretrained(tmp_path)
    again = ILQLModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    tokens = torch.tensor([[0, 3, 5]])
    want = model(input_ids=tokens, beta=2.0).logits
    torch.testing.assert_close(again(input_ids=tokens, beta=2.0).logits, want)
    logp = model(input_ids=tokens).logits.log_softmax(-1)
    h = model.lm.base_model(input_ids=tokens).last_hidden_state
    score = logp + 2.0 * (model.q_values(h) - model.v(h)[..., None])
    torch.testing.assert_close(want, score, rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in again.q_target.parameters())


@pytest.mark.parametrize("options", [{}, {"support_top_k": 4}, {"support_top_p": 0.5}], ids=["all", "top_k", "top_p"])
@pytest.mark.parametrize("rest", RESTS)
def test_the_decoding_loop_reads_values_and_not_logits(rest, options):
    model = model_of(rest)
    prompts = [[0, 5, 6, 7], [0, 9, 3, 4], [0, 4, 11, 8]]
    choice = Choice(temperature=None, beta=40.0, **options)
    got = Generator(model, pad=1, ends=[])(prompts, [6] * 3, choice)
    want = model.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(3, 4, dtype=torch.long),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=1,
        beta=40.0,
        **options,
    )
    assert got == want[:, 4:].tolist()
    assert got != Generator(model, pad=1, ends=[])(prompts, [6] * 3, Choice(temperature=None))


@pytest.mark.parametrize("fields", [{"critic": "likelihood"}, {"likelihood": {"low": 0.0}}])
def test_half_a_description_is_refused(fields):
    with pytest.raises(InputError, match="give both, or neither"):
        tiny(**fields)
