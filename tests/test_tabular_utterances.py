"""What is learned of utterances against dynamic programming: a trunk that is a table reads Q at an utterance's last
token, which here says state and action, and both Q and V must be the tabular fixed point of the same transitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ilql.algos import a_lol, archer, ilql_utterance, mc, sarsa
from ilql.data import collate
from ilql.learner import Learner
from tests.test_tabular import GAMMA, TAU, chain, expectile_of, fixed_point, gather
from tests.toys import BOS, model_fields, row, table_model

WORD, PAIRS = 6, 7  # an utterance is one word for all, and a token for each pair of a state and an action
VOCAB = PAIRS + 2 * 5


def told(made: dict[str, Any], transitions: list[tuple]) -> tuple[dict[str, Any], list[tuple]]:
    """A dialogue of one-token actions 6 and 7 as one of utterances `WORD pair`, and its transitions by their pairs."""
    tokens, turn, start, named = [BOS], [], [], []
    for s, a, r, after in transitions:
        turn += [len(tokens), len(tokens) + 1]
        pair = PAIRS + 2 * (s - 1) + a - 6
        tokens += [s, WORD, pair]
        start.append(len(tokens) - 2)
        named.append((s, pair, r, after))
    if not made["terminated"]:
        turn.append(len(tokens))
        tokens.append(int(made["tokens"][-1]))
    end = [s + 2 for s in start]
    reward = made["reward"].tolist()
    return row(tokens, start, end, reward, turn=turn, terminated=made["terminated"], name=made["id"]), named


def talks(limit: int, n: int = 60) -> tuple[list[dict], list[tuple]]:
    """Utterances on a chain of five cells under random moves, and all their transitions."""
    rows, transitions = gather(chain, range(1, 6), 2, 6, limit, n)
    made, named, first = [], [], 0
    for r in rows:
        last = first + len(r["start"])
        one, those = told(r, transitions[first:last])
        made.append(one)
        named += those
        first = last
    return made, named


def learn(rows: list[dict], algo: Any, cfg: Any, history: int | None = None, steps: int = 1500, rate: float = 0.3):
    """Full-batch training at a decaying rate, with targets that follow at once."""
    model = table_model(VOCAB, **model_fields(algo, cfg, "utterance"))
    learner = Learner(model, algo, cfg)
    options: dict[str, Any] = {"gamma": GAMMA, "bos": BOS, "history": history, "bootstraps": algo.BOOTSTRAPS}
    batch = collate(rows, acted=True, **options).to("cpu", torch.float64)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + np.cos(np.pi * i / steps)) + 1e-6
        optimizer.zero_grad()
        sum(loss.mean() for loss in learner(batch).values()).backward()
        optimizer.step()
        model.update_targets(0.5)
    return model, batch


@torch.no_grad()
def assert_values(model, q: dict, v: dict) -> None:
    h = torch.eye(VOCAB, dtype=torch.float64)
    got_q, got_v = model.q_values(h), model.v(h)
    for (s, pair), want in q.items():
        assert got_q[pair].item() == pytest.approx(want, abs=1e-3), f"Q({s}, {pair})"
    for s, want in v.items():
        assert got_v[s].item() == pytest.approx(want, abs=1e-3), f"V({s})"


@pytest.mark.parametrize("history", [None, 1])
@pytest.mark.parametrize("limit", [60, 4], ids=["terminated", "mostly truncated"])
def test_implicit_q_learning(limit, history):
    rows, transitions = talks(limit, 40)
    assert sum(not r["terminated"] for r in rows) > 20 or limit == 60
    cfg = ilql_utterance.Config(gamma=GAMMA, tau=TAU)
    model, _ = learn(rows, ilql_utterance, cfg, history)
    assert_values(model, *fixed_point(transitions, lambda x: expectile_of(x, TAU)))


@pytest.mark.parametrize(
    ("algo", "options"), [(sarsa, {"cql_weight": 0.0}), (a_lol, {"ratio": "none"})], ids=["sarsa", "a_lol"]
)
def test_single_step_critics_learn_the_values_of_the_logs(algo, options):
    rows, transitions = talks(20, 40)
    model, _ = learn(rows, algo, algo.Config(gamma=GAMMA, **options), history=1, steps=1000)
    assert_values(model, *fixed_point(transitions, np.mean))


def test_returns_to_go_are_learned():
    rows, transitions = talks(20, 40)
    model, batch = learn(rows, mc, mc.Config(gamma=GAMMA, cql_weight=0.0), history=1, rate=0.1, steps=600)
    seen: dict[tuple[int, int], list[float]] = {}
    of: dict[int, list[float]] = {}
    for (s, pair, _, _), ret in zip(transitions, batch.ret.tolist(), strict=True):
        seen.setdefault((s, pair), []).append(ret)
        of.setdefault(s, []).append(ret)
    model.update_targets(1.0)
    assert_values(model, {key: np.mean(x) for key, x in seen.items()}, {s: np.mean(x) for s, x in of.items()})


@pytest.mark.parametrize(("beta", "clip"), [(0.7, 1e6), (0.7, 1.5)], ids=["free", "clipped"])
def test_archer_trains_the_improvement_into_every_token(beta, clip):
    """pi(a | s) is the logs' policy, weighed by min(exp(beta A), clip). A table of one-token states sees the state at
    an utterance's first token alone; so here an utterance is that, and its end."""
    rows, transitions = talks(2, 40)
    short = []
    for r in rows:
        tokens = r["tokens"].copy()
        for s in r["start"]:
            tokens[s] = tokens[s + 1]  # the pair twice
        short.append(r | {"tokens": tokens})
    cfg = archer.Config(gamma=GAMMA, tau=TAU, beta=beta, clip=clip)
    model, _ = learn(short, archer, cfg, steps=2000)
    q, v = fixed_point(transitions, lambda x: expectile_of(x, TAU))
    assert_values(model, q, v)
    weight = {key: min(np.exp(beta * (value - v[key[0]])), clip) for key, value in q.items()}
    policy = torch.softmax(model.lm.out.weight.detach().T, -1).numpy()
    for (s, pair), w in weight.items():
        count = sum(t[:2] == (s, pair) for t in transitions)
        total = sum(weight[t[:2]] for t in transitions if t[0] == s)
        assert policy[s, pair] == pytest.approx(count * w / total, abs=2e-3), f"pi({pair} | {s})"
