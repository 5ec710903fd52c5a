"""Conservative Q-learning's losses worked by hand."""

import pytest

from ilql.algos import cql, ilql
from ilql.types import InputError
from tests.toys import stats


def test_losses_are_those_worked_by_hand():
    # two critics; y = 1 + .5 * 6 = 4, -1 + .5 * 2 = 0 and, terminal, 2; v_next is not read; u = 1, -2 and 0
    out = stats(
        q=[[3, 1, 1], [4, 0, 2]],
        q_lse=[[4, 2, 2], [5, 1, 3]],
        q_target=[2, 1, 3],
        v=[1, 3, 3],
        q_next=[6, 2, 9],
        logp=[-1, -0.5, -2],
    )
    batch = stats(reward=[1, -1, 2], discount=[0.5, 0.5, 0])
    got = cql.loss(out, batch, cql.Config(gamma=0.5, cql_weight=0.5))
    assert {k: v.tolist() for k, v in got.items()} == {
        "q": [1, 1, 1],  # (3-4)^2 + (4-4)^2 ; (1-0)^2 + (0-0)^2 ; (1-2)^2 + (2-2)^2
        "v": [0.5, 2.0, 0.0],
        "cql": pytest.approx([1, 1, 1]),  # half of (4-3)+(5-4) ; (2-1)+(1-0) ; (2-1)+(3-2)
        "bc": [1, 0.5, 2],
    }
    assert "cql" not in cql.loss(out, batch, cql.Config(cql_weight=0.0))


@pytest.mark.parametrize("algo", [cql, ilql])
def test_a_calibrated_penalty_reads_the_floored_sum(algo):
    out = stats(q=[[3], [4]], q_lse_floored=[[6], [5]], q_target=[2], v=[1], v_next=[6], q_next=[6], logp=[-1])
    batch = stats(reward=[1], discount=[0.5])
    got = algo.loss(out, batch, algo.Config(gamma=0.5, cql_weight=0.5, calibrated=True))
    assert got["cql"].tolist() == [2]  # half of (6-3)+(5-4)
    with pytest.raises(InputError, match="no penalty to calibrate"):
        algo.Config(cql_weight=0.0, calibrated=True)
