"""Figures with intervals over problems: hand-made outcomes, coverage of a known truth, and what is not reached."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stepwise.errors import DataError
from stepwise.routing.compare import Measured, TraceView
from stepwise.routing.estimates import COSTS, Estimate, Outcomes, _figures, _split_cpt, by_family, estimate
from stepwise.routing.metrics import OperatingPoint, cost_of, cpt, cpt_interpolated, delta_ibc, frontier_area, pgr
from stepwise.types import Problem, Step, Trace, Usage

TRUTH = {"low": (0.6, 20.0), "middle": (0.8, 50.0), "high": (0.88, 90.0)}  # accuracy, mean cost


def simulated(count: int, seed: int) -> tuple[Outcomes, Outcomes, list[Outcomes]]:
    """Weak solves 40 % at no cost, strong 90 % at 100; whether a problem is hard is common to all settings."""
    rng = np.random.default_rng(seed)
    hardness = rng.random(count)

    def arm(label: str, accuracy: float, cost: float) -> Outcomes:
        spent = cost * rng.uniform(0.5, 1.5, count) if cost else np.zeros(count)
        return Outcomes(label, tuple((hardness < accuracy).astype(float).tolist()), tuple(spent.tolist()))

    return arm("weak", 0.4, 0), arm("strong", 0.9, 100), [arm(label, *truth) for label, truth in TRUTH.items()]


def test_figures_are_those_of_the_points_with_intervals_around_them() -> None:
    weak, strong, settings = simulated(400, 1)
    found = _figures(settings, weak, strong, samples=300)
    points, ends = [s.point for s in settings], (weak.point, strong.point)
    assert found.problems == 400
    for setting, point in zip(settings, points, strict=True):
        assert found.pgr[setting.label].value == pytest.approx(pgr(point, *ends))
        assert found.delta_ibc[setting.label].value == pytest.approx(delta_ibc(point, *ends))
    for x in (0.5, 0.8, 0.95):
        assert found.cpt_measured[x].value == pytest.approx(cpt(points, *ends, x))
        mixed = cpt_interpolated(points, *ends, x)
        assert mixed is not None
        assert found.cpt_mixed[x].value == pytest.approx(mixed / strong.point.cost, abs=0.08)  # told by halves
    assert found.area is not None
    assert found.area.value == pytest.approx(frontier_area(points, *ends), abs=0.03)
    for one in (*found.pgr.values(), *found.delta_ibc.values(), found.area, found.cpt_mixed[0.5]):
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high
    assert _figures(settings, weak, strong, samples=300) == found
    assert _figures(settings, weak, strong, samples=300, seed=1) != found


def test_a_95_percent_interval_covers_the_truth_about_so_often() -> None:
    covered = 0
    for seed in range(60):
        weak, strong, settings = simulated(150, seed)
        one = _figures(settings[1:2], weak, strong, levels=(), samples=200, seed=seed).pgr["middle"]
        assert one.low is not None
        assert one.high is not None
        covered += one.low <= 0.8 <= one.high
    assert 51 <= covered <= 60


def test_a_level_that_is_not_reached_is_none_and_what_some_resamples_reach_has_no_upper_end() -> None:
    weak, strong, settings = simulated(300, 2)
    found = _figures(settings[:2], weak, strong, samples=300)
    assert found.cpt_measured[0.95] == Estimate(None, None, None, 0.0)
    mixed = found.cpt_mixed[0.95]  # with the strong model
    assert mixed.value is not None
    assert mixed.value < 0.95
    assert found.cpt_split[0.95] is None
    edge = found.cpt_measured[0.8]  # the middle setting recovers 80 % in truth, so about half of the resamples do
    assert 0.1 < edge.defined < 0.9
    assert edge.low is not None
    assert edge.high is None


def test_what_is_not_defined_in_a_resample_is_left_out_and_counted() -> None:
    weak, strong = Outcomes("weak", (0.0, 1.0), (0.0, 0.0)), Outcomes("strong", (1.0, 1.0), (9.0, 9.0))
    found = _figures([replace(weak, label="idle")], weak, strong, samples=200)
    assert found.delta_ibc["idle"] == Estimate(None, None, None, 0.0)  # it costs no more than weak
    assert 0.6 < found.pgr["idle"].defined < 0.9  # a quarter of the resamples have the second problem alone: no gap
    assert found.pgr["idle"].value == found.pgr["idle"].high == 0


def test_a_difference_of_two_routers_is_paired_over_problems() -> None:
    weak, strong, settings = simulated(400, 3)
    worse = [replace(s, cost=tuple(1.2 * c for c in s.cost)) for s in settings]
    count = len(settings)

    def ratio(points: list[OperatingPoint]) -> float | None:
        ours = cpt_interpolated(points[2 : 2 + count], points[0], points[1], 0.6)
        theirs = cpt_interpolated(points[2 + count :], points[0], points[1], 0.6)
        return None if ours is None or theirs is None else theirs / ours

    one = estimate(ratio, [weak, strong, *settings, *worse], samples=200)
    assert one.value == pytest.approx(1.2, abs=1e-6)
    assert one.low == pytest.approx(1.2, abs=1e-6)
    assert one.high == pytest.approx(1.2, abs=1e-6)


def test_the_split_measures_on_problems_that_did_not_choose() -> None:
    weak, strong, settings = simulated(2000, 4)
    chosen = _split_cpt(settings, weak, strong, 0.7, seed=5)
    assert chosen is not None
    assert chosen.label == "middle"
    assert chosen.cost != pytest.approx(settings[1].point.cost, abs=1e-9)
    assert chosen.pgr == pytest.approx(0.8, abs=0.1)
    # Settings that do nothing but noise are chosen for what they seem; the other half knows better.
    rng = np.random.default_rng(6)
    noise = [Outcomes(str(i), tuple((rng.random(60) < 0.6).astype(float)), (float(i),) * 60) for i in range(40)]
    flat = Outcomes("strong", (0.9,) * 60, (100.0,) * 60)
    lucky = [_split_cpt(noise, Outcomes("weak", (0.4,) * 60, (0.0,) * 60), flat, 0.6, seed=s) for s in range(20)]
    assert np.mean([one.pgr for one in lucky if one is not None]) < 0.55
    assert _split_cpt([noise[0].part([0])], noise[0].part([0]), noise[0].part([0]), 0.5) is None


def measured(strong_tokens: int, parameters: float | None) -> Measured:
    def trace(i: int) -> Trace:
        draft = Step("x", "weak", usage=Usage("w", 1, 10, 10, 5))
        steps = (
            Step("a", "weak", usage=Usage("w", 1, 10, 10, 5)),
            Step("b", "strong", usage=Usage("s", 1, 20, 20, strong_tokens + i), discarded=(draft,)),
        )
        return Trace(Problem(str(i), "q"), steps, "answer")

    views = tuple(TraceView(trace(i), "p", "CORRECT" if i else "WRONG", parameters) for i in range(2))
    return Measured("p", "p", 0.5, views, cost_of([view.trace for view in views]))


def test_outcomes_of_measured_traces_come_at_three_costs() -> None:
    arms = {cost: Outcomes.of(measured(7, 300.0), cost) for cost in COSTS}
    assert {cost: arm and arm.cost for cost, arm in arms.items()} == {
        "strong_tokens": (7, 8),
        "all_tokens": (17, 18),
        "parameter_tokens": (300, 300),
    }
    assert arms["all_tokens"] is not None
    assert arms["all_tokens"].correct == (0, 1)
    assert arms["all_tokens"].point == OperatingPoint(17.5, 0.5)
    assert Outcomes.of(measured(7, None), "parameter_tokens") is None
    ungraded = measured(7, None)
    views = (replace(ungraded.views[0], verdict=""), ungraded.views[1])
    with pytest.raises(DataError, match="no gold answer"):
        Outcomes.of(replace(ungraded, views=views))


def test_every_family_gets_its_figures_at_each_cost_that_is_known() -> None:
    never, always = (replace(measured(n, None), family=name) for n, name in ((0, "never"), (30, "always")))
    never = replace(never, views=tuple(replace(view, verdict="WRONG") for view in never.views))
    found = by_family([never, measured(7, None), always], samples=50)
    assert list(found) == ["p"]
    assert found["p"]["parameter_tokens"] is None
    strong_tokens = found["p"]["strong_tokens"]
    assert strong_tokens is not None
    assert strong_tokens.pgr["p"].value == 1.0
    assert strong_tokens.cpt_measured[0.95].value == 7.5
    assert by_family([never, measured(7, None)]) == {}


def test_outcomes_that_do_not_go_together_are_refused() -> None:
    weak, strong, settings = simulated(10, 7)
    with pytest.raises(DataError, match=r"2 verdicts and 1 costs"):
        Outcomes("x", (0.0, 1.0), (1.0,))
    with pytest.raises(DataError, match="not a finite number"):
        Outcomes("x", (0.0,), (float("inf"),))
    with pytest.raises(DataError, match=r"\[9, 10\] problems"):
        _figures([settings[0].part(range(9))], weak, strong)
    with pytest.raises(DataError, match="must differ in their label"):
        _figures([settings[0], settings[0]], weak, strong)
    with pytest.raises(DataError, match="samples is 0"):
        _figures(settings, weak, strong, samples=0)
    with pytest.raises(DataError, match="confidence is 1"):
        _figures(settings, weak, strong, samples=5, confidence=1)
