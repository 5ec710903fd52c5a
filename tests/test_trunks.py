"""Critics on a trunk of their own, targets on an average of it, critics that do not move it: which weights move by
which loss, that nothing else changes, and that decoding reads what training taught."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilql import decode, ope
from ilql.algos import ALGOS, cql, ilql, q_sft
from ilql.build import ModelConfig
from ilql.closed import log_chances
from ilql.data import Batch, collate
from ilql.generation import Choice, Generator
from ilql.learner import Learner, Out
from ilql.model import ILQLModel
from ilql.rows import Rows
from ilql.trainer import Run, train
from ilql.types import InputError, Turn
from tests import tiny as runs
from tests.toys import BOS, chat_row, model_fields, tiny

OWN, AVERAGE, DETACHED = {"critic_trunk": "own"}, {"target_trunk": "average"}, {"detach_critics": True}
EVERY = {"own": OWN, "average": AVERAGE, "detached": DETACHED, "own, average": OWN | AVERAGE}
EVERY["average, detached"] = AVERAGE | DETACHED


def batch_of() -> Batch:
    rng = np.random.default_rng(0)
    rows = [chat_row(rng, 23, 3, name=f"d{i}", terminated=i != 2) for i in range(4)]
    return collate(rows, gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)


def moved(model: ILQLModel, names: set[str], cfg: Any = None) -> set[str]:
    """The parts of the model whose weights have a gradient from some of ILQL's losses."""
    cfg = ilql.Config(cql_weight=0.0) if cfg is None else cfg
    losses = Learner(model, ilql, cfg)(batch_of())
    sum(losses[name].sum() for name in names).backward()
    return {
        name.split(".")[0]
        for name, p in model.named_parameters()
        if p.grad is not None and float(p.grad.abs().sum()) > 0
    }


@pytest.mark.parametrize("weight", [0.0, 0.1])
@pytest.mark.parametrize(
    ("options", "values", "cloning"),
    [
        ({}, {"lm", "q", "v"}, {"lm"}),
        (DETACHED, {"q", "v"}, {"lm"}),
        (OWN, {"critic_trunk", "q", "v"}, {"lm"}),
        (AVERAGE, {"lm", "q", "v"}, {"lm"}),
        (OWN | AVERAGE, {"critic_trunk", "q", "v"}, {"lm"}),
        (AVERAGE | DETACHED, {"q", "v"}, {"lm"}),
    ],
)
def test_the_right_weights_move(options, values, cloning, weight):
    cfg = ilql.Config(cql_weight=weight)
    assert moved(tiny(model=options), {"q", "v"} | ({"cql"} if weight else set()), cfg) == values
    assert moved(tiny(model=options), {"bc"}, cfg) == cloning


@pytest.mark.parametrize("algo", [ilql, cql, q_sft], ids=["ilql", "cql", "q_sft"])
@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_at_the_beginning_all_have_the_same_losses(algo, options):
    """Copies say what the trunk says; a wrong one, or one drawn anew, does not."""
    cfg = algo.Config()
    want = Learner(tiny(**model_fields(algo, cfg)), algo, cfg)(batch_of())
    got = Learner(tiny(model=options, **model_fields(algo, cfg)), algo, cfg)(batch_of())
    for name, loss in want.items():
        torch.testing.assert_close(got[name], loss, rtol=1e-10, atol=1e-10)


def shaken(options: dict, seed: int = 1, architecture: str = "gpt2", **config: Any) -> ILQLModel:
    """A model whose trunks differ."""
    model = tiny(architecture, model=options, **config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for trunk in (model.critic_trunk, model.target_trunk):
            for p in [] if trunk is None else trunk.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return model


def alone(trunk: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """h of every dialogue run by itself, as rows of `batch.run`."""
    out = torch.empty(len(batch.run.tokens), 16, dtype=torch.float64)
    begins = np.cumsum([0, *batch.run.segments.lengths])
    assert not any(batch.run.segments.depths)
    for begin, end in pairwise(begins):
        out[begin:end] = trunk(input_ids=batch.run.tokens[None, begin:end], use_cache=False).last_hidden_state[0]
    return out


@pytest.mark.parametrize("algo", [ilql, cql, q_sft], ids=["ilql", "cql", "q_sft"])
def test_each_statistic_reads_its_own_trunk(algo):
    model, batch = shaken(OWN | AVERAGE, **model_fields(algo, algo.Config())), batch_of()
    backup = getattr(algo, "BACKUP", None)
    out = Out(model, model.hidden(*batch.run), batch, backup)
    with torch.no_grad():
        acting, judging, target = (
            alone(t, batch) for t in (model.lm.base_model, model.critic_trunk, model.target_trunk)
        )
        at = batch.where[batch.state]
        follows = batch.discount != 0
        after = batch.where[batch.next[follows]]
        want = {
            "logp": model.get_output_embeddings()(acting[batch.where[batch.target - 1]])
            .log_softmax(-1)
            .gather(1, batch.tokens[batch.target][:, None])[:, 0],
            "q": torch.stack([q(judging[at]).gather(1, batch.action[:, None])[:, 0] for q in model.q]),
            "q_target": torch.stack(
                [q(target[at]).gather(1, batch.action[:, None])[:, 0] for q in model.q_target]
            ).amin(0),
            "v": model.v(judging[at]),
        }
        torch.testing.assert_close(out.v_next[follows], model.v(judging[after]), rtol=1e-9, atol=1e-9)
        if backup == "max":
            best = torch.stack([q(target[after]) for q in model.q_target]).amin(0).amax(1)
            torch.testing.assert_close(out.q_next[follows], best, rtol=1e-9, atol=1e-9)
        if backup == "likelihood":
            how = model.config.likelihood
            pi = model.get_output_embeddings()(acting[after]).softmax(-1)
            p = torch.stack([q(target[after]) for q in model.q_target]).amin(0)
            likely = pi >= how["support"] * pi.amax(1, keepdim=True)
            ratio = torch.where(likely, p / pi, 0.0).amax(1).clamp(max=1.0)
            torch.testing.assert_close(out.q_next[follows], ratio, rtol=1e-9, atol=1e-9)
        for name, value in want.items():
            torch.testing.assert_close(getattr(out, name), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [AVERAGE, OWN | AVERAGE], ids=["shared", "own"])
def test_the_average_follows_the_trunk_that_critics_read(options):
    model = shaken(options)
    trunk = model.lm.base_model if model.critic_trunk is None else model.critic_trunk
    before = [p.clone() for p in model.target_trunk.parameters()]
    model.update_targets(0.25)
    for old, new, online in zip(before, model.target_trunk.parameters(), trunk.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online, rtol=1e-12, atol=1e-12)
    assert not any(p.requires_grad for p in model.target_trunk.parameters())
    model.sync_targets()
    for new, online in zip(model.target_trunk.parameters(), trunk.parameters(), strict=True):
        assert torch.equal(new, online)
    model.train()
    assert not any(m.training for m in model.target_trunk.modules())
    assert all(m.training for m in trunk.modules())


# ---- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_decoding_reads_what_training_taught(options, architecture, tmp_path):
    model = shaken(options, architecture=architecture)
    tokens = torch.tensor([[0, 5, 6, 7, 9]])
    acting = model.lm.base_model(input_ids=tokens).last_hidden_state
    read = acting if model.critic_trunk is None else model.critic_trunk(input_ids=tokens).last_hidden_state
    critics = model.q if "target_trunk" in options else model.q_target
    logp = model.get_output_embeddings()(acting).log_softmax(-1)
    want = logp + 3.0 * (torch.stack([q(read) for q in critics]).amin(0) - model.v(read)[..., None])
    got = model(input_ids=tokens, beta=3.0).logits
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    model.save_pretrained(tmp_path)
    again = ILQLModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(again(input_ids=tokens, beta=3.0).logits, want, rtol=1e-9, atol=1e-9)
    assert again.target_trunk is None or not any(p.requires_grad for p in again.target_trunk.parameters())


@pytest.mark.parametrize("beams", [1, 3])
def test_the_loop_generate_and_a_plain_reference_agree(beams):
    model = shaken(OWN)
    prompts, beta = [[0, 5, 6], [0, 9, 3, 4, 8], [0, 4]], 30.0
    longest = max(map(len, prompts))
    ids = torch.tensor([[1] * (longest - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 1, "eos_token_id": None}
    found = model.generate(ids, attention_mask=real, beta=beta, num_beams=beams, **options)[:, longest:]
    if beams > 1:
        assert found.shape == (3, 6)
        return
    plain = []
    for prompt in prompts:
        said = list(prompt)
        for _ in range(6):
            said.append(int(model(input_ids=torch.tensor([said]), beta=beta).logits[0, -1].argmax()))
        plain.append(said[len(prompt) :])
    assert found.tolist() == plain
    loop = Generator(model, pad=1, ends=[])
    assert loop(prompts, [6] * 3, Choice(beta=beta, temperature=None)) == plain
    ends = Generator(model, pad=1, ends=[plain[0][2]])(prompts, [6, 4, 6], Choice(beta=beta, temperature=None))
    for answer, whole, room in zip(ends, plain, [6, 4, 6], strict=True):
        stop = whole[:room].index(plain[0][2]) + 1 if plain[0][2] in whole[:room] else room
        assert answer == whole[:stop], "rows leave both trunks"
    cached = model(input_ids=torch.tensor([[0, 5, 6]]), use_cache=True).past_key_values
    with pytest.raises(InputError, match="use_cache=False"):
        model(input_ids=torch.tensor([[7]]), past_key_values=cached, beta=1.0)


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_the_chance_of_whole_answers_reads_both_trunks(beta):
    model, prompt, answers = shaken(OWN), [0, 5, 6], [[7, 2], [8, 9, 2]]
    with torch.no_grad():
        (found,) = log_chances(model, [prompt], [answers], Choice(beta=beta))
        for answer, chance in zip(answers, found.tolist(), strict=True):
            logp = model(input_ids=torch.tensor([prompt + answer]), beta=beta).logits[0].log_softmax(-1)
            want = sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))
            assert chance == pytest.approx(want, rel=1e-9)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.dataset(tmp_path_factory.mktemp("trunks") / "data")


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", [OWN | AVERAGE, AVERAGE | DETACHED], ids=["own, average", "average, detached"])
def test_a_run_resumes_to_the_same_bits_and_is_read_like_any_other(data, tmp_path, options, monkeypatch):
    log = {"every": 1, "validate_every": 2, "checkpoint_every": 2}
    whole = train(runs.config(data, tmp_path / "whole", model=options, log=log))
    found = metrics(whole)
    assert ("grad_norm/critic_trunk" in found[0]) == ("critic_trunk" in options)
    step = Run.step

    def stops(self, window):
        if self.progress.step == 3:
            raise KeyboardInterrupt
        return step(self, window)

    cut = runs.config(data, tmp_path / "cut", model=options, log=log)
    monkeypatch.setattr(Run, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    monkeypatch.setattr(Run, "step", step)
    train(cut, resume=True)
    assert metrics(tmp_path / "cut") == found
    model, encoder = decode.load(whole, dtype=torch.float64)
    before, after = (
        [p.clone() for p in m.parameters()] for m in (model.target_trunk, model.critic_trunk or model.lm.base_model)
    )
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), "an average lags behind"
    (turns,) = [[Turn("user", "hi"), Turn("assistant", "yo")]]
    scores = decode.score(model, turns, encoder)
    tokens = torch.tensor([encoder.state(turns[:1])[0]])
    read = (model.critic_trunk or model.lm.base_model)(input_ids=tokens).last_hidden_state[0, -1]
    assert scores[0].v == pytest.approx(model.v(read).item(), rel=1e-5)
    row = Rows(data, "train")[0]
    (value,) = (t.value for t in ope.read_turns(model, encoder.bos_id, [row]))
    tokens = torch.from_numpy(row["tokens"][: row["start"][0]].astype(np.int64))[None]
    read = (model.critic_trunk or model.lm.base_model)(input_ids=tokens).last_hidden_state[0, -1]
    assert value[0] == pytest.approx(model.v(read).item(), rel=1e-5)
    assert isinstance(decode.LMPolicy(model, encoder, beta=2.0, max_new_tokens=4).respond([turns[:1]])[0], str)


def test_trunks_begin_as_the_run_that_is_started_from(data, tmp_path, capsys):
    first = train(runs.config(data, tmp_path / "bc", "bc", steps=2))
    still = {"lr": 1e-30}
    cfg = runs.config(data, tmp_path / "run", steps=1, init_from=str(first), model=OWN | AVERAGE, optim=still)
    model, _ = decode.load(train(cfg), dtype=torch.float64)
    trunk = list(decode.load(first, dtype=torch.float64)[0].lm.base_model.parameters())
    for other in (model.critic_trunk, model.target_trunk):
        for a, b in zip(other.parameters(), trunk, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert "begin as the trunk: critic_trunk, target_trunk; fresh:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (OWN | {"freeze": "trunk"}, "model.freeze and model.critic_trunk own exclude each other"),
        (AVERAGE | {"freeze": 1}, "model.freeze and model.target_trunk average exclude each other"),
        (OWN | DETACHED, "model.detach_critics takes the gradient from a trunk"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        ModelConfig(**options)


@pytest.mark.parametrize("name", [name for name, algo in ALGOS.items() if algo.CRITIC is None])
@pytest.mark.parametrize("options", [OWN, AVERAGE, DETACHED], ids=["own", "average", "detached"])
def test_algorithms_without_critics_have_no_use_for_them(name, options):
    with pytest.raises(InputError, match="are about critics"):
        tiny(model=options, critic=None, algo=name)
