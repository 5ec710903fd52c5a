"""The prior: the actor as training began with it. What is read of it, that it stays as it was, and where it comes
from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from ilql import checkpoint, decode, learner
from ilql.algos import bc
from ilql.annotate import cache
from ilql.data import Batch, collate
from ilql.export import export
from ilql.learner import Out
from ilql.model import ILQLModel
from ilql.trainer import Run, train
from ilql.types import InputError
from tests import tiny as runs
from tests.test_trainer import rows, same, stop_at
from tests.toys import BOS, chat_row, tiny

UNTIED = {"extra": {"tie_word_embeddings": False}}


def shaken(architecture: str = "gpt2", **options: Any) -> ILQLModel:
    """An actor that has gone from its prior."""
    model = tiny(architecture, prior=True, **options)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.lm.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def batch_of(history: int | None = None) -> Batch:
    rng = np.random.default_rng(0)
    made = [chat_row(rng, 23, 3, name=f"d{i}", terminated=i != 2) for i in range(3)]
    made.append(made[0])  # says what another says
    return collate(made, gamma=0.9, bos=BOS, acted=False, history=history).to("cpu", torch.float64)


def plain(model: ILQLModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p of the action tokens, and the divergence, from whole tables of pieces that run by themselves."""
    logp, kl = [], []
    begins = [i for i, p in enumerate(batch.position.tolist()) if p == 0] + [len(batch.tokens)]
    for t in batch.target.tolist():
        begin = max(b for b in begins if b <= t)
        ids = batch.tokens[None, begin:t]
        own, prior = (lm(input_ids=ids).logits[0, -1].log_softmax(-1) for lm in (model.lm, model.prior))
        logp.append(prior[batch.tokens[t]])
        kl.append((own.exp() * (own - prior)).sum())
    return torch.stack(logp), torch.stack(kl)


@pytest.mark.parametrize("history", [None, 1], ids=["full", "windows"])
@pytest.mark.parametrize("options", [{}, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_what_a_loss_reads_equals_whole_tables(architecture, options, history):
    model, batch = shaken(architecture, model=options), batch_of(history)
    out = Out(model, model.hidden(*batch.run), batch)
    logp, kl = plain(model, batch)
    tolerance = 1e-9 if architecture == "gpt2" else 1e-5  # Llama's norms compute in float32 whatever the weights are
    torch.testing.assert_close(out.prior_logp, logp, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(out.kl, kl, rtol=tolerance, atol=tolerance)
    assert not out.prior_logp.requires_grad
    assert kl.detach().min() > 1e-3, "an actor that has not moved would show nothing"
    weight = torch.randn(batch.m, dtype=torch.float64)
    names = [name for name, p in model.lm.named_parameters()]
    ours = torch.autograd.grad((out.kl * weight).sum(), list(model.lm.parameters()))
    theirs = torch.autograd.grad((kl * weight).sum(), list(model.lm.parameters()))
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    assert all(p.grad is None and not p.requires_grad for p in model.prior.parameters())


def test_equal_states_are_compared_once(monkeypatch):
    model, batch = shaken(), batch_of()
    seen: list[int] = []
    real = learner.divergence
    monkeypatch.setattr(learner, "divergence", lambda z, *rest: seen.append(len(z)) or real(z, *rest))
    out = Out(model, model.hidden(*batch.run), batch)
    assert out.kl.shape == (batch.m,)
    assert sum(seen) == len(torch.unique(batch.where[batch.target - 1])) < batch.m


def test_without_a_prior_a_loss_that_reads_it_says_so():
    model, batch = tiny(), batch_of()
    out = Out(model, model.hidden(*batch.run), batch)
    for name in ("kl", "prior_logp"):
        with pytest.raises(RuntimeError, match="PRIOR = True"):
            getattr(out, name)


@pytest.mark.parametrize("options", [{}, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_it_is_saved_once_and_comes_back_frozen(architecture, options, tmp_path):
    model = shaken(architecture, model=options)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = [name for name in file.keys() if name.startswith("prior.")]  # noqa: SIM118 - no mapping
    own = [f"prior.{name}" for name, _ in model.prior.named_parameters()]
    assert len(saved) == len(own)
    again = ILQLModel.from_pretrained(tmp_path, dtype=torch.float64)
    ids = torch.tensor([[0, 5, 6, 7]])
    for mine, theirs in ((model.lm, again.lm), (model.prior, again.prior)):
        assert torch.equal(mine(input_ids=ids).logits, theirs.eval()(input_ids=ids).logits)
    assert not torch.equal(again.lm(input_ids=ids).logits, again.prior(input_ids=ids).logits)
    tied = again.prior.get_output_embeddings().weight is again.prior.get_input_embeddings().weight
    assert tied == (not options)
    assert not any(p.requires_grad for p in again.prior.parameters())


def test_what_thaws_everything_is_undone_and_it_never_drops():
    model = tiny(prior=True, model={"dropout": 0.5})
    model.requires_grad_(True)  # as adapters do, and loading
    model.freeze_targets()
    assert not any(p.requires_grad for p in model.prior.parameters())
    assert all(p.requires_grad for p in model.lm.parameters())
    model.train()
    assert model.lm.training
    assert not any(m.training for m in model.prior.modules())


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.dataset(tmp_path_factory.mktemp("prior") / "data")


@pytest.fixture
def stays_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour cloning that stays near its prior."""
    monkeypatch.setattr(bc, "PRIOR", True, raising=False)
    monkeypatch.setattr(bc, "PER_TOKEN", frozenset({"bc", "kl", "sampled"}))
    monkeypatch.setattr(
        bc, "loss", lambda out, batch, cfg: {"bc": -out.logp, "kl": out.kl, "sampled": out.logp - out.prior_logp}
    )


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(runs.config(data, tmp_path_factory.mktemp("first") / "bc", "bc", steps=2, model={"dropout": 0.1}))


def actor_of(run: Path, part: str = "lm") -> dict[str, Tensor]:
    model, _ = decode.load(run, dtype=torch.float64)
    return dict(getattr(model, part).named_parameters())


def test_training_from_scratch_has_none(data, tmp_path, stays_near):
    with pytest.raises(InputError, match="set init_from to a run"):
        runs.config(data, tmp_path / "run", "bc")


def test_it_is_the_actor_that_training_begins_with(data, first, tmp_path, stays_near, capsys):
    options: dict[str, Any] = {"model": {"dropout": 0.1}, "init_from": str(first), "optim": {"lr": 0.03}}
    second = train(runs.config(data, tmp_path / "second", "bc", **options))
    assert "this actor stays as the prior" in capsys.readouterr().err
    begun, prior, now = actor_of(first), actor_of(second, "prior"), actor_of(second)
    for name, tensor in begun.items():
        assert torch.equal(prior[name], tensor)
    assert any(not torch.equal(now[name], tensor) for name, tensor in begun.items())
    found = rows(second)
    assert found[0]["kl"] < 1e-3 < found[-1]["kl"]
    third = train(runs.config(data, tmp_path / "third", "bc", **options | {"init_from": str(second)}))
    for name, tensor in now.items():
        assert torch.equal(actor_of(third, "prior")[name], tensor), "a run's prior is its own beginning's actor"


def test_a_stopped_run_goes_on_to_the_bit(data, first, tmp_path, stays_near, monkeypatch):
    log = {"every": 1, "checkpoint_every": 2, "validate_every": 2}
    options: dict[str, Any] = {"model": {"dropout": 0.1}, "init_from": str(first), "log": log}
    whole = train(runs.config(data, tmp_path / "whole", "bc", **options))
    real, cut = Run.step, runs.config(data, tmp_path / "cut", "bc", **options)
    stop_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    monkeypatch.setattr(Run, "step", real)
    same(whole, train(cut, resume=True))
    kept, _ = checkpoint.latest(whole / "checkpoints")
    tensors, _ = checkpoint.load(kept)
    begun = checkpoint.model_tensors(decode.load(first, dtype=torch.float64)[0])
    prior = {name: t for name, t in tensors["model"].items() if name.startswith("prior.")}
    assert len(prior) == sum(name.startswith("lm.") for name in begun)
    for name, tensor in prior.items():
        assert torch.equal(tensor, begun[name.replace("prior", "lm", 1)])
    assert not any("prior" in name for name in tensors["optimizer"])


def test_it_is_not_exported(data, first, tmp_path, stays_near):
    run = train(runs.config(data, tmp_path / "run", "bc", init_from=str(first), model={"dropout": 0.1}))
    with safe_open(export(run, tmp_path / "out") / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "prior" in name]  # noqa: SIM118 - no mapping


@pytest.fixture(scope="module")
def untied(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(runs.config(data, tmp_path_factory.mktemp("untied") / "bc", "bc", steps=2, model=UNTIED))


@pytest.mark.parametrize("freeze", [1, "trunk"])
def test_stored_states_of_a_frozen_trunk_serve_both(data, untied, tmp_path, stays_near, freeze):
    cache(untied, data, tmp_path / "cache", layers=0 if freeze == "trunk" else 1, dtype="float64")
    options: dict[str, Any] = {"init_from": str(untied), "model": UNTIED | {"freeze": freeze}, "optim": {"lr": 0.03}}
    every = {"dialogues": 24}  # in one batch
    computed = train(runs.config(data, tmp_path / "computed", "bc", **options, batch=every))
    told: Any = {"path": str(data), "cache": str(tmp_path / "cache")}
    batch = {"dialogues": None, "decisions": 1000} if freeze == "trunk" else every
    stored = train(runs.config(told, tmp_path / "stored", "bc", **options, batch=batch))
    for name in ("kl", "sampled"):
        a, b = ([row[name] for row in rows(run)] for run in (computed, stored))
        assert b == pytest.approx(a, rel=1e-9, abs=1e-12)
        assert abs(a[-1]) > 1e-3
