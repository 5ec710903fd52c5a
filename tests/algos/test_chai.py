"""CHAI: its losses worked by hand, its values a fixed point, its penalty bounded below."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ilql.algos import chai
from ilql.data import collate
from ilql.learner import Learner
from ilql.offers import gather
from ilql.types import InputError
from tests.test_tabular import GAMMA
from tests.test_tabular_utterances import PAIRS, VOCAB, WORD, talks
from tests.toys import BOS, model_fields, row, stats, table_model


def by_hand():
    """Three decisions and two critics. The first had 2 others at its state and 3 replies at the next one, the second
    none and 1, the last, which ends its dialogue, 1 and none."""
    offered = gather([(0, 0), (0, 0), (0, 2)])
    after = gather([(0, 0), (0, 0), (0, 0), (0, 1)])
    batch = stats(reward=[1, -1, 2], discount=[0.5, 0.5, 0])
    batch = SimpleNamespace(**vars(batch), n=3, offered=offered, offered_next=after)
    out = stats(
        q=[[3, 1, 1], [2, 0, 2]],
        q_offered=[[2, 4, 1], [2, 2, 0]],
        q_target=[2, 1, 3],
        q_target_offered=[0, 4, 2, 2],
        v=[1, 3, 3],
        logp=[-1, -0.5, -2],
    )
    return out, batch


def log_sum(*values: float) -> float:
    return math.log(sum(map(math.exp, values)))


def test_losses_are_those_worked_by_hand():
    # y = 1 + .5 * max(0, 4, 2) = 3, -1 + .5 * 2 = 0 and, terminal, 2
    out, batch = by_hand()
    got = chai.loss(out, batch, chai.Config(gamma=0.5, cql_weight=0.1, bc_weight=2.0))
    want = {
        "q": [1, 1, 1],  # (3-3)^2 + (2-3)^2 ; (1-0)^2 + (0-0)^2 ; (1-2)^2 + (2-2)^2
        "v": [0.5, 2.0, 0.0],  # u = 1, -2 and 0
        "cql": [
            0.1 * (log_sum(3, 2, 4) - 3 + log_sum(2, 2, 2) - 2),
            0.0,  # nothing else was offered
            0.1 * (log_sum(1, 1) - 1 + log_sum(2, 0) - 2),
        ],
        "bc": [2, 1, 4],
    }
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert got[name].tolist() == pytest.approx(values), name
    assert chai.loss(out, batch, chai.Config(cql_weight=0, bc_weight=0)).keys() == {"q", "v"}


def test_the_softer_backup_is_a_mean():
    out, batch = by_hand()
    weights = [math.exp(x / 2) for x in (0, 4, 2)]
    soft = (4 * weights[1] + 2 * weights[2]) / sum(weights)
    got = chai.backup(out, batch, chai.Config(backup="softmax", temperature=2.0))
    assert got.tolist() == pytest.approx([soft, 2.0, 0.0])


@pytest.mark.parametrize("options", [{"gamma": 1.5}, {"temperature": 0}, {"cql_weight": -1}, {"bc_weight": math.nan}])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(InputError, match=f"chai.{next(iter(options))}"):
        chai.Config(**options)


def pair(s: int, a: int) -> int:
    return PAIRS + 2 * (s - 1) + a - 6


def moves(s: int) -> tuple[int, ...]:
    """What is proposed in a cell: both ways, but for the second, from which nobody proposes to go on."""
    return (6,) if s == 2 else (6, 7)


def with_moves(rows: list[dict]) -> list[dict]:
    """What is proposed at every state, said as the logs say it."""
    made = []
    for r in rows:
        states = [int(r["tokens"][s - 1]) for s in r["start"]]
        if not r["terminated"]:
            states.append(int(r["tokens"][-1]))
        made.append(r | {"proposals": [[[WORD, pair(s, a)] for a in moves(s)] for s in states]})
    return made


def learn(rows: list[dict], cfg: chai.Config, steps: int = 1200, rate: float = 0.1, history: int | None = None):
    """Full-batch training at a decaying rate, with targets that follow at once."""
    model = table_model(VOCAB, **model_fields(chai, cfg))
    learner = Learner(model, chai, cfg)
    batch = collate(rows, gamma=GAMMA, bos=BOS, history=history, acted=True, offered=True).to("cpu", torch.float64)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * i / steps)) + 1e-6
        optimizer.zero_grad()
        sum(loss.mean() for loss in learner(batch).values()).backward()
        optimizer.step()
        model.update_targets(0.5)
    return model, batch


def values(model) -> list[float]:
    with torch.no_grad():
        return model.q_values(torch.eye(VOCAB, dtype=torch.float64)).tolist()


@pytest.mark.parametrize("backup", ["max", "softmax"])
@pytest.mark.parametrize("history", [None, 1])
def test_values_are_the_fixed_point_over_what_is_proposed(backup, history):
    rows, transitions = talks(4, 40)
    assert sum(not r["terminated"] for r in rows) > 20
    cfg = chai.Config(gamma=GAMMA, backup=backup, temperature=0.7, cql_weight=0.0)

    def worth(q: np.ndarray) -> float:
        weight = np.exp((q - q.max()) / cfg.temperature)
        return float(q.max() if backup == "max" else weight @ q / weight.sum())

    q: dict[tuple[int, int], float] = dict.fromkeys(((t[0], t[1]) for t in transitions), 0.0)
    for _ in range(500):
        v = {s: worth(np.array([q[s, pair(s, a)] for a in moves(s)])) for s in range(1, 6)}
        targets: dict[tuple[int, int], list[float]] = {}
        for s, a, r, after in transitions:
            targets.setdefault((s, a), []).append(r + (GAMMA * v[after] if after is not None else 0.0))
        q = {key: float(np.mean(x)) for key, x in targets.items()}
    got = values(learn(with_moves(rows), cfg, history=history)[0])
    for (s, a), want in q.items():
        assert got[a] == pytest.approx(want, abs=1e-3), f"Q({s}, {a})"
    assert got[pair(5, 7)] == pytest.approx(5.0, abs=1e-3)
    assert got[pair(2, 7)] > 0 > got[pair(1, 7)], "the logs go on from the second cell, and no proposal does"


def one_state(other: int) -> list[dict]:
    """One state, one reply, worth 2; beside it another is proposed, and the logged one again."""
    made = row([BOS, 1, WORD, PAIRS], [2], [4], [2.0], turn=[1, 2])
    return [made | {"proposals": [[[WORD, other], [WORD, PAIRS]]]}]


def test_the_penalty_stops_where_the_logged_reply_is_alone():
    """The logged reply stands d above its return 2 and the other far below: 2 d = w p, p the other's share of the sum;
    the other sinks without limit, but ever slower, and the loss has a floor."""
    cfg = chai.Config(gamma=GAMMA, cql_weight=0.5, bc_weight=0.0)
    losses = []
    for steps in (300, 900):
        model, batch = learn(one_state(PAIRS + 1), cfg, steps=steps, rate=0.1)
        found = {k: v.item() for k, v in Learner(model, chai, cfg)(batch).items()}
        q = values(model)
        share = 1 / (1 + math.exp(q[PAIRS] - q[PAIRS + 1]))
        assert 2 * (q[PAIRS] - 2.0) == pytest.approx(0.5 * share, abs=2e-3)
        assert q[PAIRS + 1] < q[PAIRS]
        assert found["cql"] >= 0.0
        losses.append(sum(found.values()))
    assert losses[1] <= losses[0] < 0.2
    same, _ = learn(one_state(PAIRS), cfg, steps=400, rate=0.1)
    assert values(same)[PAIRS] == pytest.approx(2.0, abs=1e-3), "a copy of the logged reply is no other"
