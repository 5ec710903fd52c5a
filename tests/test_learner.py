"""The losses of a whole batch: against a plain re-computation, and the same however the batch is laid out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilql import packed
from ilql.algos import ALGOS, bc, critic, filtered_bc, ilql, ilql_utterance, mc
from ilql.data import collate
from ilql.learner import Learner, Out, check_fits
from ilql.types import InputError
from tests.toys import (
    AT_STEPS,
    BOS,
    at_step,
    chat_row,
    defaults,
    model_fields,
    plain_ilql,
    plain_utterances,
    row,
    stats,
    table_model,
    tiny,
)

CFG = ilql.Config(gamma=0.9, tau=0.8, cql_weight=0.1)


def dialogues(n: int = 6, vocab: int = 23) -> list[dict]:
    rng = np.random.default_rng(0)
    made = [chat_row(rng, vocab, 1 + i % 3, terminated=i % 4 != 0, name=f"d{i}") for i in range(n)]
    cut = made[1]  # a dialogue that was cut off without a following observation
    made[1] = cut | {"terminated": False, "tokens": cut["tokens"][: cut["end"][-1]]}
    return made


def means(model, rows, algo=ilql, cfg=CFG, **options) -> dict[str, torch.Tensor]:
    offered = getattr(algo, "OFFERED", False)
    options = {"bootstraps": algo.BOOTSTRAPS, "acted": False, "offered": offered, **options}
    batch = collate(rows, gamma=0.9, bos=BOS, **options)
    return {k: v.mean() for k, v in Learner(model, algo, cfg)(batch.to("cpu", torch.float64)).items()}


def gradients(model, losses) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum(losses.values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(a: dict, b: dict, tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("critics", [1, 2])
def test_ilql_equals_a_plain_recomputation(architecture, critics):
    model = tiny(architecture)
    if critics == 1:
        del model.q[1], model.q_target[1]
    rows = dialogues()
    ours = means(model, rows)
    plain = plain_ilql(model, rows, gamma=0.9, tau=0.8, cql_weight=0.1)
    assert_same(ours, plain)
    assert_same(gradients(model, ours), gradients(model, plain))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("critics", [1, 2])
def test_utterances_equal_a_plain_recomputation(architecture, critics):
    model = tiny(architecture, critic="scalar")
    if critics == 1:
        del model.q[1], model.q_target[1]
    rows = at_step(dialogues(), "utterance")
    cfg = ilql_utterance.Config(gamma=0.9, tau=0.8)
    ours = means(model, rows, ilql_utterance, cfg, acted=True)
    plain = plain_utterances(model, rows, gamma=0.9, tau=0.8)
    tolerance = 1e-9 if architecture == "gpt2" else 1e-5  # Llama's norms compute in float32 whatever the weights are
    assert_same(ours, plain, tolerance)
    assert_same(gradients(model, ours), gradients(model, plain), tolerance)


@pytest.mark.parametrize("head", ["mlp", "tied"])
def test_a_gathered_target_is_that_of_the_whole_table(head):
    model = tiny(model={"head": head})
    batch = collate(dialogues(), gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    hidden = model.hidden(*batch.run)
    want = torch.stack([q(hidden[batch.where[batch.state]]) for q in model.q_target])
    want = want.gather(2, batch.action.expand(2, -1)[..., None]).squeeze(2).amin(0)
    torch.testing.assert_close(Out(model, hidden, batch).q_target, want, rtol=1e-9, atol=1e-9)


def test_losses_are_those_worked_by_hand():
    # two critics; y = 1 + .5 * 4 = 3 and, terminal, 2; u = min target - v = 1 and -2
    out = stats(
        q=[[3, 1], [2, 2]],
        q_lse=[[4, 2], [2, 3]],
        q_target=[2, 1],
        v=[1, 3],
        v_next=[4, 9],
        logp=[-1, -0.5],
        ret=[3, 2],
    )
    batch = stats(reward=[1, 2], discount=[0.5, 0], ret=[2.5, 2])
    got = ilql.loss(out, batch, ilql.Config(gamma=0.5, tau=0.75, cql_weight=0.1))
    assert {k: v.tolist() for k, v in got.items()} == {
        "q": [1, 1],  # (3-3)^2 + (2-3)^2 ; (1-2)^2 + (2-2)^2
        "v": [0.75, 1.0],  # .75 * 1 ; .25 * 4
        "cql": pytest.approx([0.1, 0.2]),  # (4-3)+(2-2) ; (2-1)+(3-2)
        "bc": [1, 0.5],
    }
    got = mc.loss(out, batch, mc.Config(cql_weight=0.1))
    assert {k: v.tolist() for k, v in got.items()} == {
        "q": [0.5, 1],
        "v": [2.25, 1],
        "cql": pytest.approx([0.1, 0.2]),
        "bc": [1, 0.5],
    }
    assert bc.loss(out, batch, bc.Config())["bc"].tolist() == [1, 0.5]
    assert filtered_bc.loss(out, batch, filtered_bc.Config())["bc"].tolist() == [1, 0.5]


def test_padded_packed_and_reordered_batches_have_the_same_loss(monkeypatch):
    model, rows = tiny(), dialogues()
    want = means(model, rows)
    grads = gradients(model, want)
    assert_same(means(model, rows[::-1]), want)
    monkeypatch.setattr(packed, "supports", lambda trunk: False)
    padded = means(model, rows)
    assert_same(padded, want)
    assert_same(gradients(model, padded), grads)


def test_float32_agrees_to_1e_5():
    model, rows = tiny(), dialogues()
    want = means(model, rows)
    batch = collate(rows, gamma=0.9, bos=BOS).to("cpu", torch.float32)
    got = {k: v.mean() for k, v in Learner(model.float(), ilql, CFG)(batch).items()}
    for name in want:
        torch.testing.assert_close(got[name].double(), want[name], rtol=1e-5, atol=1e-6)


def test_a_batch_is_the_sum_of_its_parts():
    model, rows = tiny(), dialogues()
    learner = Learner(model, ilql, CFG)

    def sums(part):
        losses = learner(collate(part, gamma=0.9, bos=BOS).to("cpu", torch.float64))
        return {k: v.sum() for k, v in losses.items()}

    parts = [sums(rows[:2]), sums(rows[2:3]), sums(rows[3:])]
    assert_same({k: sum(p[k] for p in parts) for k in parts[0]}, sums(rows))


def chained(n: int = 5, vocab: int = 23) -> list[dict]:
    """Rows of which each repeats the turns of the one before it and goes on otherwise, one that begins another, and
    one that ends in another action."""
    rng = np.random.default_rng(1)
    long = chat_row(rng, vocab, 12, terminated=True, name="long")
    made = []
    for i in range(n):
        kept, end = long["turn"][2 * i + 6], chat_row(rng, vocab, 2, terminated=i % 2 == 0, name=f"d{i}")
        agent = long["end"] <= kept
        made.append(
            end
            | {name: np.append(long[name][agent], end[name] + kept - 1) for name in ("start", "end")}
            | {
                "tokens": np.append(long["tokens"][:kept], end["tokens"][1:]),
                "turn": np.append(long["turn"][long["turn"] < kept], end["turn"] + kept - 1),
                "reward": np.append(long["reward"][agent], end["reward"]),
                "logp": np.append(long["logp"][agent], end["logp"]),
            }
        )
    other = long | {"tokens": np.append(long["tokens"][:-1], (long["tokens"][-1] + 1) % vocab)}
    return [*made, long, made[0] | {"id": "again"}, other]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("padded", [False, True])
def test_what_rows_share_is_computed_once_with_the_same_losses(architecture, padded, monkeypatch):
    model, rows = tiny(architecture), chained()
    batch = collate(rows, gamma=0.9, bos=BOS)
    assert max(batch.run.segments.parents) >= 0, "there are branches"
    assert len(batch.run.tokens) < 0.6 * len(batch.tokens)
    read = []
    model.q[0].hidden.register_forward_hook(lambda module, args, output: read.append(len(output)))
    monkeypatch.setattr(packed, "supports", lambda trunk: not padded)
    learner = Learner(model, ilql, CFG)
    ours = {k: v.sum() for k, v in learner(batch.to("cpu", torch.float64)).items()}
    assert read[0] < 0.6 * batch.n, "heads run once for what is shared, too"
    alone = [learner(collate([row], gamma=0.9, bos=BOS).to("cpu", torch.float64)) for row in rows]
    theirs = {k: sum(losses[k].sum() for losses in alone) for k in ours}
    assert_same(ours, theirs)
    tolerance = 1e-9 if architecture == "gpt2" else 1e-5  # Llama's norms compute in float32 whatever the weights are
    assert_same(gradients(model, ours), gradients(model, theirs), tolerance)


def test_windows_equal_full_histories_where_the_state_is_one_token():
    model = table_model(23, critics=2)
    with torch.no_grad():
        for p in model.parameters():
            if p.shape[0] in (1, 23) and p.requires_grad:
                p.copy_(torch.randn_like(p))
    rows = dialogues()
    want = means(model, rows)
    for history in (1, 2, 3):
        assert_same(means(model, rows, history=history), want)


def test_windows_of_utterances_are_dialogues_of_the_last_turns():
    """Each decision's window is a dialogue of one utterance by itself, with the state that followed behind it."""
    model, rows = tiny(critic="scalar"), at_step(dialogues(), "utterance")
    cfg = ilql_utterance.Config(gamma=0.9, tau=0.8)

    def sums(rows, **options):
        batch = collate(rows, gamma=0.9, bos=BOS, acted=True, **options).to("cpu", torch.float64)
        learner = Learner(model, ilql_utterance, cfg)
        losses = learner(batch)
        out = learner.take()
        return {k: v.sum() for k, v in losses.items()}, torch.cat([out.q.flatten(), out.v])

    def window(r, begin, end, start):
        tokens = r["tokens"][begin:end] if begin == 0 else np.append(BOS, r["tokens"][begin:end])
        shift = begin - 1 if begin else 0
        return row(tokens.tolist(), [start - shift], [end - shift], [0.0])

    apart = []
    for r in rows:
        for i, (start, end) in enumerate(zip(r["start"].tolist(), r["end"].tolist(), strict=True)):
            cut = not r["terminated"] and len(r["tokens"]) == r["end"][-1] and i + 1 == len(r["start"])
            turn = int(np.searchsorted(r["turn"], start, side="right")) - 1
            if not cut:
                apart.append(window(r, int(r["turn"][turn - 1]) if turn > 1 else 0, end, start))
    got = sums(rows, history=1)[1]
    want = sums(apart)[1]
    assert len(got) == len(want) > 12
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_what_is_computed_once_has_the_same_loss():
    model, rows = tiny(), dialogues()
    double = rows + [r | {"id": "again"} for r in rows]
    assert_same(means(model, double), means(model, rows))
    assert_same(means(model, rows, acted=True), means(model, rows, acted=False))


def test_windows_are_what_a_transformer_sees_of_the_last_turns():
    model, rows = tiny(), dialogues()
    assert not torch.allclose(means(model, rows, history=1)["q"], means(model, rows)["q"])
    short = [r for r in rows if len(r["turn"]) == 2 and r["terminated"]]
    assert short, "a dialogue of one exchange has one window either way"
    assert_same(means(model, short, history=1), means(model, short))


def test_only_what_a_loss_reads_is_computed():
    model = tiny()
    calls = []
    for head in [*model.q, *model.q_target, model.v]:
        head.hidden.register_forward_hook(lambda *a, h=head: calls.append(h))
    means(model, dialogues(), algo=bc, cfg=bc.Config())
    assert calls == []
    means(model, dialogues())
    assert len(calls) == 2 + 2 + 2, "each critic and target once, V at the state and at the next"


def test_targets_get_no_gradient_and_move_by_polyak():
    model = tiny()
    sum(means(model, dialogues()).values()).backward()
    assert all(p.grad is None for p in model.q_target.parameters())
    assert all(p.grad is not None for p in [*model.q.parameters(), *model.v.parameters(), *model.lm.parameters()])
    old = [p.clone() for p in model.q_target.parameters()]
    model.update_targets(0.25)
    for before, target, online in zip(old, model.q_target.parameters(), model.q.parameters(), strict=True):
        torch.testing.assert_close(target, 0.75 * before + 0.25 * online, rtol=1e-12, atol=1e-12)
        assert not target.requires_grad
    model.update_targets(1.0)
    assert all(torch.equal(t, o) for t, o in zip(model.q_target.parameters(), model.q.parameters(), strict=True))


def test_behaviour_cloning_reads_the_agents_tokens_only():
    model = tiny()
    made = row([0, 5, 6, 7, 8, 9], [3], [4], [0.0])  # a turn of the partner, one action token, a turn of the partner
    logp = torch.log_softmax(model(input_ids=torch.tensor([[0, 5, 6, 7]])).logits[0, 2], -1)
    assert means(model, [made], algo=bc, cfg=bc.Config())["bc"].item() == pytest.approx(-logp[7].item(), abs=1e-12)


def test_a_loss_of_the_wrong_length_is_refused():
    class Wrong:
        PER_TOKEN = frozenset({"bc"})
        loss = staticmethod(lambda out, batch, cfg: {"q": out.logp})

    batch = collate([row([0, 5, 6, 7, 8], [3], [5], [0.0])], gamma=0.9, bos=BOS).to("cpu", torch.float64)
    with pytest.raises(RuntimeError, match="must be"):
        Learner(tiny(), Wrong, None)(batch)  # type: ignore[arg-type]


def test_filtered_bc_keeps_the_best_dialogues():
    returns = np.array([1.0, 5.0, 3.0, 5.0, 2.0])
    assert filtered_bc.select(returns, filtered_bc.Config(top=0.4)).tolist() == [False, True, False, True, False]
    assert filtered_bc.select(returns, filtered_bc.Config(top=0.2)).tolist() == [False, True, False, False, False]
    assert filtered_bc.select(returns, filtered_bc.Config(min_return=3)).tolist() == [False, True, True, True, False]
    with pytest.raises(InputError, match="largest return"):
        filtered_bc.select(returns, filtered_bc.Config(min_return=6))
    with pytest.raises(InputError, match="share"):
        filtered_bc.select(returns, filtered_bc.Config(top=0))


def test_a_dataset_that_does_not_fit_the_model_is_refused():
    with pytest.raises(InputError, match="context is 256"):
        check_fits(tiny(), 257, 23)
    with pytest.raises(InputError, match="vocabulary is 23"):
        check_fits(tiny(), 10, 24)
    check_fits(tiny(), 256, 23)


def test_every_algorithm_is_whole():
    for name, algo in ALGOS.items():
        for part in ("Config", "loss", "scores", "STEPS", "CRITIC", "BOOTSTRAPS", "PER_TOKEN"):
            assert hasattr(algo, part), f"{name}.{part}"


@pytest.mark.parametrize(("name", "step"), AT_STEPS)
def test_every_algorithm_has_finite_losses_that_layout_does_not_change(name, step, monkeypatch):
    algo = ALGOS[name]
    cfg, rows = defaults(algo, step), at_step(dialogues(), step)
    model, options = tiny(**model_fields(algo, cfg, step)), {"acted": critic(algo, step) == "scalar"}
    losses = means(model, rows, algo, cfg, **options)
    assert losses.keys() >= algo.PER_TOKEN
    assert all(torch.isfinite(v) for v in losses.values())
    grads = gradients(model, losses)
    again = means(model, rows[::-1] + [r | {"id": "again"} for r in rows], algo, cfg, **options)
    assert_same(again, losses)
    monkeypatch.setattr(packed, "supports", lambda trunk: False)
    padded = means(model, rows, algo, cfg, **options)
    assert_same(padded, losses)
    assert_same(gradients(model, padded), grads)
