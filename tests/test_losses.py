"""The atoms against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ilql.losses import (
    awr_weight,
    best_among,
    clipped_ratio,
    cql,
    expectile,
    gumbel,
    lse_among,
    nll,
    soft_among,
    sparse,
    td,
    td_target,
)


def t(*values: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def test_td_target_discounts_and_stops_at_termination():
    got = td_target(t(1, 2, 3), t(0.9, 0.5, 0), t(10, 4, 7))
    assert got.tolist() == pytest.approx([10, 4, 3])


def test_td_target_never_reads_behind_a_terminal_state():
    assert td_target(t(3), t(0), t(math.inf)).tolist() == [3]
    assert td_target(t(3), t(0), t(math.nan)).tolist() == [3]


def test_td_target_is_constant():
    assert not td_target(t(1), t(0.9), t(1, grad=True)).requires_grad


def test_td_sums_the_critics_without_a_half():
    q = torch.stack([t(1, 2, 3), t(2, 2, 0)])
    assert td(q, t(2, 4, 3)).tolist() == [1, 8, 9]


def test_expectile_weighs_by_the_sign_of_q_minus_v():
    # u = 1 (tau), -1 (1 - tau), 2 (tau)
    assert expectile(t(0, 2, 1), t(1, 1, 3), 0.8).tolist() == pytest.approx([0.8, 0.2, 3.2])
    assert expectile(t(0, 2, 1), t(1, 1, 3), 0.5).tolist() == pytest.approx([0.5, 0.5, 2.0])


def test_expectile_moves_v_only():
    v, q = t(0, 2, grad=True), t(1, 1, grad=True)
    expectile(v, q, 0.8).sum().backward()
    assert v.grad.tolist() == pytest.approx([-1.6, 0.4])
    assert q.grad is None


def test_gumbel_weighs_exponentially_what_q_is_above_v():
    # beta 2: z = 1, -1, 0
    want = [math.e - 2, math.exp(-1), 0]
    assert gumbel(t(0, 3, 1), t(2, 1, 1), 2.0, 7.0).tolist() == pytest.approx(want)
    assert (gumbel(t(0), t(1), 1.0, 7.0) > gumbel(t(1), t(0), 1.0, 7.0)).all(), "a Q above V weighs more"


def test_gumbel_moves_v_only_and_goes_on_as_a_tangent():
    v, q = t(0, 1, 0, 0, grad=True), t(1, 0, 3, 1000, grad=True)
    loss = gumbel(v, q, 1.0, 2.0)
    assert loss.tolist() == pytest.approx([math.e - 2, math.exp(-1), 2 * math.exp(2) - 4, 999 * math.exp(2) - 1001])
    loss.sum().backward()
    # d/dv (exp(z) - z - 1) = 1 - exp(z), and 1 - exp(2) from z = 2 on
    assert v.grad.tolist() == pytest.approx([1 - math.e, 1 - math.exp(-1), 1 - math.exp(2), 1 - math.exp(2)])
    assert q.grad is None


def test_sparse_forgets_what_is_far_below_v():
    # alpha .5: w = 1 + u with u = 1, -1 (w = 0), -3 (w < 0); V / alpha = 0, 4, 6
    assert sparse(t(0, 2, 3), t(1, 1, 0), 0.5).tolist() == [4, 4, 6]


def test_sparse_moves_v_only():
    v, q = t(0, 2, 3, grad=True), t(1, 1, 0, grad=True)
    sparse(v, q, 0.5).sum().backward()
    assert v.grad.tolist() == [-2, 2, 2]  # -2 max(0, w) / (2 alpha) + 1 / alpha
    assert q.grad is None


def test_cql_keeps_the_logged_actions_own_term():
    q = torch.stack([t(1, 0), t(3, 1)])
    lse = torch.stack([t(2, 4), t(3.5, 1)])
    assert cql(q, lse).tolist() == [1.5, 4]


def test_cql_is_the_cross_entropy_of_the_q_head():
    table = torch.randn(2, 5, 7, dtype=torch.float64)
    action = torch.randint(0, 7, (5,))
    q = table[:, torch.arange(5), action]
    want = sum(torch.nn.functional.cross_entropy(table[k], action, reduction="none") for k in range(2))
    torch.testing.assert_close(cql(q, table.logsumexp(-1)), want, rtol=1e-12, atol=1e-12)


def test_nll_weighs_each_token_by_a_constant():
    logp, weight = t(-1, -2, -3, grad=True), t(1, 0, 2, grad=True)
    loss = nll(logp, weight)
    assert loss.tolist() == [1, 0, 6]
    loss.sum().backward()
    assert logp.grad.tolist() == [-1, 0, -2]
    assert weight.grad is None
    assert nll(logp).tolist() == [1, 2, 3]


def test_nll_refuses_a_weight_a_decision():
    with pytest.raises(ValueError, match="one weight a token"):
        nll(t(-1, -2, -3), t(1))


def test_a_ratio_is_clipped_on_both_sides_and_finite():
    got = clipped_ratio(t(-1, -1, -1, -1, -1000), t(-1, -1.2, -1000, -0.5, 0), 0.5)
    torch.testing.assert_close(got, t(1, math.exp(0.2), 1.5, math.exp(-0.5), 0.5))
    assert clipped_ratio(t(-3, -7), t(-5, -2), 0.0).tolist() == [1, 1]


def test_awr_weight_is_clipped_and_finite():
    got = awr_weight(t(0, 1, 1000, -1000), 2.0, 20.0)
    assert got.tolist() == pytest.approx([1, math.exp(2), 20, 0])
    assert awr_weight(t(math.log(3)), 1.0, 20.0).item() == pytest.approx(3)
    assert not awr_weight(t(1, grad=True), 1.0, 20.0).requires_grad


def test_log_sum_exp_among_what_was_offered():
    """Decision 0 had two others, 1 none, 2 one: log(e^1 + e^0 + e^2), 5, log(e^-1 + e^3)."""
    q = torch.tensor([[1.0, 5.0, -1.0]], dtype=torch.float64, requires_grad=True)
    others = torch.tensor([[0.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    owner = torch.tensor([0, 0, 2])
    got = lse_among(q, others, owner)
    want = [math.log(math.e + 1 + math.exp(2)), 5.0, math.log(math.exp(-1) + math.exp(3))]
    assert got.tolist() == [pytest.approx(want, rel=1e-12)]
    assert torch.autograd.gradcheck(lambda a, b: lse_among(a, b, owner), (q, others))
    big = lse_among(q + 2000, others + 2000, owner)
    assert (big - 2000).tolist() == [pytest.approx(want, abs=1e-9)], "no exp overflows"


def test_the_best_and_the_soft_best_of_what_is_offered():
    q, owner = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64), torch.tensor([0, 0, 2])
    assert best_among(q, owner, 4).tolist() == [3.0, 0.0, -2.0, 0.0], "nothing offered is worth nothing"
    e = math.exp(-2 / 0.5)
    soft = soft_among(q, owner, 4, 0.5).tolist()
    assert soft == pytest.approx([(3 + e * 1) / (1 + e), 0.0, -2.0, 0.0])
    assert soft_among(q, owner, 3, 1e-4).tolist() == pytest.approx([3.0, 0.0, -2.0])
    assert soft_among(q, owner, 3, 1e6).tolist() == pytest.approx([2.0, 0.0, -2.0], abs=1e-4)
