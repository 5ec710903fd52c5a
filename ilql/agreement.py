"""How well one column of numbers tells another: the few statistics by which values are judged, as pure functions."""

from __future__ import annotations

import numpy as np


def level(values: np.ndarray) -> np.ndarray:
    """Rounded to a millionth of their range: numbers that differ by the rounding of a computation are equal."""
    step = 1e-6 * float(np.ptp(values)) if len(values) else 0.0
    return np.round(values / step) * step if step else values


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank."""
    _, spread, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[spread]


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Chance that a positive scores above a negative (ties half); nan where one class is missing."""
    positive = int(label.sum())
    negative = len(label) - positive
    if not positive or not negative:
        return float("nan")
    return float((ranks(score)[label].sum() - positive * (positive + 1) / 2) / (positive * negative))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; nan where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; nan where one of them does not vary."""
    return correlation(ranks(a), ranks(b))


def explained_variance(value: np.ndarray, outcome: np.ndarray) -> float:
    """1 - var(outcome - value) / var(outcome): 1 is perfect, 0 is a constant's; nan where the outcome is constant."""
    variance = float(outcome.var())
    return float(1 - (outcome - value).var() / variance) if variance else float("nan")


def slope(value: np.ndarray, outcome: np.ndarray) -> float:
    """How much the outcome rises where the value rises by 1 (least squares): 1 is right, below it values are spread too
    far; nan where the value does not vary."""
    if len(value) < 2 or np.ptp(value) == 0:
        return float("nan")
    return float(((value - value.mean()) * (outcome - outcome.mean())).mean() / value.var())


def bins(value: np.ndarray, outcome: np.ndarray, count: int) -> list[tuple[float, float]]:
    """Mean value and mean outcome in `count` bins of equally many, from the lowest values up (equal ones by their
    outcome, so that the order of the numbers does not matter); fewer bins where there are fewer numbers."""
    parts = np.array_split(np.lexsort((outcome, level(value))), count)
    return [(float(value[part].mean()), float(outcome[part].mean())) for part in parts if len(part)]
