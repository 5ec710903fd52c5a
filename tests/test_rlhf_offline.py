"""The example that goes from preferences to a policy: what it measures by hand, and that all of it runs."""

import contextlib
import io
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from datasets_prep import __main__ as builders
from examples import rlhf_offline
from ilql import annotate, cli, ope
from tests.test_learner import tiny


def test_the_best_of_n_is_that_of_all_draws() -> None:
    rng = np.random.default_rng(0)
    proxy, true = rng.random((8, 3)), rng.random((8, 3))
    for point in rlhf_offline.picked(proxy, true):
        n = point["at"]
        draws = [list(some) for some in combinations(range(8), n)]
        best = [[some[int(proxy[some, k].argmax())] for some in draws] for k in range(3)]
        for name, x in (("proxy", proxy), ("true", true)):
            wanted = np.mean([x[best[k], k].mean() for k in range(3)])
            assert point[name]["mean"] == pytest.approx(wanted, rel=1e-9)
        assert point["kl"]["mean"] == pytest.approx(np.log(n) - 1 + 1 / n)


@torch.no_grad()
def test_a_divergence_is_summed_over_the_states_of_a_walk() -> None:
    policy, clone = tiny(), tiny()
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.3 * torch.randn_like(weight)
    rows = [
        {"tokens": np.array(tokens), "start": np.array([start]), "end": np.array([len(tokens)])}
        for tokens, start in (([0, 3, 4, 5, 6], 2), ([0, 7, 2], 2), ([0, 3, 9, 9, 1, 2, 8, 4], 5))
    ]
    for beta in (None, 2.0):
        got = rlhf_offline.divergences(policy, clone, rows, **({} if beta is None else {"beta": beta}))
        for row, found in zip(rows, got, strict=True):
            total = 0.0
            for i in range(row["start"][0], row["end"][0]):
                state = torch.tensor(row["tokens"][None, :i])
                p, q = (m(state, beta=b).logits[0, -1].log_softmax(-1) for m, b in ((policy, beta), (clone, None)))
                total += float((p.exp() * (p - q)).sum())
            assert found == pytest.approx(total, rel=1e-6)
    assert rlhf_offline.divergences(clone, clone, rows) == pytest.approx([0, 0, 0], abs=1e-9)


def here(*words: str, log: Path) -> SimpleNamespace:
    """A command of the example, in this process."""
    mains: dict[str, Callable[[list[str]], int]] = {"datasets_prep": builders.main, "ilql.annotate": annotate.main}
    mains |= {"train.py": lambda rest: cli.main(["train", *rest]), "eval.py": ope.main}
    name, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = mains[name](list(rest))
    log.write_text(said.getvalue())
    assert status == 0, words
    return SimpleNamespace(wait=lambda: status)


def test_all_of_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rlhf_offline, "command", here)
    monkeypatch.setattr(rlhf_offline, "BETAS", (8.0,))
    monkeypatch.setattr(rlhf_offline, "KL_WEIGHTS", (0.1,))
    words = ["--short", "--output", str(tmp_path / "all")]
    assert rlhf_offline.main(words) == 0
    points: list[dict[str, Any]] = json.loads((tmp_path / "all" / "rlhf_offline.json").read_text())["points"]
    learned = {"ILQL", "ILQL without penalty", rlhf_offline.CHOICE[0], "PPO"}
    assert {point["method"] for point in points} == {"the clone", "best of n", *learned}
    assert points[0]["kl"]["mean"] == pytest.approx(0, abs=1e-9)
    assert (tmp_path / "all" / "rlhf_offline.png").stat().st_size > 5000
    assert "true reward above the clone's by" in capsys.readouterr().out
    assert rlhf_offline.main(words) == 2
