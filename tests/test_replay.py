"""Batches from a cache are those that the trunk would give: every statistic of every decision, in any order."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ilql import cached, columns, replay
from ilql.algos import ilql, mc
from ilql.build import ModelConfig, build
from ilql.cached import open_cache
from ilql.data import Batch, collate
from ilql.data import returns as returns_of
from ilql.learner import Learner, Out
from ilql.losses import expectile, nll, td, td_target
from ilql.model import ILQLModel
from ilql.replay import Decisions
from ilql.rows import Mix, Rows, returns_to_go
from ilql.states import FORM
from ilql.types import InputError
from tests.tiny import dataset

BOS, VOCABULARY = 0, 263
COLUMNS = ("reward", "discount", "ret", "floor", "first", "behaviour", "action", "owner")
# A loss that reads whatever a scalar critic of utterances may: Q at an action's last token, V before and after.
SCALAR = SimpleNamespace(
    PER_TOKEN=frozenset({"bc"}),
    loss=lambda out, batch, cfg: {
        "q": td(out.q, td_target(batch.reward, batch.discount, out.v_next)),
        "v": expectile(out.v, out.q_target, 0.8),
        "bc": nll(out.logp),
    },
)


@pytest.fixture(scope="module", params=["token", "utterance"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp(request.param) / "data", 30, step=request.param)


def model_of(critic: str, dtype: str = "float64") -> ILQLModel:
    """With targets that differ from the critics and an output embedding that is trained."""
    torch.manual_seed(3)
    cfg = ModelConfig(
        layers=2, width=32, heads=2, context=64, dtype=dtype, freeze="trunk", extra={"tie_word_embeddings": False}
    )
    model = build(cfg, vocab_size=VOCABULARY, bos_id=BOS, pad_id=1, end_ids=[2], critic=critic)
    with torch.no_grad():
        for p in [*model.q_target.parameters(), *model.q.parameters()]:
            p.add_(0.3 * torch.randn_like(p))
    return model


def stored(model: ILQLModel, data: Path, folder: Path, history: int | None, dtype: str = "float64") -> cached.Cache:
    if not folder.exists():
        counts = cached.measure(FORM, data, BOS, history, 90)
        cached.write(FORM, model, data, folder, counts, name="x", bos=BOS, history=history, dtype=dtype, budget=90)
    return open_cache(folder, data, history, "x")


def pool_of(caches: list[cached.Cache], mix: Mix, chosen: Any = None, **options: Any) -> Decisions:
    settings: dict[str, Any] = {"gamma": 0.9, "reward_scale": 0.5, "bootstraps": True, "acted": False}
    return Decisions(caches, "train", mix, chosen, **settings | options)


def statistics(model: ILQLModel, batch: Batch, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """All that a loss may read of a batch, decisions (N) or action tokens (M) last."""
    batch = batch.to("cpu", dtype)
    hidden = model.hidden(*batch.run) if batch.hidden is None else batch.hidden
    out = Out(model, hidden, batch, "max")
    names = ["logp", "q", "q_target", "v", "v_next"]
    if model.config.critic == "vocabulary":
        names += ["q_lse", "q_next"]
    found = {name: getattr(out, name).detach() for name in names}
    return found | {name: getattr(batch, name) for name in COLUMNS} | {"token": batch.tokens[batch.target]}


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        options = {"rtol": rtol, "atol": rtol, "equal_nan": name == "behaviour"}
        torch.testing.assert_close(mine[name], value, msg=lambda m, n=name: f"{n}: {m}", **options)


@pytest.mark.parametrize("bootstraps", [True, False])
@pytest.mark.parametrize("critic", ["vocabulary", "scalar"])
@pytest.mark.parametrize("history", [None, 0, 1, 3])
def test_a_batch_of_all_equals_the_collated_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: int | None, critic: str, bootstraps: bool
) -> None:
    """Truncated dialogues with and without an observation after them are among these."""
    monkeypatch.setattr(columns, "HOLD", 3000)  # many record batches
    model, rows = model_of(critic), Rows(data)
    options: dict[str, Any] = {"gamma": 0.9, "reward_scale": 0.5, "bootstraps": bootstraps, "acted": critic == "scalar"}
    plain = collate(list(rows), bos=BOS, history=history, **options)
    pool = pool_of([stored(model, data, tmp_path / "cache", history)], Mix([rows]), **options)
    assert len(pool.parts[0].hidden.chunks) > 5
    batch = pool.__getitems__(list(range(len(pool))))
    assert (batch.n, batch.m) == (plain.n, plain.m)
    assert (batch.n < len(pool)) == bootstraps
    assert_same(statistics(model, batch), statistics(model, plain))
    assert list(batch.ids) == plain.ids
    assert batch.size == plain.m


@pytest.mark.parametrize("history", [None, 1])
def test_the_order_does_not_matter(data: Path, tmp_path: Path, history: int | None) -> None:
    model, rows = model_of("vocabulary"), Rows(data)
    pool = pool_of([stored(model, data, tmp_path / "cache", history)], Mix([rows]), bootstraps=False)
    whole = statistics(model, pool.__getitems__(range(len(pool))))
    order = np.random.default_rng(0).permutation(len(pool))[: len(pool) // 2]
    part = statistics(model, pool.__getitems__(order.tolist()))
    spread = torch.cat([torch.nonzero(whole["owner"] == i)[:, 0] for i in order])  # the action tokens of each
    for name, value in part.items():
        if name == "owner":
            continue
        index = spread if name in ("logp", "token") else torch.from_numpy(order)
        torch.testing.assert_close(
            value, whole[name].index_select(-1, index), rtol=1e-9, atol=1e-9, equal_nan=name == "behaviour"
        )
    counts = torch.bincount(whole["owner"])[order]
    assert torch.equal(part["owner"], torch.repeat_interleave(torch.arange(len(order)), counts))


def test_several_caches_and_chosen_dialogues(data: Path, tmp_path: Path) -> None:
    """A stored type of its own for each; decisions of the dialogues that an algorithm chose, and no others."""
    other = dataset(tmp_path / "other", 12, step=Rows(data).manifest["step"], seed=7)
    model = model_of("scalar")
    mix = Mix([Rows(data), Rows(other)])
    caches = [
        stored(model, data, tmp_path / "a", None),
        stored(model, other, tmp_path / "b", None, "float32"),
    ]
    chosen = np.flatnonzero(np.random.default_rng(0).random(len(mix)) < 0.5)
    pool = pool_of(caches, mix, chosen, acted=True)
    plain = collate([mix[int(i)] for i in chosen], gamma=0.9, bos=BOS, reward_scale=0.5, acted=True)
    wanted = statistics(model, plain)
    assert_same(statistics(model, pool.__getitems__(range(len(pool)))), wanted, 1e-5)
    order = np.random.default_rng(1).permutation(len(pool))
    found = statistics(model, pool.__getitems__(order))
    for name in ("reward", "ret", "v", "q"):
        torch.testing.assert_close(found[name].sort()[0], wanted[name].sort()[0], rtol=1e-5, atol=1e-5)
    weights = pool.weights([2.0, 0.5])
    assert len(weights) == len(pool)
    assert (weights == 2.0).sum() == sum(len(mix[int(i)]["start"]) for i in chosen if i < 30)


def test_twenty_steps_of_a_scalar_critic_are_the_same(data: Path, tmp_path: Path) -> None:
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-5)):
        model = model_of("scalar", dtype)
        pool = pool_of([stored(model, data, tmp_path / dtype, None, dtype)], Mix([Rows(data)]), acted=True)
        plain = collate(list(Rows(data)), gamma=0.9, bos=BOS, reward_scale=0.5, acted=True)
        trained = []
        for batch in (plain, pool.__getitems__(np.random.default_rng(0).permutation(len(pool)))):
            mine = copy.deepcopy(model)
            learner = Learner(mine, SCALAR, None)  # type: ignore[arg-type]
            weights = [p for p in mine.parameters() if p.requires_grad]
            for _ in range(20):
                losses = learner(batch.to("cpu", getattr(torch, dtype)))
                total = torch.stack([x.mean() for x in losses.values()]).sum()
                for p, g in zip(weights, torch.autograd.grad(total, weights), strict=True):
                    p.data.sub_(0.002 * g)
                mine.update_targets(0.1)
            trained.append(dict(mine.named_parameters()))
        moved = 0
        for name, p in trained[0].items():
            torch.testing.assert_close(trained[1][name], p, rtol=tolerance, atol=tolerance)
            moved += not torch.equal(p, model.get_parameter(name))
        assert moved == 4 * 5 + 1, "two critics, two targets, V; and the output embedding"


def test_bf16_is_the_state_rounded(data: Path, tmp_path: Path) -> None:
    model = model_of("vocabulary", "float32")
    pool = pool_of([stored(model, data, tmp_path / "cache", None, "bfloat16")], Mix([Rows(data)]))
    plain = collate([Rows(data)[3]], gamma=0.9, bos=BOS, bootstraps=False)
    mine = np.flatnonzero(pool.parts[0].decisions["dialogue"].all() == 3)
    batch = pool.__getitems__(mine)
    assert batch.hidden is not None
    assert batch.hidden.dtype == torch.bfloat16
    exact = model.hidden(*plain.run)[plain.where[plain.state]]
    torch.testing.assert_close(batch.hidden[batch.where[batch.state]].float(), exact, rtol=2**-8, atol=1e-6)
    got, want = (statistics(model, b, torch.float32)["q"] for b in (batch, plain))
    torch.testing.assert_close(got[:, : plain.n], want, rtol=0.05, atol=0.05)


@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=7), max_size=6), st.floats(0, 1))
def test_returns_of_many_dialogues_have_the_same_bits(rewards: list[list[float]], gamma: float) -> None:
    one_by_one = [returns_of(np.array(r), gamma) for r in rewards]
    dialogue = np.repeat(np.arange(len(rewards)), [len(r) for r in rewards])
    together = returns_to_go(np.array([x for r in rewards for x in r]), dialogue, gamma)
    assert np.array_equal(together, np.concatenate([np.zeros(0), *one_by_one]))


def test_columns_that_do_not_fit_are_refused(data: Path, tmp_path: Path) -> None:
    cache = stored(model_of("vocabulary"), data, tmp_path / "cache", None)
    part = pool_of([cache], Mix([Rows(data)])).parts[0]
    replay.check_rows(part, "here", "mend")
    for table, name, value in (("tokens", "read", 10**6), ("decisions", "last", -1), ("decisions", "size", 9)):
        broken = {k: copy.copy(column) for k, column in getattr(part, table).items()}
        values = broken[name].all().copy()
        values[2] = value
        broken[name] = columns.Column([values], ("int64", 1))
        with pytest.raises(InputError, match="here: the columns do not fit each other; mend"):
            replay.check_rows(part._replace(**{table: broken}), "here", "mend")


def test_algorithms_read_only_what_is_stored(data: Path, tmp_path: Path) -> None:
    """Losses and gradients of the heads; the trunk does not run."""
    model = model_of("vocabulary")
    pool = pool_of([stored(model, data, tmp_path / "cache", None)], Mix([Rows(data)]))
    batch = pool.__getitems__(range(10)).to("cpu", torch.float64)
    model.lm.base_model.register_forward_hook(lambda *a: pytest.fail("the trunk ran"))
    for algo in (ilql, mc):
        losses = Learner(model, algo, algo.Config())(batch)
        torch.stack([x.sum() for x in losses.values()]).sum().backward()
    assert all(p.grad is not None for p in [*model.q.parameters(), *model.v.parameters()])  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.lm.base_model.parameters())
