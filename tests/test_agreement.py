"""Statistics of agreement against independent ones and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import linregress, spearmanr
from sklearn.metrics import roc_auc_score

from ilql import agreement


def test_auc_equals_an_independent_one_with_ties():
    rng = np.random.default_rng(0)
    value, label = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.4
    assert agreement.auc(value, label) == pytest.approx(roc_auc_score(label, value), abs=1e-12)
    assert agreement.auc(np.array([1.0, 2, 3]), np.array([False, True, True])) == 1
    assert np.isnan(agreement.auc(np.array([1.0, 2]), np.array([True, True])))


def test_ranks_share_ties_and_correlate():
    assert agreement.ranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]
    assert agreement.rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 8, 27])) == pytest.approx(1)
    assert agreement.rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert np.isnan(agreement.rank_correlation(np.array([1.0, 1]), np.array([1.0, 2])))


def test_explained_variance():
    outcome = np.array([0.0, 1, 2])
    assert agreement.explained_variance(outcome + 5, outcome) == 1
    assert agreement.explained_variance(np.zeros(3), outcome) == 0
    assert np.isnan(agreement.explained_variance(outcome, np.ones(3)))


def test_correlations_and_slope_equal_independent_ones():
    rng = np.random.default_rng(1)
    x = rng.integers(0, 9, 60).astype(float)
    y = 0.3 * x + rng.normal(size=60)
    assert agreement.rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    line = linregress(x, y)
    assert agreement.slope(x, y) == pytest.approx(line.slope, abs=1e-12)
    assert agreement.correlation(x, y) == pytest.approx(line.rvalue, abs=1e-12)
    for statistic in (agreement.slope, agreement.correlation):
        assert np.isnan(statistic(np.ones(4), np.arange(4.0)))
        assert np.isnan(statistic(np.ones(1), np.ones(1)))


def test_bins_hold_equally_many_from_the_lowest_up():
    value, outcome = np.array([5.0, 1, 3, 2, 4, 6]), np.array([50.0, 10, 30, 20, 40, 60])
    assert agreement.bins(value, outcome, 3) == [(1.5, 15), (3.5, 35), (5.5, 55)]
    assert agreement.bins(value[:2], outcome[:2], 3) == [(1, 10), (5, 50)]


def test_what_differs_by_rounding_alone_is_equal():
    value, outcome = np.array([1.0, 1.0 + 1e-15, 1.0 - 1e-15, 2.0]), np.array([3.0, 1.0, 2.0, 4.0])
    assert len(np.unique(agreement.level(value))) == 2
    assert [x for _, x in agreement.bins(value, outcome, 4)] == [1, 2, 3, 4]
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(agreement.bins(value[order], outcome[order], 2), agreement.bins(value, outcome, 2))
    assert agreement.level(np.array([])).tolist() == []
    assert agreement.level(np.ones(2)).tolist() == [1, 1]
