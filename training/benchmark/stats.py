"""Confidence of shares and differences: plain numbers in and out.

Two checkpoints with the same questions are compared in pairs. Pairs with equal results carry no information about the
difference. McNemar's exact test checks whether the other pairs split like coin flips; the interval of the difference
comes from resampling the pairs. Means over several things per task (drawings, tokens) are ratios; their intervals come
from resampling the tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000


def wilson(successes: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share."""
    if total == 0:
        return 0.0, 1.0
    share, square = successes / total, z * z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at(k: int, right: int, total: int) -> float:
    """The unbiased estimate of pass@k: the probability that one of k responses, drawn from `total`, is right.

    Raises:
        ValueError: k is not between 1 and `total`, or `right` not between 0 and it.
    """
    if not 1 <= k <= total or not 0 <= right <= total:
        raise ValueError(f"pass@{k} cannot be estimated from {right} right of {total} responses")
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


def paired(first: Sequence[bool], second: Sequence[bool], *, seed: int = 0) -> dict[str, Any]:
    """Compare the second with the first on the same questions.

    Returns:
        ``tasks``, ``accuracy`` of both, ``difference`` (second minus first) with its 95 % bootstrap interval
        ``difference_ci95``, the four counts ``both_right, only_first, only_second, both_wrong``, and ``p_value`` of
        McNemar's exact two-sided test.

    Raises:
        ValueError: lists of different lengths, or empty ones.
    """
    total = len(first)
    if total != len(second) or not total:
        raise ValueError(f"pairs are needed: {len(first)} and {len(second)} answers")
    both = sum(a and b for a, b in zip(first, second, strict=True))
    only_first, only_second = sum(map(bool, first)) - both, sum(map(bool, second)) - both
    low, high = _bootstrap(only_first, only_second, total, seed)
    return {
        "tasks": total,
        "accuracy": [round((both + only_first) / total, 4), round((both + only_second) / total, 4)],
        "difference": round((only_second - only_first) / total, 4),
        "difference_ci95": [round(low, 4), round(high, 4)],
        "both_right": both,
        "only_first": only_first,
        "only_second": only_second,
        "both_wrong": total - both - only_first - only_second,
        "p_value": mcnemar(only_first, only_second),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value: the probability that coin flips split the differing pairs at least as unevenly."""
    differing = only_first + only_second
    tail = sum(math.comb(differing, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**differing))


def _bootstrap(only_first: int, only_second: int, total: int, seed: int) -> tuple[float, float]:
    """Resample pairs: the counts of the three kinds (first only, second only, equal) are multinomial."""
    alike = total - only_first - only_second
    shares = np.array([only_first, only_second, alike], float) / total
    drawn = np.random.default_rng(seed).multinomial(total, shares, RESAMPLES)
    differences = (drawn[:, 1] - drawn[:, 0]) / total
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(low), float(high)


Part = tuple[float, float]  # of one task: a sum, and its number of terms


def ratio(rows: Sequence[Part], *, seed: int = 0) -> tuple[float, float, float] | None:
    """Sum of all sums over sum of all counts, with the 95 % bootstrap interval; None if nothing was counted."""
    if not sum(count for _, count in rows):
        return None
    return _spread(_ratio(np.array([rows], float).sum(1))[0], _resampled(rows, seed))


def ratio_difference(
    first: Sequence[Part], second: Sequence[Part], *, seed: int = 0
) -> tuple[float, float, float] | None:
    """The second ratio minus the first over the same tasks, and its 95 % interval: tasks are resampled jointly.

    Raises:
        ValueError: lists of different lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs are needed: {len(first)} and {len(second)} tasks")
    one, two = ratio(first, seed=seed), ratio(second, seed=seed)
    if one is None or two is None:
        return None
    return _spread(two[0] - one[0], _resampled(second, seed) - _resampled(first, seed))


def rank_correlation(
    tasks: Sequence[Sequence[tuple[float, float]]], *, seed: int = 0
) -> tuple[float, float, float] | None:
    """Spearman's correlation of pairs that belong to tasks, with its 95 % interval from resampling tasks.

    None if one of the two is the same everywhere.
    """
    pairs = [np.array(task, float).reshape(-1, 2) for task in tasks if len(task)]
    value = _spearman(np.concatenate(pairs)) if pairs else math.nan
    if math.isnan(value):
        return None
    draw = np.random.default_rng(seed)
    chosen = (draw.integers(0, len(pairs), len(pairs)) for _ in range(RESAMPLES // 10))
    return _spread(value, np.array([_spearman(np.concatenate([pairs[i] for i in some])) for some in chosen]))


def _spearman(pairs: np.ndarray) -> float:
    """The correlation of the ranks of two columns [n, 2]; NaN if one is constant."""
    ranks = []
    for column in pairs.T:
        _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])  # ties share their mean rank
    first, second = ranks
    if first.std() == 0.0 or second.std() == 0.0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _resampled(rows: Sequence[Part], seed: int) -> np.ndarray:
    total = len(rows)
    times = np.random.default_rng(seed).multinomial(total, np.full(total, 1 / total), RESAMPLES // 5)
    return _ratio(times @ np.array(rows, float))


def _ratio(sums: np.ndarray) -> np.ndarray:
    """[R, 2] -> [R], NaN if nothing was counted."""
    ratios: np.ndarray = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
    return ratios


def _spread(value: float, resampled: np.ndarray) -> tuple[float, float, float]:
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return float(value), float(low), float(high)
