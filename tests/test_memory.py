"""Value learning where the last observation is no state: with a table over whole histories it finds the best policy
that remembers, with a table over last observations it cannot be better than the best that does not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets_prep import door, recall
from datasets_prep.build import Options, build
from examples.memory import TASKS
from ilql.algos import ilql
from ilql.config import load_config
from ilql.decode import load
from ilql.envs import door as doors
from ilql.envs import recall as words
from ilql.rollout import rollout
from ilql.trainer import train as train_run
from ilql.types import Episode, Turn
from tests import pomdps
from tests.scripted import Scripted
from tests.test_tabular import learn, table
from tests.toys import BOS, row

ROOT = Path(__file__).resolve().parents[1]


def seen(turns: Sequence[Turn], history: int | None) -> Hashable:
    """The state before the agent speaks: the last turns, or all of them."""
    return tuple(turn.text for turn in (turns if history is None else turns[-history:]))


def train(logs: Sequence[Episode], history: int | None, steps: int = 400) -> Scripted:
    """The greedy policy of ILQL's Q, states and utterances being one token each. It says the first utterance where it
    never was."""
    said = sorted({turn.text for e in logs for turn in e.turns if turn.is_action})
    number: dict[Hashable, int] = {text: 1 + i for i, text in enumerate(said)}
    rows: list[dict[str, Any]] = []
    for e in logs:
        tokens, reward = [BOS], []
        for i, turn in enumerate(e.turns):
            if turn.is_action:
                tokens += [number.setdefault(seen(e.turns[:i], history), 1 + len(number)), number[turn.text]]
                reward.append(turn.reward)
        start = list(range(2, len(tokens), 2))
        rows.append(row(tokens, start, [s + 1 for s in start], reward, turn=list(range(1, len(tokens)))))
    size = 1 + len(number)
    cfg = ilql.Config(gamma=0.9, tau=0.95, cql_weight=0.0)
    q, _ = table(learn(rows, size, steps, cfg=cfg, unseen=-200.0), size)
    best = {state: said[int(q[token, 1 : 1 + len(said)].argmax())] for state, token in number.items()}
    return Scripted(lambda turns: best.get(seen(turns, history), said[0]))


def worth(policy: Scripted, make: Any, episodes: int) -> float:
    return float(np.mean([e.total_reward for e in rollout(policy, make, range(episodes), progress=False)]))


def logs_of(corpus: Any, count: int, longest: int, **options: Any) -> list[Episode]:
    """The shorter ones, which keeps the table small: how long they are does not depend on what they were answered."""
    found = list(corpus.episodes([], seed=0, dialogues=count, **options))
    return [e for e in found if e.terminated and sum(turn.is_action for turn in e.turns) <= longest]


@pytest.mark.parametrize(("history", "want"), [(None, 1.0), (1, 0.5)])
def test_a_word_of_long_ago(history, want):
    policy = train(logs_of(recall, 600, 4, delay=3, cues=2), history)
    assert worth(policy, words.make(delay=3, cues=2), 40) == want
    world = pomdps.recall(3, 2)
    assert want == pytest.approx(pomdps.with_memory(world) if history is None else pomdps.best_deterministic(world))


@pytest.mark.parametrize(("history", "want"), [(None, -3.0), (1, -100.0)])
def test_the_aliased_corridor(history, want):
    policy = train(logs_of(door, 400, 6, variant="corridor"), history)
    assert worth(policy, doors.make("corridor"), 2) == want
    world = pomdps.corridor()
    assert want == (pomdps.with_memory(world) if history is None else pomdps.best_deterministic(world))


def test_a_policy_gradient_finds_the_coin_of_the_aliased_corridor(tmp_path):
    """The recipe itself, shortened, from logs of a fair coin (-12): the best coin has -11.66, and the worth of the one
    that is found is worked out."""
    options = {"variant": "corridor", "logp": True, "dialogues": 6000}
    build(Options("door", output=tmp_path / "data", tokenizer="word", turn_tokens=True, corpus_options=options))
    words = ["--data.path", str(tmp_path / "data"), "--output", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--steps", "60", "--optim.lr", ".01"]
    model, encoder = load(train_run(load_config(["--config", str(ROOT / "examples" / "door_ppo.yaml"), *words])))
    with torch.no_grad():
        tokens = torch.tensor([encoder.open([Turn("user", doors.BETWEEN)]).tokens])
        logits = model(input_ids=tokens).logits[0, -1].double()
    moves = [encoder.tokenizer.convert_tokens_to_ids(doors.GO[side]) for side in doors.SIDES]
    assert logits.softmax(0)[moves].sum() > 0.97
    policy = logits[moves].softmax(0)[None]
    world = pomdps.corridor()
    best, _ = pomdps.best_stochastic(world)
    assert pomdps.memoryless(world, policy) > best - 0.12 > pomdps.memoryless(world, torch.full((1, 2), 0.5).double())
    assert best > pomdps.best_deterministic(world) + 80


@pytest.mark.parametrize(("history", "low", "high"), [(None, 0.35, 0.65), (1, 0.05, 0.25)])
def test_listening_at_a_door(history, low, high):
    """.58 with memory, .15 without; what it never saw, more than four answers, costs it some."""
    policy = train(logs_of(door, 6000, 5, share=0.6), history)
    assert low < worth(policy, doors.make("listen"), 1000) < high


def test_the_figure_of_memory_draws_its_lines_where_the_best_policies_are():
    for name, world in {
        "recall": pomdps.recall(8, 4),
        "listen": pomdps.listen(),
        "corridor": pomdps.corridor(),
    }.items():
        with_memory, without = pomdps.with_memory(world), pomdps.best_deterministic(world)
        assert TASKS[name].best == {
            "full": pytest.approx(with_memory, abs=0.005),
            "1": pytest.approx(without, abs=0.005),
        }
