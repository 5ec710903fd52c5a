"""Q-SFT's losses worked by hand, and what it says of returns that do not fit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ilql.algos import q_sft
from ilql.types import InputError
from tests.toys import stats


def test_losses_are_those_worked_by_hand():
    # values from -2 to 2; y = 0 + .5 * 2 = 1, -1 + .5 * -2 = -2, 1 and, terminal, 5: w = 3/4, 0, 3/4 and, cut off, 1
    out = stats(
        q_logp=[[-1, -2, -1, -4], [-2, -2, -3, -4]],
        q_rest=[[-4, -1, -8, -1], [-8, -3, -4, -1]],
        q_next=[2, -2, 2, 9],
        v=[2, -2, 0, 5],
        logp=[-1, -0.5, -2, -3],
    )
    batch = stats(reward=[0, -1, 0, 5], discount=[0.5, 0.5, 0.5, 0])
    got = q_sft.loss(out, batch, q_sft.Config(gamma=0.5, low=-2.0, high=2.0))
    assert {k: v.tolist() for k, v in got.items()} == {
        "q": [0.75 + 1 + 1.5 + 2, 1 + 3, 0.75 + 2 + 2.25 + 1, 4 + 4],
        "v": [1, 0, 1, 0],  # (V - y)^2
        "bc": [1, 0.5, 2, 3],
    }


def test_returns_beyond_the_range_are_told():
    cfg = q_sft.Config(low=-1.0, high=2.0)
    assert q_sft.advise(np.array([-1.0, 0.5, 2.0]), cfg) is None
    told = q_sft.advise(np.array([-1.5, 0.5]), cfg)
    assert told is not None
    assert all(part in told for part in ("q_sft.low", "-1 and 2", "from -1.5 to 0.5"))
    assert q_sft.advise(np.array([0.0, 2.5]), cfg) is not None


def test_a_range_needs_two_ends():
    with pytest.raises(InputError, match=r"q_sft\.low is 1\.0, but must be below q_sft\.high, 1\.0"):
        q_sft.Config(low=1.0)
    with pytest.raises(InputError, match=r"q_sft\.high is inf"):
        q_sft.Config(high=math.inf)
