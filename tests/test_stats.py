"""Intervals: Wilson's by hand, and the one bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stepwise.errors import DataError
from stepwise.stats import auroc, bootstrap, percentile, resamples, wilson


def test_wilson_by_hand_and_at_the_ends() -> None:
    interval = wilson(8, 10)
    assert (round(interval.value, 4), round(interval.low, 4), round(interval.high, 4)) == (0.8, 0.4902, 0.9433)
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1
    with pytest.raises(DataError):
        wilson(11, 10)
    with pytest.raises(DataError):
        wilson(0, 0)


def test_the_bootstrap_of_differences_over_the_same_problems_is_narrow_and_repeatable() -> None:
    base = np.array([i % 2 for i in range(200)], float)
    gaps = np.array([i % 20 == 0 and i % 2 == 0 for i in range(200)], float)
    gap = bootstrap(lambda rows: float(gaps[rows].mean()), 200)
    assert gap is not None
    assert gap.value == pytest.approx(0.05)
    assert 0 < gap.low < gap.value < gap.high < 0.1
    assert bootstrap(lambda rows: float(gaps[rows].mean()), 200) == gap
    assert bootstrap(lambda rows: float((base - base)[rows].mean()), 200) == (0.0, 0.0, 0.0)
    with pytest.raises(DataError):
        bootstrap(lambda rows: 0.0, 0)


def test_every_statistic_sees_the_same_resamples_which_are_those_of_the_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=40)
    rows = list(resamples(40, 300, seed=7))
    assert rows[0].tolist() == list(range(40))
    assert [len(each) for each in rows] == [40] * 301
    assert all(np.array_equal(a, b) for a, b in zip(rows, resamples(40, 300, seed=7), strict=True))
    interval = bootstrap(lambda rows: float(values[rows].mean()), 40, samples=300, seed=7)
    assert interval == percentile([float(values[each].mean()) for each in rows])
    assert interval is not None
    assert interval.value == pytest.approx(values.mean())
    assert interval.low < interval.value < interval.high


def test_resamples_without_a_value_are_left_out_and_infinite_ones_reach_the_end_of_the_interval() -> None:
    assert bootstrap(lambda rows: None, 3, samples=5) is None
    found = bootstrap(lambda rows: None if rows[0] == 1 else float(rows[0]), 3, samples=50)
    assert found is not None
    assert (found.low, found.high) == (0.0, 2.0)
    low, high = percentile([1.0, *[1.0] * 50, *[math.inf] * 50])[1:]
    assert low == 1.0
    assert not math.isfinite(high)
    with pytest.raises(DataError, match="n is 0"):
        bootstrap(lambda rows: 0.0, 0)
    with pytest.raises(DataError, match="confidence is 1"):
        percentile([1.0, 2.0], 1)


def test_auroc_counts_ties_as_half() -> None:
    assert auroc([2.0, 1.0], [1.0, 0.0]) == pytest.approx(3.5 / 4)
    assert math.isnan(auroc([], [1.0]))
