"""The loss curves of 20 steps are those that were stored: a change of the mathematics has to be meant."""

from __future__ import annotations

import json

import pytest

from ilql.algos import ALGOS
from tests.golden import make


@pytest.mark.parametrize("name", [*ALGOS, *make.VARIANTS])
def test_the_curve_is_the_stored_one(name):
    stored = json.loads(make.path(name).read_text(encoding="utf-8"))
    got = make.curve(name)
    assert len(stored) == len(got) == 20
    for step, (want, have) in enumerate(zip(stored, got, strict=True)):
        assert have == pytest.approx(want, rel=1e-9, abs=1e-12), f"step {step}"


@pytest.mark.parametrize("name", ALGOS)
def test_the_curve_falls(name):
    stored = json.loads(make.path(name).read_text(encoding="utf-8"))
    totals = [sum(row.values()) for row in stored]
    assert sum(totals[-5:]) < 0.9 * sum(totals[:5])


def test_every_curve_has_its_algorithm():
    curves = {p.stem for p in make.HERE.glob("*.json")} - {"rows"}
    assert curves == {*ALGOS, *make.VARIANTS}


def test_the_stored_dialogues_reach_every_kind_of_transition():
    rows = make.rows()
    follows = [len(r["tokens"]) > r["end"][-1] for r in rows]
    assert {(bool(r["terminated"]), bool(f)) for r, f in zip(rows, follows, strict=True)} == {
        (True, False),
        (False, True),
        (False, False),
    }
