"""The rules of filtering against exact sums, and against simulation where there is no closed form."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from stepwise.errors import ConfigError, DataError
from stepwise.interventions.filtering import (
    INT_PRIOR,
    Beta,
    _next_to_compare,
    fit_beta,
    ranked,
    replay,
)
from stepwise.interventions.settings import CollectSettings


@pytest.mark.parametrize(("floor", "miss"), [(0.1, 0.3), (0.1, 0.05), (0.5, 0.5), (0.5, 0.25), (0.02, 0.9), (0.9, 0.1)])
def test_a_candidate_is_given_up_at_the_first_n_at_which_the_bound_holds(floor: float, miss: float) -> None:
    n = CollectSettings(floor=floor, miss=miss).drop_after
    assert n is not None
    fails, bound = 1 - Fraction(str(floor)), Fraction(str(miss))
    assert fails**n <= bound < fails ** (n - 1)


def test_a_miss_of_zero_never_gives_up_and_numbers_out_of_range_are_refused() -> None:
    assert CollectSettings(miss=0.0).drop_after is None
    for floor, miss in ((0.0, 0.5), (1.0, 0.5), (0.1, 1.0), (0.1, -0.1)):
        with pytest.raises(ConfigError, match="floor" if miss == 0.5 else "miss"):
            CollectSettings(floor=floor, miss=miss)


def rule(
    guided: int = 32, enough: int | None = 1, floor: float = 0.1, miss: float = 0.3, batch: int = 8
) -> CollectSettings:
    return CollectSettings(guided=guided, enough=enough, floor=floor, miss=miss, batch=batch, accept="success")


def test_a_candidate_at_the_floor_is_lost_no_more_often_than_stated() -> None:
    rng, settings, n = random.Random(0), rule(floor=0.2, miss=0.2), 4000
    lost = sum(replay([rng.random() < 0.2 for _ in range(32)], settings)[0] == 0 for _ in range(n))
    assert settings.drop_after == 8
    assert abs(lost / n - 0.8**8) < 0.025


@pytest.mark.parametrize(
    ("settings", "outcomes", "seen"),
    [
        (rule(32, 1, 0.1, 0.3), "0" * 32, (0, 12)),  # batches of 2, 2, 4, 4
        (rule(32, 1, 0.1, 0.3), "1" + "0" * 31, (1, 2)),
        (rule(32, 1, 0.1, 0.3), "0001" + "0" * 28, (1, 4)),
        (rule(32, 1, 0.1, 0.3), "0" * 12 + "1" * 20, (0, 12)),
        (rule(32, 2, 0.1, 0.3), "01" + "0" * 30, (1, 32)),  # with a success it is not given up
        (rule(32, 1, 0.1, 0.0), "0" * 31 + "1", (1, 32)),
        (rule(32, None, 0.1, 0.0), "1" * 32, (32, 32)),
        (rule(32, None, 0.5, 0.1), "0" * 32, (0, 4)),
        (rule(5, 1, 0.1, 0.0), "0" * 5, (0, 5)),
        (rule(32, 1, 0.1, 0.3, batch=1), "001" + "0" * 29, (1, 3)),
    ],
)
def test_a_rule_stops_where_it_says(settings: CollectSettings, outcomes: str, seen: tuple[int, int]) -> None:
    assert replay([digit == "1" for digit in outcomes], settings) == seen


def test_no_order_of_outcomes_takes_more_than_the_worst_case_and_some_order_takes_it() -> None:
    rng = random.Random(1)
    for settings in (rule(), rule(32, 2, 0.1, 0.3), rule(32, None, 0.1, 0.3, 4), rule(7, 1, 0.1, 0.0)):
        taken = {
            replay([rng.random() < p for _ in range(32)], settings)[1] for p in (0.0, 0.05, 0.3) for _ in range(300)
        }
        assert max(taken) == settings.worst_filtering()[0]


def test_fewer_outcomes_than_a_rule_asks_for_are_refused() -> None:
    with pytest.raises(DataError, match="asks for 4 rollouts, and 3 are there"):
        replay([False] * 3, rule())


def test_the_chances_of_a_beta_distribution_are_those_of_draws_from_it() -> None:
    prior, rng = Beta(0.4, 1.7), random.Random(2)
    rates = [rng.betavariate(prior.a, prior.b) for _ in range(60_000)]
    fails = sum((1 - rate) ** 5 for rate in rates) / len(rates)
    assert abs(prior.fails(5) - fails) < 0.005
    above = [rate for rate in rates if rate >= 0.1]
    assert abs(prior.found_above(0.1, 5) - (1 - sum((1 - rate) ** 5 for rate in above) / len(above))) < 0.005
    cost = sum(sum((1 - rate) ** k for k in range(5)) for rate in rates) / len(rates)
    assert abs(prior.cost(5) - cost) < 0.02
    assert abs(prior.rate() - sum(rates) / len(rates)) < 0.005
    assert prior.rate(3, 4) == pytest.approx(3.4 / 6.1)


def test_the_fit_to_the_published_counts_gives_them_back_and_what_they_allow() -> None:
    prior = fit_beta(20_170 / 472_320, 2_213 / 14_766)
    assert (prior.a, prior.b) == (pytest.approx(INT_PRIOR.a, rel=1e-3), pytest.approx(INT_PRIOR.b, rel=1e-3))
    assert prior.rate() == pytest.approx(20_170 / 472_320)
    assert 1 - prior.fails(32) == pytest.approx(2_213 / 14_766)
    n = next(n for n in range(1, 33) if prior.found(n) >= 0.95)
    assert 32 / prior.cost(n) == pytest.approx(1.4, abs=0.05)
    assert 32 / prior.cost(8) == pytest.approx(4.3, abs=0.05)
    assert prior.found(8) == pytest.approx(0.70, abs=0.01)
    assert prior.found_above(0.1, 8) == pytest.approx(0.90, abs=0.005)
    assert prior.found_above(0.1, 12) == pytest.approx(0.95, abs=0.005)


def test_counts_that_no_beta_distribution_has_are_refused() -> None:
    for mean, found in ((0.2, 0.1), (0.0, 0.5), (0.01, 0.9)):
        with pytest.raises(DataError, match="no beta distribution"):
            fit_beta(mean, found)


def test_the_best_has_the_highest_posterior_mean_and_the_two_best_take_turns() -> None:
    counts = {"lucky": (1, 2), "known": (20, 32), "poor": (1, 12), "none": (0, 4)}
    assert ranked(counts) == ["known", "lucky", "poor", "none"]  # 1 of 2 says less than 20 of 32
    assert _next_to_compare(counts) == "lucky"
    assert _next_to_compare(counts | {"lucky": (30, 40)}) == "known"
    assert ranked({"x": (1, 2), "y": (1, 2)}) == ["x", "y"]
