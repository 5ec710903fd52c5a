"""Offline ArCHer's losses worked by hand: the weight of an utterance is that of each of its tokens."""

import math

import pytest
import torch

from ilql.algos import archer
from ilql.types import InputError
from tests.toys import stats


def test_losses_are_those_worked_by_hand():
    # y = 3, 0 and, terminal, 2; u = 1, -2 and 0; 2^u = 2 (clipped to 1.5), 1/4 and 1; utterances of 2, 3 and 1 tokens,
    # and behind them two tokens without a decision
    out = stats(
        q=[[3, 1, 1], [2, 0, 2]],
        q_target=[2, 1, 3],
        v=[1, 3, 3],
        v_next=[4, 2, 9],
        logp=[-1, -2, -0.5, -1, -4, -2, -7, -7],
    )
    batch = stats(reward=[1, -1, 2], discount=[0.5, 0.5, 0])
    batch.owner, batch.m = torch.tensor([0, 0, 1, 1, 1, 2]), 8
    got = archer.loss(out, batch, archer.Config(gamma=0.5, tau=0.75, beta=math.log(2), clip=1.5))
    assert {k: v.tolist() for k, v in got.items()} == {
        "q": [1, 1, 1],
        "v": [0.75, 1.0, 0.0],  # .75 * 1 ; .25 * 4
        "actor": pytest.approx([1.5, 3, 0.125, 0.25, 1, 2, 0, 0]),
    }


def test_options_out_of_range_are_named():
    with pytest.raises(InputError, match=r"archer\.clip is 0\.0, but must be above 0"):
        archer.Config(clip=0.0)
