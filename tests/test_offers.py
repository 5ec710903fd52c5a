"""Candidates in a batch: where they lie, which are merged, and what critics read of them, however the batch is laid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from ilql.algos import bc
from ilql.data import collate
from ilql.learner import Learner, Out
from tests.test_data import CODE, TOKENS, TURNS, utterance_row
from tests.toys import BOS, chat_row, row, spoken, tiny

B, E, K, X, SO = (CODE[x] for x in "BEkbo")
YO, BYE = TOKENS[4:7], TOKENS[10:14]
TAIL = {"tokens": np.array([*TOKENS, SO, E], np.int32), "turn": np.array([*TURNS, 14, 15]), "terminated": False}


def offers(batch) -> list[tuple[list[list[int]], list[list[int]]]]:
    """For each decision the candidates at its state and at its next one, as the tokens behind the piece's beginning."""
    begins = (batch.position == 0).nonzero().squeeze(1)

    def said(last: int) -> list[int]:
        begin = int(begins[begins <= last].max())
        return batch.tokens[begin : last + 1].tolist()

    both = (batch.offered, batch.offered_next)
    return [tuple([said(p) for p, o in zip(*x, strict=True) if o == i] for x in both) for i in range(batch.n)]


def lay(*rows, **options):
    return collate(rows, gamma=0.9, bos=CODE["B"], offered=True, **options)


def test_worked_example():
    """`hi | *yo | ok | *bye` with `x` and `yo` offered to the first state, `x` and `k` to the second."""
    made = utterance_row(proposals=[[[X, E], YO], [[X, E], [K, E]]])
    first, second = TOKENS[:4], TOKENS[:10]
    batch = lay(made)
    assert offers(batch) == [
        ([[*first, X, E]], [[*second, X, E], [*second, K, E]]),  # what was logged is not offered beside itself
        ([[*second, X, E], [*second, K, E]], []),  # nothing follows the end
    ]
    assert batch.state.tolist() == [3, 9], "the dialogue itself lies as ever"
    assert batch.discount.tolist() == [0.9, 0]
    assert offers(lay(made, history=1))[1][0] == [[B, *TOKENS[7:10], X, E], [B, *TOKENS[7:10], K, E]]


def test_a_state_behind_the_last_action_has_candidates_too():
    made = utterance_row(**TAIL, proposals=[[], [], [[X, E], YO]])
    for history, begin in ((None, TAIL["tokens"].tolist()), (1, [B, *TAIL["tokens"][14:].tolist()])):
        batch = lay(made, history=history)
        assert batch.n == 2
        assert offers(batch)[1] == ([], [[*begin, X, E], [*begin, *YO]])


def test_equal_candidates_are_one_and_the_logged_reply_is_itself():
    made = utterance_row(proposals=[[YO, [X, E], YO, [X, E]], [BYE, BYE]])
    batch = lay(made)
    assert offers(batch) == [([[*TOKENS[:4], X, E]], [TOKENS]), ([], [])]
    assert batch.offered_next.last.tolist() == [13], "at the place of the logged reply"


def test_a_state_without_candidates_is_offered_its_logged_reply():
    batch = lay(utterance_row(proposals=[[], []]))
    assert offers(batch) == [([], [TOKENS]), ([], [])]


def test_a_last_state_without_candidates_is_nothing_to_bootstrap_from():
    made = utterance_row(**TAIL, proposals=[[[X, E]], [[X, E]], []])
    batch = lay(made)
    assert (batch.n, batch.m, len(batch.owner)) == (1, 7, 3), "its tokens are left to cloning"
    assert len(offers(batch)[0][1]) == 1
    assert lay(made, bootstraps=False).n == 2
    bare = lay(utterance_row(terminated=False, proposals=[[[X, E]], [[X, E]]]))
    assert bare.n == 1, "nothing was logged behind the last action"
    assert len(offers(bare)[0][1]) == 1


def test_what_candidates_share_is_computed_once():
    head = list(range(1, 21))
    made = row([0, *head, 30, 31], [21], [23], [1.0]) | {"proposals": [[[32, 31], [33, 34, 31], [30, 31]]]}
    batch = collate([made], gamma=0.9, bos=0, offered=True)
    assert len(batch.tokens) == 23 + 23 + 24
    assert sorted(batch.run.tokens.tolist()) == sorted([0, *head, 30, 31, 32, 31, 33, 34, 31])
    for place in (batch.offered.last, batch.offered.last - 1, batch.last):
        assert torch.equal(batch.run.tokens[batch.where[place]], batch.tokens[place])
        assert torch.equal(batch.run.position[batch.where[place]], batch.position[place])


def test_without_being_asked_for_they_are_not_read():
    made = utterance_row(proposals=object())
    batch = collate([made], gamma=0.9, bos=CODE["B"])
    assert batch.offered is None
    assert batch.offered_next is None
    with pytest.raises(RuntimeError, match="OFFERED"):
        Out(tiny(critic="scalar"), torch.zeros(14, 16, dtype=torch.float64), batch).q_offered  # noqa: B018


def candidates(rng: np.random.Generator, r: dict, vocab: int = 23) -> dict:
    """A dialogue at utterance steps with up to four candidates a state, its logged reply among them now and then."""
    n = len(r["start"])
    given = []
    for i in range(n + (not r["terminated"] and len(r["tokens"]) > r["end"][-1])):
        some = [rng.integers(1, vocab, rng.integers(1, 4)).tolist() for _ in range(rng.integers(1 if i >= n else 0, 4))]
        logged = i < n and rng.random() < 0.5
        given.append(some + ([r["tokens"][r["start"][i] : r["end"][i]].tolist()] if logged else []))
    return r | {"proposals": given}


def dialogues(count: int = 6) -> list[dict]:
    rng = np.random.default_rng(5)
    made = [chat_row(rng, 23, 2 + i % 3, terminated=i % 3 != 0, name=f"d{i}") for i in range(count)]
    cut = made[1]
    made[1] = cut | {"terminated": False, "tokens": cut["tokens"][: cut["end"][-1]]}
    return [candidates(rng, spoken(r)) for r in made]


def read(model, batch) -> Out:
    learner = Learner(model, bc, bc.Config())
    with torch.no_grad():
        learner(batch.to("cpu", torch.float64))
        return learner.take()


def plain(model, r: dict, history: int | None) -> tuple[list, list]:
    """By the definition, one forward pass a candidate: for each decision {Q of every critic} of what else was offered,
    and the frozen minimum of what is offered next."""
    tokens, n = r["tokens"].tolist(), len(r["start"])
    agent = [int(np.searchsorted(r["turn"], s, side="right")) - 1 for s in r["start"]]

    def values(i: int, said: list[int]) -> torch.Tensor:
        at, turn = (int(r["start"][i]), agent[i]) if i < n else (len(tokens), len(r["turn"]) - 1)
        begin = 0 if history is None or turn - history <= 0 else int(r["turn"][turn - history])
        piece = ([BOS] if begin else []) + tokens[begin:at] + said
        with torch.no_grad():
            h = model.lm.base_model(input_ids=torch.tensor([piece]), use_cache=False).last_hidden_state[0, -1]
            return torch.stack([q(h) for q in [*model.q, *model.q_target]])

    here, after = [], []
    states = []
    for i, given in enumerate(r["proposals"]):
        logged = tokens[r["start"][i] : r["end"][i]] if i < n else None
        distinct = [list(c) for c in dict.fromkeys(map(tuple, given))]
        states.append((distinct or ([logged] if logged else []), logged))
    for i in range(n):
        follows = i + 1 < n or (not r["terminated"] and len(tokens) > r["end"][-1])
        if not (follows or r["terminated"]):
            continue
        here.append([values(i, c)[: len(model.q)] for c in states[i][0] if c != states[i][1]])
        after.append([values(i + 1, c)[len(model.q) :].min() for c in states[i + 1][0]] if follows else [])
    return here, after


def listed(values: torch.Tensor, owner: torch.Tensor, n: int) -> list[torch.Tensor]:
    return [values[..., owner == i] for i in range(n)]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("history", [None, 1, 2])
def test_critics_read_what_they_would_of_every_candidate_alone(architecture, history):
    model, rows = tiny(architecture, critic="scalar"), dialogues()
    batch = collate(rows, gamma=0.9, bos=BOS, history=history, offered=True)
    out = read(model, batch)
    wanted = [plain(model, r, history) for r in rows]
    here, after = ([x for pair in wanted for x in pair[k]] for k in (0, 1))
    assert len(here) == batch.n
    tolerance = 1e-9 if architecture == "gpt2" else 1e-5
    for got, want in zip(listed(out.q_offered, batch.offered.owner, batch.n), here, strict=True):
        assert got.T.tolist() == [pytest.approx(x.tolist(), rel=tolerance, abs=tolerance) for x in want]
    for got, want in zip(listed(out.q_target_offered, batch.offered_next.owner, batch.n), after, strict=True):
        assert got.tolist() == pytest.approx([float(x) for x in want], rel=tolerance, abs=tolerance)
    assert sum(map(len, here)) > 12
    assert sum(map(len, after)) > 12


@pytest.mark.parametrize("history", [None, 1])
def test_neither_order_nor_company_matters(history):
    model, rows = tiny(critic="scalar"), dialogues()

    def each(made):
        batch = collate(made, gamma=0.9, bos=BOS, history=history, offered=True)
        out = read(model, batch)
        pairs = [(out.q_offered, batch.offered.owner), (out.q_target_offered[None], batch.offered_next.owner)]
        return [x.T.flatten().tolist() for values, owner in pairs for x in listed(values, owner, batch.n)], batch.n

    together, n = each(rows)
    apart = [each([r]) for r in rows]
    for k in (0, 1):
        want = [x for found, m in apart for x in found[k * m : (k + 1) * m]]
        assert together[k * n : (k + 1) * n] == [pytest.approx(x, rel=1e-9, abs=1e-9) for x in want]
    turned, _ = each(rows[::-1])
    begins = np.cumsum([0] + [m for _, m in apart[::-1]])
    for k in (0, 1):
        parts = [turned[k * n + a : k * n + b] for a, b in pairwise(begins.tolist())]
        want = [found[k * m : (k + 1) * m] for found, m in apart]
        assert parts[::-1] == [[pytest.approx(x, rel=1e-9, abs=1e-9) for x in part] for part in want]


def test_the_gradient_of_candidates_reaches_the_trunk_and_no_target():
    model = tiny(critic="scalar")
    batch = collate(dialogues(), gamma=0.9, bos=BOS, offered=True).to("cpu", torch.float64)
    out = Out(model, model.hidden(*batch.run), batch)
    out.q_offered.sum().backward()
    grads = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum())}
    assert any(name.startswith("lm.") for name in grads)
    assert any(name.startswith("q.1.") for name in grads)
    assert not any(name.startswith("q_target") for name in grads)
    assert not out.q_target_offered.requires_grad
