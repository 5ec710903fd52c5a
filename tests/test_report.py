"""Intervals, tables and report files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ilql import report
from ilql.report import Interval, bootstrap, crossed, table, write_json


def test_the_interval_agrees_with_theory() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400).tolist()
    mean, low, high = bootstrap(values)
    error = 1.96 * np.std(values) / 20
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    assert low == pytest.approx(mean - error, abs=0.03)
    assert high == pytest.approx(mean + error, abs=0.03)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = [
        low <= 0 <= high for _, low, high in (bootstrap(rng.normal(size=60).tolist(), 0.95, 500) for _ in range(400))
    ]
    assert 0.90 <= np.mean(hits) <= 0.98


def test_every_episode_can_be_drawn() -> None:
    for place in range(4):
        values = [0.0] * 4
        values[place] = 8.0
        assert bootstrap(values).high >= 4.0


def test_confidence_widens() -> None:
    values = list(range(30))
    assert bootstrap(values, 0.99).low < bootstrap(values, 0.8).low


def test_same_values_same_interval_and_another_seed_another() -> None:
    values = [1.0, 5.0, 2.0, 8.0]
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, resamples=50) != bootstrap(values, resamples=50, seed=1)


def test_constants_and_single_values_have_no_width() -> None:
    assert bootstrap([2.0] * 5) == (2.0, 2.0, 2.0)
    assert bootstrap([7.0]) == (7.0, 7.0, 7.0)


def test_values_without_a_meaning_are_not_counted() -> None:
    assert bootstrap([4.0, None, None]) == (4.0, 4.0, 4.0)
    assert bootstrap([2.0, None, 4.0]).mean == 3.0
    assert all(math.isnan(number) for number in bootstrap([None, None]))
    assert all(math.isnan(number) for number in bootstrap([]))


def test_groups_are_drawn_whole() -> None:
    values, groups = [0.0, 1.0] * 50, [i // 2 for i in range(100)]
    assert bootstrap(values, groups=groups) == (0.5, 0.5, 0.5)  # every group has the same mean
    doubled = [float(i % 7) for i in range(60) for _ in range(2)]
    pairs = bootstrap(doubled, groups=[i // 2 for i in range(120)])
    assert pairs == pytest.approx(bootstrap(doubled[::2]))  # a copy of every episode is no more knowledge
    assert bootstrap(doubled).high < pairs.high


def test_chunks_do_not_lose_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=50).tolist()
    whole = bootstrap(values)
    monkeypatch.setattr(report, "_CHUNK", 170)  # 3 resamples at a time; 10,000 is no multiple of it
    assert bootstrap(values) == whole


def test_runs_and_episodes_are_both_drawn() -> None:
    rng = np.random.default_rng(5)
    luck = rng.normal(0, 3, (8, 1))
    same = np.broadcast_to(luck, (8, 50))  # a run's episodes are all alike: eight draws are all there is
    mean, low, high = crossed(same.tolist())
    assert (mean, low, high) == pytest.approx(bootstrap(luck[:, 0].tolist(), seed=1), abs=0.15)
    alike = np.broadcast_to(rng.normal(0, 3, 50), (8, 50)).tolist()  # runs that play alike tell what one tells
    assert crossed(alike) == pytest.approx(bootstrap(alike[0]), abs=0.1)
    both = (luck + rng.normal(0, 3, 50)).tolist()
    assert crossed(both).high - crossed(both).low > crossed(same.tolist()).high - crossed(same.tolist()).low
    assert crossed(both, groups=[i // 2 for i in range(50)]) != crossed(both)
    assert crossed([[1.0, None, 3.0], [None, None, 8.0]]).mean == 4.0
    assert all(math.isnan(x) for x in crossed([[None], [None]]))
    assert crossed([[2.0, 2.0], [2.0, 2.0]]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("values", "options", "says"),
    [
        ([1.0], {"confidence": 1.0}, "between 0 and 1"),
        ([1.0], {"groups": [1, 2]}, "2 groups, 1 values"),
        ([1.0, math.nan], {}, "not finite"),
    ],
)
def test_bad_values(values: list[float], options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bootstrap(values, **options)


def test_table() -> None:
    rows = [
        {"policy": "beta 0", "return": Interval(-89.0, -90.25, -0.001), "n": 25},
        {"policy": "a|b", "steps": 1.5, "return": Interval(math.nan, math.nan, math.nan)},
    ]
    assert table(rows).splitlines() == [
        "| policy | return                | n   | steps |",
        "| ------ | --------------------- | --- | ----- |",
        "| beta 0 | -89.00 [-90.25, 0.00] | 25  | –     |",
        "| a\\|b   | –                     | –   | 1.5   |",
    ]


def test_json_keeps_numbers_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    write_json(path, {"b": Interval(1.0, 0.5, math.nan), "a": [{"x": (1, None, "é")}]})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "a": [{"x": [1, None, "é"]}],
        "b": {"mean": 1.0, "low": 0.5, "high": None},
    }
    with pytest.raises(FileExistsError):
        write_json(path, {})
