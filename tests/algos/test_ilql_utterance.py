"""Implicit Q-learning of utterances: its losses worked by hand."""

from ilql.algos import ilql_utterance
from tests.toys import stats


def test_losses_are_those_worked_by_hand():
    # two critics; y = 1 + .5 * 4 = 3, -1 + .5 * 2 = 0 and, terminal, 2; u = min target - v = 1, -2 and 0; seven tokens
    out = stats(
        q=[[3, 1, 1], [2, 0, 2]],
        q_target=[2, 1, 3],
        v=[1, 3, 3],
        v_next=[4, 2, 9],
        logp=[-1, -0.5, -2, -1, -3, -0.25, -0.5],
    )
    batch = stats(reward=[1, -1, 2], discount=[0.5, 0.5, 0])
    got = ilql_utterance.loss(out, batch, ilql_utterance.Config(gamma=0.5, tau=0.75))
    assert {k: v.tolist() for k, v in got.items()} == {
        "q": [1, 1, 1],  # (3-3)^2 + (2-3)^2 ; (1-0)^2 + (0-0)^2 ; (1-2)^2 + (2-2)^2
        "v": [0.75, 1.0, 0.0],  # .75 * 1 ; .25 * 4
        "bc": [1, 0.5, 2, 1, 3, 0.25, 0.5],
    }
