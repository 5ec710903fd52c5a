"""How a policy is read off the critics: the formula, the support, and that a larger beta never hurts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ilql.model import ILQLModel
from ilql.scores import SCORES, actor, advantage, candidates, extracted, support
from tests.toys import table_model


def logs(*prob: float) -> Tensor:
    return torch.tensor(prob, dtype=torch.float64).log()


def allowed(prob: list[float], top_k: int | None = None, top_p: float | None = None) -> list[int]:
    return support(logs(*prob), top_k, top_p).int().tolist()


def test_advantage_by_hand():
    logp = logs(0.5, 0.25, 0.25)
    q, v = torch.tensor([1.0, 3.0, 2.0]).double(), torch.tensor(2.0).double()
    want = [math.log(0.5) - 4, math.log(0.25) + 4, math.log(0.25)]
    assert advantage(logp, q, v, 4.0).tolist() == pytest.approx(want)
    both = advantage(torch.stack([logp, logp]), torch.stack([q, q]), torch.stack([v, v + 1]), 4.0)
    assert both[1].tolist() == pytest.approx([x - 4 for x in want])
    assert torch.equal(actor(logp, q, v, 4.0), logp)
    assert (SCORES["advantage"], SCORES["actor"]) == (advantage, actor)


PROB = [0.1, 0.4, 0.2, 0.3]


@pytest.mark.parametrize(
    ("top_k", "top_p", "want"),
    [
        (None, None, [1, 1, 1, 1]),
        (1, None, [0, 1, 0, 0]),
        (3, None, [0, 1, 1, 1]),
        (4, None, [1, 1, 1, 1]),
        (99, None, [1, 1, 1, 1]),
        (None, 0.39, [0, 1, 0, 0]),
        (None, 0.41, [0, 1, 0, 1]),
        (None, 0.69, [0, 1, 0, 1]),
        (None, 0.71, [0, 1, 1, 1]),
        (None, 1e-9, [0, 1, 0, 0]),
        (None, 1.0, [1, 1, 1, 1]),
        (2, 0.95, [0, 1, 0, 1]),  # both: in both
        (3, 0.41, [0, 1, 0, 1]),
    ],
)
def test_support(top_k, top_p, want):
    assert allowed(PROB, top_k, top_p) == want


def test_support_is_that_of_each_state():
    rows = torch.stack([logs(*PROB), logs(*PROB[::-1])])[None]
    assert support(rows, 2, None).int().tolist() == [[[0, 1, 0, 1], [1, 0, 1, 0]]]
    assert support(rows, None, 0.5).int().tolist() == [[[0, 1, 0, 1], [1, 0, 1, 0]]]


def test_equal_tokens_stand_or_fall_together_at_top_k():
    assert allowed([0.4, 0.2, 0.2, 0.2], top_k=2) == [1, 1, 1, 1], "no token is left out for its number"
    assert allowed([0.3, 0.3, 0.3, 0.1], top_k=1) == [1, 1, 1, 0]
    assert sum(allowed([0.25] * 4, top_p=0.6)) == 3, "the smallest set that holds at least .6"


def test_what_the_actor_cannot_say_is_never_allowed():
    assert allowed([0.5, 0.0, 0.5]) == [1, 0, 1]
    assert allowed([0.5, 0.0, 0.5], top_k=3) == [1, 0, 1]
    assert allowed([0.5, 0.0, 0.5], top_p=1.0) == [1, 0, 1]
    assert allowed([0.0, 1.0, 0.0], top_k=2, top_p=0.99) == [0, 1, 0]


def plain_support(row: list[float], top_k: int | None, top_p: float | None) -> list[bool]:
    """By a loop over one state's tokens, likeliest first, equal ones by their number."""
    ranked = sorted(range(len(row)), key=lambda i: (-row[i], i))
    inside, mass = set(), 0.0
    for rank, token in enumerate(ranked):
        likely = top_k is None or rank < top_k or row[token] == row[ranked[top_k - 1]]
        if likely and (top_p is None or mass < top_p) and row[token] > -math.inf:
            inside.add(token)
        mass += math.exp(row[token])
    return [i in inside for i in range(len(row))]


@pytest.mark.parametrize("step", [0.0, 0.5, 2.0], ids=["distinct", "some equal", "many equal"])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(7, None), (1, None), (70, None), (None, 0.2), (None, 0.93), (40, 0.6), (999, 0.9), (5, 1.0)]
)
@pytest.mark.parametrize("size", [300, 9001], ids=["short", "in blocks"])
def test_the_list_of_candidates_is_the_support(step, top_k, top_p, size):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(6, size, generator=generator, dtype=torch.float64)
    logits[2, -1] = 9.0  # the likeliest stands behind the last whole block
    logits[0] = 9 * logits[0]  # a sure state beside undecided ones
    if step:
        logits = (logits / step).round() * step
    logits[1, 5:] = -torch.inf
    logp = logits.log_softmax(-1)
    want = torch.tensor([plain_support(row, top_k, top_p) for row in logp.tolist()])
    assert torch.equal(support(logp, top_k, top_p), want)
    token, inside = candidates(logp, top_k, top_p)
    assert (token.diff(dim=-1) > 0).all(), "ascending, none twice"
    if not step and top_k is not None and top_k < size:
        assert token.shape == (6, top_k)
    assert inside is None or inside.shape == token.shape
    table, v = torch.randn(6, size, generator=generator, dtype=torch.float64), logits[:, 0]

    def q(t: Tensor | None) -> Tensor:
        return table if t is None else table.gather(-1, t)

    free, everything = extracted(advantage, logits, q, v, 0.3)
    bound, some = extracted(advantage, logits, q, v, 0.3, top_k=top_k, top_p=top_p)
    assert everything is None
    whole = torch.full_like(free, -torch.inf).scatter(-1, some, bound)
    torch.testing.assert_close(whole, torch.where(want, free, -torch.inf), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_supports(options):
    with pytest.raises(ValueError, match="must be"):
        support(logs(0.5, 0.5), **options)


# ---- a solved problem ------------------------------------------------------------------------------------------------

# States 0..3, five actions; action a leads from state s to NEXT[s][a] with REWARD[s][a]; state 4 is the end.
GAMMA = 0.9
NEXT = torch.tensor([[1, 2, 3, 4, 0], [3, 4, 2, 1, 0], [4, 3, 1, 0, 2], [4, 4, 0, 2, 1]])
REWARD = torch.tensor([[0.0, 1, -1, 0.5, 0], [2, 0, 0, -1, 1], [1, 0, 3, 0, -2], [0, 20, 1, 0, 0]]).double()
BEHAVIOUR = torch.tensor(
    [[0.4, 0.3, 0.15, 0.1, 0.05], [0.05, 0.6, 0.2, 0.1, 0.05], [0.5, 0.2, 0.05, 0.15, 0.1], [0.3, 0.02, 0.28, 0.2, 0.2]]
).double()


def values(policy: Tensor) -> Tensor:
    """V of a policy (4, 5) in each state, exactly: (I - gamma P) V = r."""
    move = torch.zeros(4, 5, dtype=torch.float64).scatter_add_(1, NEXT, policy)[:, :4]
    return torch.linalg.solve(torch.eye(4, dtype=torch.float64) - GAMMA * move, (policy * REWARD).sum(1))


def lookahead(v: Tensor) -> Tensor:
    return REWARD + GAMMA * torch.cat([v, v.new_zeros(1)])[NEXT]


def solved(kind: str, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Q (4, 5) and V (4): of the optimal policy (that stays inside a mask), or of the behaviour policy."""
    v = values(BEHAVIOUR)
    if kind == "optimal":
        for _ in range(2000):
            q = lookahead(v)
            v = (q if inside is None else q.masked_fill(~inside, -torch.inf)).max(1).values
    return lookahead(v), v


def decoder(q: Tensor, v: Tensor) -> ILQLModel:
    """A model whose tables hold a solution: token s is state s, and also action s."""
    model = table_model(5, critics=2).eval()
    with torch.no_grad():
        model.lm.out.weight[:, :4] = BEHAVIOUR.log().T
        for head, worse in zip(model.q_target, (0.0, 7.0), strict=True):  # the second critic is the larger one
            head.out.weight[:, :4] = q.T + worse
        model.v.out.weight[0, :4] = v
    return model


@torch.no_grad()
def policy(model: ILQLModel, beta: float, **options: Any) -> Tensor:
    return torch.softmax(model(input_ids=torch.arange(4)[:, None], beta=beta, **options).logits[:, 0], -1)


BETAS = [0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 300.0]


SUPPORTS: list[dict[str, Any]] = [{}, {"support_top_k": 3}, {"support_top_p": 0.8}]


def mask(support_top_k: int | None = None, support_top_p: float | None = None) -> Tensor:
    return support(BEHAVIOUR.log(), support_top_k, support_top_p)


@pytest.mark.parametrize("kind", ["optimal", "behaviour"])
@pytest.mark.parametrize("options", SUPPORTS, ids=["all", "top_k", "top_p"])
def test_a_larger_beta_never_lowers_the_expected_value_of_an_action(kind, options):
    q, v = solved(kind)
    model, inside = decoder(q, v), mask(**options)
    policies = [policy(model, beta, **options) for beta in BETAS[1:]]
    grid = torch.stack([(p * q).sum(1) for p in policies])
    assert (grid.diff(dim=0) >= -1e-9).all(), grid
    assert ((grid[-1] - grid[0]) > 0.05).all(), "and it does help"
    assert all((p[~inside] == 0).all() for p in policies)
    assert torch.equal(policies[-1].argmax(1), torch.where(inside, q, -torch.inf).argmax(1))
    torch.testing.assert_close(policy(model, 0.0, **options), BEHAVIOUR, rtol=1e-6, atol=1e-6)  # the actor as it is


@pytest.mark.parametrize("options", SUPPORTS, ids=["all", "top_k", "top_p"])
def test_a_larger_beta_never_lowers_the_value_of_the_policy(options):
    inside = mask(**options)
    q, v = solved("optimal", inside)
    model = decoder(q, v)
    grid = torch.stack([values(policy(model, beta, **options)) for beta in BETAS[1:]])
    assert (grid.diff(dim=0) >= -1e-6).all(), grid
    torch.testing.assert_close(grid[-1], v, rtol=1e-6, atol=1e-6)
    assert ((v - values(BEHAVIOUR)) > 1).all()


def test_one_step_of_improvement_is_an_improvement_at_every_beta():
    q, v = solved("behaviour")
    model = decoder(q, v)
    for beta in BETAS[1:]:
        assert (values(policy(model, beta)) > v).all()


def test_a_good_rare_token_is_not_forbidden_by_its_advantage():
    # State 3's best action has probability .02: without a support mask beta must raise it, step by step.
    model = decoder(*solved("optimal"))
    rare = [policy(model, beta)[3, 1].item() for beta in BETAS]
    assert rare == sorted(rare)
    assert rare[0] == pytest.approx(0.02)
    assert rare[-1] > 0.999
    assert policy(model, 300.0, support_top_k=4)[3, 1] == 0, "outside the support it stays impossible"


def test_the_pessimistic_critic_decides():
    model = decoder(*solved("optimal"))
    before = policy(model, 3.0)
    with torch.no_grad():
        model.q_target[0].out.weight[2, :4] -= 50  # one critic thinks little of action 2
    after = policy(model, 3.0)
    assert (after[:, 2] < 1e-9).all()
    assert (before[:, 2] > 1e-9).any()
    with torch.no_grad():
        model.q_target[1].out.weight[3, :4] += 50  # and one thinks much of action 3, which alone counts nothing
    torch.testing.assert_close(policy(model, 3.0), after)
