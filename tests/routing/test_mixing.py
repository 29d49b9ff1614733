"""Figures of mixed settings: what a hull over noise promises on its own problems, and what it is worth on others."""

from __future__ import annotations

import numpy as np
import pytest

from stepwise.errors import DataError
from stepwise.routing.estimates import of_draws
from stepwise.routing.metrics import OperatingPoint, frontier_area
from stepwise.routing.mixing import Mixed, halves


def mixes(n: int, settings: int, seed: int, lift: float = 0.0) -> Mixed:
    """Settings that hand a share of the problems over at random; each answer is right with a chance of its own."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.0, 1.0, *rng.uniform(size=settings)])
    handed = rng.random((settings + 2, n)) < shares[:, None]
    chance = np.where(handed, 0.9, 0.4) + lift * ((shares > 0) & (shares < 1))[:, None]
    return Mixed(100.0 * handed, (rng.random(handed.shape) < chance).astype(float), samples=200)


def naive(mixed: Mixed) -> float:
    weak, strong, *rest = (OperatingPoint(*p) for p in zip(mixed.cost.mean(1), mixed.correct.mean(1), strict=True))
    area = frontier_area(rest, weak, strong)
    assert area is not None
    return area


def test_a_hundred_random_settings_are_worth_a_half_and_their_own_hull_says_more() -> None:
    worlds = [mixes(200, 100, seed) for seed in range(30)]
    assert np.mean([naive(world) for world in worlds]) > 0.56
    figures = [of_draws(world.area()) for world in worlds]
    assert np.mean([one.value for one in figures]) == pytest.approx(0.5, abs=0.015)
    assert sum(one.low <= 0.5 <= one.high for one in figures) >= 26
    gains = [world.gain_at(0.3)[0] for world in worlds]
    assert np.mean(gains) == pytest.approx(0.0, abs=0.015)


def test_settings_that_are_worth_something_are_found_worth_it() -> None:
    world = mixes(4000, 4, 1, lift=0.1)
    assert 0.6 < world.area()[0] == pytest.approx(naive(world), abs=0.02)
    assert world.gain_at(0.5)[0] == pytest.approx(0.1, abs=0.03)
    assert world.cpt(0.8)[0] < 0.7  # mixing the two models alone: 0.8


def test_the_two_models_alone_are_worth_a_half_whatever_the_halves() -> None:
    world = mixes(40, 0, 2)
    assert of_draws(world.area()).value == pytest.approx(0.5)
    assert of_draws(world.cpt(0.5)).value == pytest.approx(0.5)
    assert of_draws(world.gain_at(0.5)).value == pytest.approx(0.0, abs=1e-9)


def test_entries_on_the_same_problems_are_compared_on_the_same_draws() -> None:
    world = mixes(200, 5, 3)
    same = Mixed(world.cost.copy(), world.correct.copy(), samples=200)
    difference = of_draws(world.area() - same.area())
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    dearer = Mixed(np.vstack([world.cost[:2], 1.1 * world.cost[2:]]), world.correct, samples=200)
    assert of_draws(dearer.area() - world.area()).value < 0


def test_nothing_can_be_gained_where_the_strong_model_is_worse_or_costs_no_more() -> None:
    world = mixes(40, 3, 4)
    worse = Mixed(world.cost, np.vstack([world.correct[1], world.correct[0], world.correct[2:]]))
    assert of_draws(worse.area()).value is None
    assert of_draws(worse.cpt(0.5)).value is None
    free = Mixed(np.vstack([world.cost[1], world.cost[0], world.cost[2:]]), world.correct)
    assert of_draws(free.area()).value is None


def test_halves_and_what_is_refused() -> None:
    here, there = halves(9)
    assert (len(here), len(there), sorted(here + there)) == (4, 5, list(range(9)))
    assert halves(9) == halves(9) != halves(9, 1)
    with pytest.raises(DataError, match="4 problems or more"):
        Mixed(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(DataError, match="both models alone"):
        Mixed(np.zeros((1, 9)), np.zeros((1, 9)))
