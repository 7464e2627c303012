"""Intervals and paired comparisons against numbers computed by hand."""

from __future__ import annotations

import pytest

from training.benchmark.stats import mcnemar, paired, pass_at, ratio, ratio_difference, wilson


def test_wilson_interval_matches_the_textbook() -> None:
    low, high = wilson(8, 10)
    # centre (.8 + 3.8416/20) / (1 + 3.8416/10) = .71674; half 1.96/1.38416 * sqrt(.016 + .009604) = .22658
    assert (low, high) == (pytest.approx(0.49016, abs=1e-4), pytest.approx(0.94332, abs=1e-4))
    assert wilson(0, 0) == (0.0, 1.0)


def test_pass_at_k_is_unbiased() -> None:
    assert [pass_at(1, right, 4) for right in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert pass_at(2, 1, 4) == 0.5  # 3 of the 6 pairs hold the right one
    assert pass_at(2, 2, 4) == pytest.approx(5 / 6)
    assert pass_at(8, 1, 8) == 1.0
    for k, right, total in ((0, 1, 4), (5, 1, 4), (2, 5, 4), (2, -1, 4)):
        with pytest.raises(ValueError, match="cannot be estimated"):
            pass_at(k, right, total)


def test_mcnemar_counts_differing_pairs() -> None:
    # 1 of 6 differing pairs: 2 * (C(6,0) + C(6,1)) / 64 = 14/64
    assert mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0


def test_pairs_are_compared_instead_of_shares() -> None:
    first = [True, True, False, False, True, False, True, False]
    second = [True, True, True, True, False, False, True, True]
    result = paired(first, second)
    assert (result["both_right"], result["only_first"], result["only_second"], result["both_wrong"]) == (3, 1, 3, 1)
    assert result["accuracy"] == [0.5, 0.75]
    assert result["difference"] == 0.25
    assert result["p_value"] == pytest.approx(10 / 16)  # 2 * (C(4,0) + C(4,1)) / 16
    low, high = result["difference_ci95"]
    assert low < 0.25 < high


def test_bootstrap_interval_matches_normal_width() -> None:
    # 1,000 pairs, 60 for the second and 20 for the first: variance (80/1000 - .04^2) / 1000, half width 1.96 * .008854
    first = [True] * 20 + [False] * 60 + [True] * 920
    second = [False] * 20 + [True] * 60 + [True] * 920
    low, high = paired(first, second)["difference_ci95"]
    assert low == pytest.approx(0.04 - 0.01735, abs=0.0015)
    assert high == pytest.approx(0.04 + 0.01735, abs=0.0015)
    assert paired(first, second, seed=1) == paired(first, second, seed=1)


def test_unequal_lists_are_rejected() -> None:
    with pytest.raises(ValueError, match="pairs are needed"):
        paired([True], [True, False])
    with pytest.raises(ValueError, match="pairs are needed"):
        paired([], [])


def test_ratio_weights_tasks_by_count() -> None:
    # 3 of 4 and 0 of 1 drawings: 3/5, not the mean of 3/4 and 0
    assert ratio([(3.0, 4.0), (0.0, 1.0)])[0] == pytest.approx(0.6)
    assert ratio([(0.0, 0.0)]) is None


def test_ratio_of_one_per_task() -> None:
    value, low, high = ratio([(1.0, 1.0)] * 300 + [(0.0, 1.0)] * 100)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5  # .0424
    assert value == 0.75
    assert (value - low, high - value) == (pytest.approx(half, rel=0.15), pytest.approx(half, rel=0.15))


def test_ratio_difference_is_paired_by_task() -> None:
    first = [(float(k % 7), 2.0) for k in range(200)]
    second = [(total + 1.0, count) for total, count in first]  # exactly one half more on every task
    value, low, high = ratio_difference(first, second)
    assert (value, low, high) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    apart = ratio_difference(first, second[::-1])  # the same values, paired with others
    assert apart[0] == pytest.approx(0.5)
    assert apart[2] - apart[1] > 0.1
    with pytest.raises(ValueError, match="pairs"):
        ratio_difference(first, second[1:])
