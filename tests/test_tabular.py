"""What is learned against dynamic programming: with a table for a trunk, Q and V must be the tabular fixed point of the
same transitions, each algorithm's with its own value of a state."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ilql.algos import awac, cql, dt, ilql, mc, q_sft, sarsa
from ilql.data import collate
from ilql.envs.maze import Maze
from ilql.learner import Learner
from tests.toys import BOS, logits, model_fields, row, table_model

GAMMA, TAU = 0.9, 0.8


def expectile_of(values: np.ndarray, tau: float) -> float:
    """The tau-expectile of a sample, by bisection on its defining equation."""
    low, high = values.min(), values.max()
    for _ in range(80):
        mid = (low + high) / 2
        u = values - mid
        if (np.where(u < 0, 1 - tau, tau) * u).sum() > 0:
            low = mid
        else:
            high = mid
    return (low + high) / 2


def fixed_point(transitions: list[tuple[int, int, float, int | None]], value: Callable[[np.ndarray], float]) -> tuple:
    """Q(s, a) = mean of r + gamma V(s'), V(s) = value of the Q of the logged actions at s, iterated until it stands."""
    q: dict[tuple[int, int], float] = {}
    v: dict[int, float] = dict.fromkeys({t[0] for t in transitions}, 0.0)
    for _ in range(2000):
        targets: dict[tuple[int, int], list[float]] = {}
        for s, a, r, after in transitions:
            targets.setdefault((s, a), []).append(r + (GAMMA * v[after] if after is not None else 0.0))
        q = {key: float(np.mean(x)) for key, x in targets.items()}
        new = {s: value(np.array([q[s, t[1]] for t in transitions if t[0] == s])) for s in v}
        change = max(abs(new[s] - v[s]) for s in v)
        v = new
        if change < 1e-10:
            break
    return q, v


def learn(
    rows: list[dict],
    vocab: int,
    steps: int,
    history: int | None = None,
    algo: ModuleType = ilql,
    cfg: Any = None,
    unseen: float = 0.0,
    rate: float = 0.3,
):
    """Full-batch training with targets that follow at once, at a decaying rate. unseen: Q of every token that is no
    action of the logs, before and, without a penalty, after."""
    cfg = ilql.Config(gamma=GAMMA, tau=TAU, cql_weight=0.0) if cfg is None else cfg
    model = table_model(vocab, **model_fields(algo, cfg))
    learner = Learner(model, algo, cfg)
    batch = collate(rows, gamma=GAMMA, bos=BOS, history=history).to("cpu", torch.float64)
    with torch.no_grad():
        for head in logits(model):
            head.out.bias.fill_(unseen)
            head.out.bias[batch.action] = 0.0
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (0.5 * (1 + np.cos(np.pi * i / steps)) + 1e-6)
        optimizer.zero_grad()
        sum(loss.mean() for loss in learner(batch).values()).backward()
        optimizer.step()
        model.update_targets(0.5)
    return model


@torch.no_grad()
def table(model, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    h = torch.eye(vocab, dtype=torch.float64)
    return model.q_values(h).numpy(), model.v(h).numpy()


def assert_fixed_point(rows, transitions, vocab, steps, value=None, **options):
    q, v = fixed_point(transitions, value or (lambda x: expectile_of(x, TAU)))
    model = learn(rows, vocab, steps, **options)
    got_q, got_v = table(model, vocab)
    for (s, a), want in q.items():
        assert got_q[s, a] == pytest.approx(want, abs=1e-3), f"Q({s}, {a})"
    for s, want in v.items():
        assert got_v[s] == pytest.approx(want, abs=1e-3), f"V({s})"
    return model


def walk(rng, step, starts, actions: int, first_action: int, limit: int, name: str):
    """One dialogue of one-token states and actions under random actions: (row, transitions)."""
    tokens, turn, reward, transitions = [BOS], [], [], []
    state, terminated = int(rng.choice(starts)), False
    while len(reward) < limit and not terminated:
        turn += [len(tokens), len(tokens) + 1]
        action = int(rng.integers(actions))
        tokens += [state, first_action + action]
        r, after = step(state, action)
        transitions.append((state, first_action + action, r, after))
        reward.append(r)
        terminated = after is None
        state = state if after is None else after
    start = list(range(2, len(tokens), 2))
    if not terminated:  # cut off: the state that followed is logged
        turn.append(len(tokens))
        tokens.append(state)
    made = row(tokens, start, [s + 1 for s in start], reward, turn=turn, terminated=terminated, name=name)
    return made, transitions


def gather(step, starts, actions, first_action, limit, n):
    rng = np.random.default_rng(0)
    pairs = [walk(rng, step, starts, actions, first_action, limit, f"d{i}") for i in range(n)]
    return [p[0] for p in pairs], [t for p in pairs for t in p[1]]


def chain(state: int, action: int):
    """Five cells in a row, tokens 1 to 5: left or right, -1 a step, past the right end +5 and over."""
    after = state + (1 if action else -1)
    if after > 5:
        return 5.0, None
    return -1.0, max(after, 1)


@pytest.mark.parametrize("limit", [60, 4], ids=["terminated", "mostly truncated"])
def test_chain(limit):
    rows, transitions = gather(chain, [1, 3, 5], 2, 6, limit, 60)
    assert any(r["terminated"] for r in rows)
    assert sum(not r["terminated"] for r in rows) > 20 or limit == 60
    assert_fixed_point(rows, transitions, 8, 1500)


def test_chain_in_windows():
    rows, transitions = gather(chain, [1, 3, 5], 2, 6, 20, 60)
    assert_fixed_point(rows, transitions, 8, 1500, history=1)


def test_maze():
    """The 25 cells as tokens 1 to 25, the four moves as tokens 26 to 29."""
    maze = Maze()
    texts: dict[str, int] = {}
    for seed in range(25):
        texts.setdefault(maze.reset(seed), len(texts) + 1)
    assert len(texts) == 25
    moves = ["move left", "move right", "move up", "move down"]
    after: dict[tuple[int, int], tuple[float, int | None]] = {}
    for seed in range(25):
        for a, move in enumerate(moves):
            state = texts[maze.reset(seed)]
            reply = maze.step(move)
            after[state, a] = (reply.reward, None if reply.terminated else texts[reply.text])
    rows, transitions = gather(lambda s, a: after[s, a], range(1, 26), 4, 26, 50, 40)
    assert_fixed_point(rows, transitions, 30, 1200)


def test_monte_carlo_returns_are_learned():
    rows, transitions = gather(chain, [1, 3, 5], 2, 6, 60, 60)
    model = table_model(8)
    learner = Learner(model, mc, mc.Config(gamma=GAMMA, cql_weight=0.0))
    batch = collate(rows, gamma=GAMMA, bos=BOS, bootstraps=False).to("cpu", torch.float64)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    for i in range(700):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - i / 700) + 1e-6
        optimizer.zero_grad()
        sum(loss.mean() for loss in learner(batch).values()).backward()
        optimizer.step()
    model.update_targets(1.0)
    got, _ = table(model, 8)
    seen: dict[tuple[int, int], list[float]] = {}
    for (s, a, _, _), ret in zip(transitions, batch.ret.tolist(), strict=True):
        seen.setdefault((s, a), []).append(ret)
    for (s, a), values in seen.items():
        assert got[s, a] == pytest.approx(np.mean(values), abs=1e-3)


def test_sarsa_learns_the_values_of_the_logs():
    rows, transitions = gather(chain, [1, 3, 5], 2, 6, 20, 60)
    assert_fixed_point(rows, transitions, 8, 1000, np.mean, algo=sarsa, cfg=sarsa.Config(gamma=GAMMA, cql_weight=0.0))


@pytest.mark.parametrize("unseen", [-100.0, 0.0], ids=["known to be bad", "unknown"])
def test_cql_takes_the_best_of_all_tokens(unseen):
    """Where every action is in the logs and the rest is known to be bad, Q is the optimal one; a token that no log has
    is believed, as nothing here says otherwise."""
    rows, transitions = gather(chain, range(1, 6), 2, 6, 2, 60)
    q, _ = fixed_point(transitions, lambda x: max(x.max(), unseen))
    cfg = cql.Config(gamma=GAMMA, cql_weight=0.0)
    got, _ = table(learn(rows, 8, 1500, algo=cql, cfg=cfg, unseen=unseen), 8)
    for (s, a), want in q.items():
        assert got[s, a] == pytest.approx(want, abs=1e-3), f"Q({s}, {a})"
    if unseen:
        best = np.array([5.0])  # from the last cell to the first: a step costs 1
        for _ in range(4):
            best = np.append(best, GAMMA * best[-1] - 1)
        assert [got[s, 7] for s in (5, 4, 3, 2, 1)] == pytest.approx(best.tolist(), abs=1e-3)


def soft_maximum(x: np.ndarray, beta: float) -> float:
    """beta log E exp(x / beta)."""
    return float(x.max() + beta * np.log(np.mean(np.exp((x - x.max()) / beta))))


def sparse_maximum(x: np.ndarray, alpha: float) -> float:
    """Where the mean of max(0, 1 + (x - v) / (2 alpha)) is 1, by bisection."""
    low, high = x.min(), x.max()
    for _ in range(80):
        mid = (low + high) / 2
        low, high = (mid, high) if np.clip(1 + (x - mid) / (2 * alpha), 0, None).mean() > 1 else (low, mid)
    return (low + high) / 2


@pytest.mark.parametrize(("name", "value"), [("gumbel", soft_maximum), ("sparse", sparse_maximum)])
def test_other_losses_of_v_have_their_own_fixed_points(name, value):
    rows, transitions = gather(chain, range(1, 6), 2, 6, 2, 60)
    cfg = ilql.Config(gamma=GAMMA, cql_weight=0.0, v_loss=name, v_temperature=1.5)
    assert_fixed_point(rows, transitions, 8, 2000, lambda x: value(x, 1.5), cfg=cfg)


@pytest.mark.parametrize(("beta", "clip"), [(0.7, 1e6), (0.7, 1.5), (0.0, 20.0)], ids=["free", "clipped", "cloning"])
def test_awac_trains_the_improvement_into_the_actor(beta, clip):
    """pi(a | s) is the logs' policy, weighed by min(exp(beta A), clip)."""
    rows, transitions = gather(chain, range(1, 6), 2, 6, 2, 60)
    cfg = awac.Config(gamma=GAMMA, tau=TAU, beta=beta, clip=clip)
    model = assert_fixed_point(rows, transitions, 8, 1400, algo=awac, cfg=cfg)
    q, v = fixed_point(transitions, lambda x: expectile_of(x, TAU))
    weight = {(s, a): min(np.exp(beta * (value - v[s])), clip) for (s, a), value in q.items()}
    policy = torch.softmax(model.lm.out.weight.detach().T, -1).numpy()
    for (s, a), w in weight.items():
        count = sum(t[:2] == (s, a) for t in transitions)
        total = sum(weight[t[:2]] for t in transitions if t[0] == s)
        assert policy[s, a] == pytest.approx(count * w / total, abs=2e-3), f"pi({a} | {s})"


def shares(transitions) -> tuple[dict, dict]:
    """The logs' policy: pi(a | s) of every logged pair, and the actions of every state."""
    pairs = [t[:2] for t in transitions]
    actions: dict[int, set[int]] = {}
    for s, a in pairs:
        actions.setdefault(s, set()).add(a)
    return {(s, a): pairs.count((s, a)) / sum(p[0] == s for p in pairs) for s, a in pairs}, actions


def q_sft_fixed_point(transitions, low: float, high: float, vocab: int, rest: str) -> dict:
    """p(a | s) of the logged pairs: pi w, and where the rest goes to all other tokens alike a share of theirs."""
    pi, actions = shares(transitions)
    p = dict.fromkeys(pi, 0.0)
    for _ in range(2000):
        v = {s: low + (high - low) * min(1, max(p[s, a] / pi[s, a] for a in actions[s])) for s in actions}
        targets: dict[tuple[int, int], list[float]] = {}
        for s, a, r, after in transitions:
            targets.setdefault((s, a), []).append(r + (GAMMA * v[after] if after is not None else 0.0))
        w = {key: (np.mean(y) - low) / (high - low) for key, y in targets.items()}
        assert all(0 <= x <= 1 for x in w.values())
        left = {key: pi[key] * (1 - w[key]) for key in pi}
        new = {
            (s, a): pi[s, a] * w[s, a]
            + (rest == "uniform") * sum(left[s, b] for b in actions[s] if b != a) / (vocab - 1)
            for s, a in pi
        }
        change = max(abs(new[key] - p[key]) for key in p)
        p = new
        if change < 1e-12:
            break
    return p


@pytest.mark.parametrize("rest", ["dummy", "uniform"])
def test_q_sft_learns_values_as_likelihoods(rest):
    """With a dummy action the ratio to the logs' policy is the optimal Q; spread over a small vocabulary the rest is
    believed."""
    rows, transitions = gather(chain, range(1, 6), 2, 6, 2, 60)
    low, high = -12.0, 30.0
    cfg = q_sft.Config(gamma=GAMMA, low=low, high=high, rest=rest)
    want = q_sft_fixed_point(transitions, low, high, 8, rest)
    pi, _ = shares(transitions)
    got, _ = table(learn(rows, 8, 1500, algo=q_sft, cfg=cfg, unseen=-100.0 if rest == "dummy" else 0.0), 8)
    p = (got - low) / (high - low)
    for (s, a), x in want.items():
        assert p[s, a] == pytest.approx(x, abs=1e-3), f"p({a} | {s})"
    if rest == "dummy":
        q, _ = fixed_point(transitions, np.max)
        for key, x in want.items():
            assert low + (high - low) * x / pi[key] == pytest.approx(q[key], abs=1e-6)


@pytest.mark.parametrize("algo", [cql, ilql])
def test_a_calibrated_penalty_stops_at_the_returns(algo):
    """One state, one action, return G: tokens that nobody took come down to G and no further, those below it stay. The
    action stands d above G, where 2 d = w (1 - e^d / (e^d + 7)); a plain penalty drives the others on and on."""
    g, w = 2.0, 0.5
    data = [row([BOS, 1, 7], [2], [3], [g], turn=[1, 2])]
    for unseen, low, high in ((3.0, g - 0.6, g), (-3.0, -3.0, -3.0)):
        cfg = algo.Config(gamma=GAMMA, cql_weight=w, calibrated=True)
        q = table(learn(data, 8, 400, algo=algo, cfg=cfg, unseen=unseen, rate=0.02), 8)[0][1]
        assert (low <= q[:7]).all()
        assert (q[:7] <= high).all()
        d = q[7] - g
        assert 2 * d == pytest.approx(w * 7 / (np.exp(d) + 7), abs=2e-3)
    plain = algo.Config(gamma=GAMMA, cql_weight=w)
    assert (table(learn(data, 8, 600, algo=algo, cfg=plain, rate=0.02), 8)[0][1][:7] < g - 4).all()


def test_a_decision_transformer_gets_what_it_is_told():
    """Two turns, token 6 earns 1 and token 7 nothing, every pair logged once. The policy is the logs' share of actions
    among the turns with that return to go, so the largest return and the smallest one are had for certain."""
    rows = [
        row([BOS, 1, a, 1, b], [2, 4], [3, 5], [a == 6, b == 6], turn=[1, 2, 3, 4], name=f"{a}{b}")
        for a in (6, 7)
        for b in (6, 7)
    ]
    cfg = dt.Config()
    told = [dt.prepare(r, lambda text: [2 + int(text.removeprefix("return "))], cfg) for r in rows]
    model = learn(told, 8, 500, algo=dt, cfg=cfg)
    with torch.no_grad():
        policy = model.get_output_embeddings()(torch.eye(8, dtype=torch.float64)).softmax(-1)
    for to_go, share in ((2, 1.0), (1, 0.75), (0, 0.0)):
        assert policy[2 + to_go, 6].item() == pytest.approx(share, abs=5e-3)
        assert policy[2 + to_go, 7].item() == pytest.approx(1 - share, abs=5e-3)
