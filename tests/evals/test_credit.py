"""Gradients of credit schemes beside the true advantage's: cosines on made-up gradients, and moved first errors."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from evals import credit
from evals.training_arms import pool_of

RIGHT = np.array([0.0, 0.5, 0.25, 1.0] * 5)


def told(gradients: np.ndarray) -> credit.Told:
    return credit.Told(gradients.astype(np.float32), np.abs(gradients).sum(axis=1) > 0, 12_000)


def truth() -> credit.Told:
    """Every group's gradient is the same direction plus noise; groups without a spread have none."""
    noise = np.random.default_rng(0).normal(size=(20, 8)) / 10
    return told((np.eye(8)[0] + noise) * ((RIGHT > 0) & (RIGHT < 1))[:, None])


def test_the_truth_agrees_with_itself_whatever_its_length() -> None:
    true = truth()
    made = credit.compared(told(3 * true.gradients), true, RIGHT)
    assert made["same"] == pytest.approx((1, 1, 1), abs=1e-6)
    assert made["mixed"] == pytest.approx((1, 1, 1), abs=1e-6)
    assert made["size"] == pytest.approx((3, 3, 3), abs=1e-5)
    assert 0.9 < made["others"][0] < 1
    assert made["signal"] == 0.5
    assert made["signal where all are wrong"] == 0


def test_a_gradient_across_the_truth_and_one_against_it() -> None:
    true = truth()
    across = told(np.tile(np.eye(8)[1], (20, 1)))
    assert abs(credit.compared(across, true, RIGHT)["mixed"][0]) < 0.2
    against = credit.compared(told(-true.gradients), true, RIGHT)
    assert against["same"][0] == pytest.approx(-1, abs=1e-6)
    nothing = credit.compared(told(np.zeros((20, 8))), true, RIGHT)
    assert (nothing["same"][0], nothing["size"][0], nothing["signal"]) == (0, 0, 0)


def test_what_pushes_where_the_truth_is_silent_is_seen_in_all_groups_only() -> None:
    true = truth()
    made = told(true.gradients + 2 * np.eye(8)[2] * (RIGHT == 0)[:, None])
    found = credit.compared(made, true, RIGHT)
    assert found["mixed"][0] == pytest.approx(1, abs=1e-6)
    assert found["same"][0] < 0.8
    assert found["signal where all are wrong"] == 1


def test_first_errors_are_moved_and_stay_inside_the_solution() -> None:
    pool = pool_of(10)
    steps = ["nonsense", "more", "and more"]
    places = [credit.located(shift, 10)(pool[0].problem, steps) for shift in (-1, 0, 1)]
    assert places == [0, 0, 1]


def test_the_table_fits_80_columns() -> None:
    rows = {name: credit.compared(truth(), truth(), RIGHT) for name in (credit.TRUTH, *credit.WAYS)}
    rows["first_error, scorer"]["same"] = (-0.55, -0.75, -0.15)
    rows["first_error, scorer"]["others"] = (-0.55, -0.75, -0.15)
    text = io.StringIO()
    Console(file=text, width=80).print(credit.shown(rows))
    assert "…" not in text.getvalue()
    assert "-.55 -.75 -.15" in text.getvalue()
