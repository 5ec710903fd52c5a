"""Lines of the table: gains over a partner in the same games, and runs taken together."""

from __future__ import annotations

import numpy as np
import pytest

from ilql.scoreboard import PARTNER_ROW, Row, one, several

POINTS = "points (all)"


def rows(shift: float = 0.0) -> list[Row]:
    """A partner whose games differ widely, and a policy that gets 1 more in each."""
    shared = np.random.default_rng(4).normal(0, 50, 100)
    groups = [i // 2 for i in range(100)]
    partner = Row(PARTNER_ROW, 0.0, {POINTS: shared.tolist()}, groups, [])
    return [partner, Row("beta-4", 4.0, {POINTS: (shared + 1 + shift).tolist()}, groups, [])]


def test_a_gain_leaves_out_what_both_share() -> None:
    lines, results = one(rows(), POINTS)
    assert [line["policy"] for line in lines] == ["partner, both sides", "beta 4"]
    assert "gain in points (all)" not in lines[0]
    assert lines[1]["gain in points (all)"] == pytest.approx((1, 1, 1))
    assert results[1]["metrics"]["gain in points (all)"] == lines[1]["gain in points (all)"]
    assert results[1]["metrics"][POINTS].high > 5


def test_runs_are_taken_together_row_by_row() -> None:
    lines, results = several([rows(), rows(2.0), rows(4.0)], POINTS)
    gain = lines[1]["gain in points (all)"]
    assert gain == pytest.approx((3, 1, 5), abs=1e-9), "the luck of three runs, and none of the games that they share"
    assert results[1]["means of runs"]["gain in points (all)"] == pytest.approx([1, 3, 5])
    assert (lines[1]["runs"], lines[1]["n"]) == (3, 100)
    low, high = lines[1][f"runs' {POINTS}"].split(" to ")
    assert float(high) - float(low) == pytest.approx(4)


def test_values_without_a_meaning_are_left_out() -> None:
    row = [Row("beta-0", 0.0, {"return": [1.0, 2.0], "answer": [None, 4.0]}, [0, 1], [])]
    none = [Row("beta-0", 0.0, {"return": [3.0, 2.0], "answer": [None, None]}, [0, 1], [])]
    (line,), (result,) = several([row, none], "return")
    assert line["answer"].mean == 4
    assert result["means of runs"]["answer"] == [4.0, None]
