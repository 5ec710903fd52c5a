"""SARSA's losses worked by hand."""

import pytest

from ilql.algos import sarsa
from tests.toys import stats


def test_losses_are_those_worked_by_hand():
    # two critics; y = 1 + .5 * 4 = 3, -1 + .5 * 2 = 0 and, terminal, 2; u = min target - v = 1, -2 and 0
    out = stats(
        q=[[3, 1, 1], [2, 0, 2]],
        q_lse=[[4, 2, 2], [2, 1, 3]],
        q_target=[2, 1, 3],
        v=[1, 3, 3],
        v_next=[4, 2, 9],
        logp=[-1, -0.5, -2],
    )
    batch = stats(reward=[1, -1, 2], discount=[0.5, 0.5, 0])
    got = sarsa.loss(out, batch, sarsa.Config(gamma=0.5, cql_weight=0.1))
    assert {k: v.tolist() for k, v in got.items()} == {
        "q": [1, 1, 1],  # (3-3)^2 + (2-3)^2 ; (1-0)^2 + (0-0)^2 ; (1-2)^2 + (2-2)^2
        "v": [0.5, 2.0, 0.0],  # half of u^2, on either side
        "cql": pytest.approx([0.1, 0.2, 0.2]),
        "bc": [1, 0.5, 2],
    }
    assert "cql" not in sarsa.loss(out, batch, sarsa.Config(cql_weight=0.0))
