"""Calibration: what it makes of scores that are off, and of scores that say nothing."""

from __future__ import annotations

import doctest
import itertools
import math
import random

import pytest

from stepwise.errors import DataError
from stepwise.models.scorers import calibration
from stepwise.models.scorers.calibration import Calibration, calibration_error, fit_calibration


def overconfident(n: int, seed: int) -> tuple[list[float], list[float]]:
    """Scores whose logit is three times too large and one too high."""
    rng, scores, labels = random.Random(seed), [], []
    for _ in range(n):
        true = rng.gauss(0.5, 1.0)
        labels.append(float(rng.random() < 1 / (1 + math.exp(-true))))
        scores.append(1 / (1 + math.exp(-3 * true - 1)))
    return scores, labels


@pytest.mark.parametrize(("kind", "bound"), [("platt", 0.03), ("isotonic", 0.04), ("temperature", 0.07)])
def test_a_fit_on_some_problems_mends_the_scores_of_others(kind: calibration.CalibrationKind, bound: float) -> None:
    fitted = fit_calibration(*overconfident(2000, 0), kind)
    scores, labels = overconfident(4000, 1)
    assert calibration_error(scores, labels) > 0.15
    mended = [fitted(score) for score in scores]
    assert calibration_error(mended, labels) < bound
    order = sorted(range(len(scores)), key=scores.__getitem__)
    assert all(mended[a] <= mended[b] for a, b in itertools.pairwise(order))
    assert all(0 <= value <= 1 for value in map(fitted, (0.0, 1.0)))


def test_platt_finds_slope_and_offset_and_no_slope_is_infinite() -> None:
    fitted = fit_calibration(*overconfident(20_000, 2))
    assert fitted.slope == pytest.approx(1 / 3, abs=0.02)
    assert fitted.offset == pytest.approx(-1 / 3, abs=0.05)
    apart = fit_calibration([0.9, 0.8, 0.2, 0.1], [1.0, 1.0, 0.0, 0.0])
    assert 0.5 < apart(0.9) < 0.99
    soft = fit_calibration([0.9] * 50 + [0.1] * 50, [0.7] * 50 + [0.2] * 50)
    assert soft(0.9) == pytest.approx(0.7, abs=0.02)


def test_scores_that_fall_where_labels_rise_become_the_share_of_right_steps() -> None:
    fitted = fit_calibration([0.1, 0.2, 0.8, 0.9] * 10, [1.0, 1.0, 0.0, 1.0] * 10)
    assert fitted(0.2) == pytest.approx(fitted(0.8), abs=0.01) == pytest.approx(0.74, abs=0.02)
    assert fitted(0.2) <= fitted(0.8)


def test_nothing_is_fitted_to_labels_that_are_equal() -> None:
    with pytest.raises(DataError, match="not all equal"):
        fit_calibration([0.1, 0.2], [1.0, 1.0])
    with pytest.raises(DataError, match="slope"):
        Calibration(slope=0.0)
    assert not doctest.testmod(calibration).failed
