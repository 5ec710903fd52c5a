"""KL-control: losses worked by hand, optima that are known, what it needs, and decoding among the prior's words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilql import decode
from ilql.algos import kl_control
from ilql.closed import log_chances
from ilql.copies import averaged_hidden
from ilql.data import collate
from ilql.generation import Choice, Generator
from ilql.learner import Learner, Out
from ilql.model import ILQLModel
from ilql.trainer import Run, train
from ilql.types import InputError, Turn
from tests import tiny as runs
from tests.test_trainer import assert_close, launch, refused, same, stop_at
from tests.toys import BOS, chat_row, row, stats, table_model, tiny

FIELDS: dict[str, Any] = {"critic": None, "prior": True, "target_actor": True, "algo": "kl_control"}


def hand(**options: Any) -> list[float]:
    """Two utterances of two words, the second of which ends the dialogue, and a word without a decision."""
    out = stats(logit=[1, 2, 3, 0.5, 9], prior_logp=[-1, -2, -1, -0.5, -9], logp=[-2, -1, -3, -0.25, -9])
    out.actor_next = lambda backup, passes, least: torch.tensor([4.0, 2.0, 1.0, 99.0], dtype=torch.float64)
    batch = stats(reward=[0, 1, 0, 2], discount=[0.5, 0.5, 0.5, 0])
    batch.n, batch.utterance = 4, torch.tensor([0, 0, 1, 1])
    return kl_control.loss(out, batch, kl_control.Config(c=0.5, **options))["q"].tolist()


def l1(*errors: float) -> Any:
    return pytest.approx([u * u / 2 if abs(u) < 1 else abs(u) - 0.5 for u in errors])


def test_losses_are_those_worked_by_hand():
    # lse: y = r / c + log p + gamma next = 0-1+2, 2-2+1, 0-1+.5 and, terminal, 4-.5
    assert hand() == l1(1 - 1, 2 - 1, 3 + 0.5, 0.5 - 3.5)
    # max: y = r - c (log pi - log p) + gamma next = 0+.5+2, 1-.5+1, 0+1+.5 and 2-.125
    assert hand(backup="max") == l1(1 - 2.5, 2 - 1.5, 3 - 1.5, 0.5 - 1.875)
    # the published code's: the reward at every word, and no next state in the last utterance
    assert hand(reward_at="every") == l1(1 - 3, 2 - 1, 3 - 3.5 - 0.0, 0.5 - 3.5)
    assert hand(ends="utterance") == l1(1 - 1, 2 - 1, 3 + 1, 0.5 - 3.5)


def test_only_the_logged_words_logit_is_moved():
    rng = np.random.default_rng(0)
    batch = collate([chat_row(rng, 23, 2)], gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    model = tiny(**FIELDS, seed=3)
    for backup in ("max", "lse"):
        out = Out(model, model.hidden(*batch.run), batch)
        kl_control.loss(out, batch, kl_control.Config(backup=backup))["q"].sum().backward()
    assert out.logit.requires_grad
    assert not out.prior_logp.requires_grad
    assert not out.actor_next("lse").requires_grad
    for part in (model.prior, model.target_actor):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())


def test_logits_and_next_values_are_those_of_whole_tables():
    rng = np.random.default_rng(0)
    rows = [chat_row(rng, 23, 3, name=f"d{i}", terminated=i != 1) for i in range(3)]
    batch = collate(rows, gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    model = tiny(**FIELDS)
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.target_actor.parameters():
            p.add_(0.1 * torch.randn_like(p))
    out = Out(model, model.hidden(*batch.run), batch)
    at = batch.where[batch.target - 1]
    table = model.get_output_embeddings()(model.hidden(*batch.run))[at]
    torch.testing.assert_close(out.logit, table.gather(1, batch.tokens[batch.target][:, None])[:, 0])
    average = model.target_actor.get_output_embeddings()(model.hidden(*batch.run, trunk=model.target_actor))
    follows = batch.discount != 0
    after = average[batch.where[batch.next[follows]]]
    for backup, want in (("max", after.amax(1)), ("lse", after.logsumexp(1))):
        torch.testing.assert_close(out.actor_next(backup)[follows], want, rtol=1e-9, atol=1e-9)
        assert (out.actor_next(backup)[~follows] == 0).all()


@pytest.mark.parametrize("backup", ["max", "lse"])
def test_the_least_over_passes_of_dropout_is_believed(backup):
    rng = np.random.default_rng(0)
    batch = collate([chat_row(rng, 23, 3)], gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    model = tiny(**FIELDS, model={"dropout": 0.3}).train()
    hidden = model.eval().hidden(*batch.run)
    model.train()
    torch.manual_seed(7)
    each = averaged_hidden(model, hidden, batch.run, passes=3)
    tables = torch.stack([model.target_actor.get_output_embeddings()(h) for h in each])
    assert not torch.equal(tables[0], tables[1])
    follows = batch.discount != 0
    tables = tables[:, batch.where[batch.next[follows]]]
    together = {"max": lambda q: q.amax(-1), "lse": lambda q: q.logsumexp(-1)}[backup]
    wants = {"action": together(tables.amin(0)), "value": together(tables).amin(0)}
    assert (wants["action"] < wants["value"]).any()
    for least, want in wants.items():
        torch.manual_seed(7)
        got = Out(model, hidden, batch).actor_next(backup, 3, least)[follows]
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert not any(m.training for m in model.target_actor.modules())
    before = torch.get_rng_state()
    assert len(averaged_hidden(model.eval(), hidden, batch.run, passes=3)) == 1
    assert torch.equal(before, torch.get_rng_state())


def test_the_average_follows_the_actor():
    model = tiny(**FIELDS)
    with torch.no_grad():
        for p in model.lm.parameters():
            p.add_(1.0)
    before = [p.clone() for p in model.target_actor.parameters()]
    model.update_targets(0.25)
    for old, new, online in zip(before, model.target_actor.parameters(), model.lm.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online, rtol=1e-12, atol=1e-12)


# ---- known optima ----------------------------------------------------------------------------------------------------

HEAD, FIRST, SECOND = 1, (2, 3, 4), (5, 6)
REWARD = np.array([[1.0, -0.5], [0.3, 0.2], [-1.0, 2.0]])  # of the two words of an utterance


def solved(cfg: kl_control.Config, reward: np.ndarray = REWARD) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log pi of both words by a table that is trained on all six utterances, and the prior's log p (states, words)."""
    torch.manual_seed(0)
    model = table_model(7, prior=True, target_actor=True)
    with torch.no_grad():
        weight = torch.full((7, 7), -40.0, dtype=torch.float64)
        weight[FIRST, HEAD] = torch.tensor([0.5, 1.5, 0.0], dtype=torch.float64)
        for word in FIRST:
            weight[SECOND, word] = torch.randn(2, dtype=torch.float64)
        model.lm.out.weight.copy_(weight)
    model.begin_actors()
    rows = [
        row([BOS, HEAD, a, b], [2, 3], [3, 4], [0.0, reward[i, j]], name=f"{a}{b}")
        for i, a in enumerate(FIRST)
        for j, b in enumerate(SECOND)
    ]
    batch = collate(rows, gamma=cfg.gamma, bos=BOS, acted=False).to("cpu", torch.float64)
    learner = Learner(model, kl_control, cfg)
    weights = model.lm.out.weight
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 1500)
        optimizer.zero_grad()
        learner(batch)["q"].mean().backward()
        optimizer.step()
        model.update_targets(0.2)
    q, p = weights.detach().numpy().T, model.prior.out.weight.numpy().T
    return q, q - np.logaddexp.reduce(q, 1, keepdims=True), p - np.logaddexp.reduce(p, 1, keepdims=True)


@pytest.mark.slow
def test_psi_learning_finds_the_best_policy_near_the_prior():
    """pi* = p exp(Psi*) / Z, by dynamic programming backwards; without discount it is p exp(r / c) over utterances."""
    q, pi, p = solved(kl_control.Config(gamma=1.0, c=0.5))
    second = np.array([REWARD[i] / 0.5 + p[a, SECOND] for i, a in enumerate(FIRST)])
    np.testing.assert_allclose(q[np.ix_(FIRST, SECOND)], second, atol=1e-3)
    psi = p[HEAD, FIRST] + np.logaddexp.reduce(second, 1)
    np.testing.assert_allclose(q[HEAD, FIRST], psi, atol=1e-3)
    said = np.exp(pi[HEAD, FIRST])[:, None] * np.exp(pi[np.ix_(FIRST, SECOND)])
    best = np.exp(p[HEAD, FIRST])[:, None] * np.exp(p[np.ix_(FIRST, SECOND)]) * np.exp(REWARD / 0.5)
    np.testing.assert_allclose(said, best / best.sum(), atol=1e-3)
    prior = np.exp(p[HEAD, FIRST])[:, None] * np.exp(p[np.ix_(FIRST, SECOND)])
    assert (said * REWARD).sum() > (prior * REWARD).sum() + 0.5


@pytest.mark.slow
def test_with_the_maximum_words_are_said_by_their_reward_and_the_prior():
    """Q = r - c (log pi - log p) with pi = softmax(Q) is pi = r / (1 + c) + log p c / (1 + c) but for a constant."""
    c = 0.5
    q, pi, p = solved(kl_control.Config(gamma=0.9, c=c, backup="max"))
    for i, word in enumerate(FIRST):
        want = (REWARD[i] + c * p[word, SECOND]) / (1 + c)
        np.testing.assert_allclose(pi[word, SECOND], want - np.logaddexp.reduce(want), atol=1e-3)
    first = 0.9 * q[np.ix_(FIRST, SECOND)].max(1)
    want = (first + c * p[HEAD, FIRST]) / (1 + c)
    np.testing.assert_allclose(pi[HEAD, FIRST], want - np.logaddexp.reduce(want), atol=1e-3)


@pytest.mark.slow
def test_without_rewards_psi_learning_stays_at_the_prior():
    _, pi, p = solved(kl_control.Config(gamma=1.0, c=0.5), np.zeros((3, 2)))
    np.testing.assert_allclose(pi[HEAD, FIRST], p[HEAD, FIRST], atol=1e-3)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.dataset(tmp_path_factory.mktemp("kl") / "data")


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(runs.config(data, tmp_path_factory.mktemp("first") / "bc", "bc", steps=2, model={"dropout": 0.1}))


def config(data: Path, output: Path, first: Path, **options: Any) -> Any:
    options = {"init_from": str(first), "model": {"dropout": 0.1}, **options}
    return runs.config(data, output, "kl_control", **options)


def test_what_it_needs_is_named(data, first, tmp_path):
    with pytest.raises(InputError, match=r"kl_control stays near a prior.*set init_from to a run"):
        runs.config(data, tmp_path / "run", "kl_control")
    for options, says in (
        ({"passes": 0}, r"kl_control\.passes is 0, but must be at least 1"),
        ({"c": 0.0}, r"kl_control\.c is 0\.0, but must be above 0"),
        ({"prior_words": 0}, r"kl_control\.prior_words is 0"),
    ):
        with pytest.raises(InputError, match=says):
            config(data, tmp_path / "run", first, kl_control=options)
    still = config(data, tmp_path / "run", first, model={"dropout": 0.0}, kl_control={"passes": 2})
    refused(still, r"kl_control\.passes is 2, but without dropout all passes are alike: set model\.dropout")
    told = {"path": str(data), "cache": str(tmp_path)}
    frozen = {"freeze": "trunk", "dropout": 0.1}
    with pytest.raises(InputError, match="kl_control reads whole dialogues here"):
        config(told, tmp_path / "run", first, model=frozen, kl_control={"ends": "utterance"})


def test_a_stopped_run_goes_on_to_the_bit(data, first, tmp_path, monkeypatch):
    log = {"every": 1, "checkpoint_every": 2, "validate_every": 2}
    options: dict[str, Any] = {"log": log, "kl_control": {"passes": 2, "polyak": 0.1}}
    whole = train(config(data, tmp_path / "whole", first, **options))
    real, cut = Run.step, config(data, tmp_path / "cut", first, **options)
    stop_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    monkeypatch.setattr(Run, "step", real)
    same(whole, train(cut, resume=True))
    model, _ = decode.load(whole, dtype=torch.float64)
    for other, says in ((model.lm, "an average lags behind"), (model.prior, "and moves")):
        both = zip(model.target_actor.parameters(), other.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in both), says


def test_two_processes_equal_one(data, first, tmp_path):
    log = {"every": 1, "validate_every": 0, "checkpoint_every": 2}
    options: dict[str, Any] = {"log": log, "steps": 2, "model": {"dropout": 0.0}}
    one = train(config(data, tmp_path / "one", first, batch={"dialogues": 4, "accumulate": 2}, **options))
    cfg = config(data, tmp_path / "two", first, batch={"dialogues": 4}, **options)
    done = launch(cfg, tmp_path, "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert done.returncode == 0, done.stderr
    assert_close(one, tmp_path / "two")


# ---- decoding --------------------------------------------------------------------------------------------------------


def bounded(architecture: str = "gpt2", words: int | None = 3) -> ILQLModel:
    """An actor that has gone far from its prior, which bounds its words."""
    model = tiny(architecture, **FIELDS, prior_words=words)
    torch.manual_seed(4)
    with torch.no_grad():
        for p in model.lm.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_best_of_the_priors_words_is_said(architecture, tmp_path):
    model, prompts = bounded(architecture), [[0, 5, 6], [0, 9, 3, 4, 8], [0, 4]]
    plain = []
    for prompt in prompts:
        said = list(prompt)
        for _ in range(6):
            ids = torch.tensor([said])
            q, p = model.lm(input_ids=ids).logits[0, -1], model.prior(input_ids=ids).logits[0, -1]
            among = p.topk(3).indices
            said.append(int(among[q[among].argmax()]))
        plain.append(said[len(prompt) :])
    loop = Generator(model, pad=1, ends=[])
    assert loop(prompts, [6] * 3, Choice(temperature=None)) == plain
    assert Generator(bounded(architecture, None), pad=1, ends=[])(prompts, [6] * 3, Choice(temperature=None)) != plain
    longest = max(map(len, prompts))
    ids = torch.tensor([[1] * (longest - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 1, "eos_token_id": None}
    assert model.generate(ids, attention_mask=real, **options)[:, longest:].tolist() == plain
    model.save_pretrained(tmp_path)
    again = ILQLModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert again.generate(ids, attention_mask=real, **options)[:, longest:].tolist() == plain
    ends = Generator(model, pad=1, ends=[plain[0][2]])(prompts, [6, 4, 6], Choice(temperature=None))
    for answer, whole, room in zip(ends, plain, [6, 4, 6], strict=True):
        stop = whole[:room].index(plain[0][2]) + 1 if plain[0][2] in whole[:room] else room
        assert answer == whole[:stop], "rows leave the prior's cache too"
    cached = model(input_ids=torch.tensor([[0, 5, 6]]), use_cache=True).past_key_values
    with pytest.raises(InputError, match="use_cache=False"):
        model(input_ids=torch.tensor([[7]]), past_key_values=cached)


def test_chances_of_whole_answers_are_bounded_too():
    model, prompt, answers = bounded(words=8), [0, 5, 6], [[7, 2], [8, 9, 2], [4, 4]]
    with torch.no_grad():
        (found,) = log_chances(model, [prompt], [answers], Choice())
        for answer, chance in zip(answers, found.tolist(), strict=True):
            logp = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            want = sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))
            assert chance == pytest.approx(want, rel=1e-9)
    assert any(math.isinf(x) for x in found.tolist())
    assert any(math.isfinite(x) for x in found.tolist())


def test_a_run_that_names_it_decodes_so(data, first, tmp_path):
    run = train(config(data, tmp_path / "run", first, kl_control={"prior_words": 2}))
    model, encoder = decode.load(run)
    assert model.config.prior_words == 2
    policy = decode.LMPolicy(model, encoder, max_new_tokens=4)
    assert isinstance(policy.respond([[Turn("user", "hi")]])[0], str)
