"""Figures of merit against hand-made numbers and against those that TRIM's published runs give."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.errors import DataError
from stepwise.routing.metrics import (
    OperatingPoint,
    accuracy_at,
    cheapest,
    cost_of,
    cpt,
    cpt_interpolated,
    delta_ibc,
    frontier_area,
    hull,
    pgr,
)
from stepwise.types import Problem, Step, Trace, Usage

# TRIM's public run files: Qwen2.5-1.5B -> 7B on MATH-500, target tokens per problem and accuracy in percent.
WEAK, STRONG = OperatingPoint(0, 36.4), OperatingPoint(494.8, 73.0)
THRESHOLDS = {
    0.10: OperatingPoint(98.2, 54.8),
    0.30: OperatingPoint(133.5, 65.4),
    0.50: OperatingPoint(163.8, 67.4),
    0.90: OperatingPoint(219.1, 71.4),
}
POMDP = [
    OperatingPoint(172.4, 68.4),
    OperatingPoint(127.0, 66.2),
    OperatingPoint(79.7, 55.6),
    OperatingPoint(34.2, 51.0),
]


@pytest.mark.parametrize(
    ("threshold", "gap", "share", "benefit"),
    [(0.10, 0.50, 19.9, 1.53), (0.30, 0.79, 27.0, 1.94), (0.50, 0.85, 33.1, 1.56), (0.90, 0.96, 44.3, 1.16)],
)
def test_the_published_threshold_runs_give_the_published_figures(
    threshold: float, gap: float, share: float, benefit: float
) -> None:
    point = THRESHOLDS[threshold]
    recovered, gained = pgr(point, WEAK, STRONG), delta_ibc(point, WEAK, STRONG)
    assert recovered is not None
    assert gained is not None
    assert round(recovered, 2) == gap
    assert 100 * point.cost / STRONG.cost == pytest.approx(share, abs=0.06)  # the published token counts are rounded
    assert gained == pytest.approx(benefit, abs=0.0051)


def test_cpt_of_the_published_runs() -> None:
    thresholds = list(THRESHOLDS.values())
    assert [cpt(thresholds, WEAK, STRONG, x) for x in (0.5, 0.8, 0.95)] == [98.2, 163.8, 219.1]
    assert [cpt(POMDP, WEAK, STRONG, x) for x in (0.5, 0.8, 0.95)] == [79.7, 127.0, None]


def test_interpolated_cpt_of_the_published_runs_is_on_the_hull_of_their_settings_and_the_two_models() -> None:
    # 50 % is 54.7: threshold 0.10 (98.2 tokens, 54.8 %) lies below the line from weak (0, 36.4) to 0.30 (133.5, 65.4)
    assert cpt_interpolated(THRESHOLDS.values(), WEAK, STRONG, 0.5) == pytest.approx(133.5 * 18.3 / 29.0)
    # 80 % is 65.68: between 0.30 (133.5, 65.4) and 0.90 (219.1, 71.4), which 0.50 (163.8, 67.4) lies below
    assert cpt_interpolated(THRESHOLDS.values(), WEAK, STRONG, 0.8) == pytest.approx(133.5 + 85.6 * 0.28 / 6)
    # 50 % by the plan: between 34.2 (51.0) and 127.0 (66.2); 95 % is 71.17, for which it takes the strong model
    assert cpt_interpolated(POMDP, WEAK, STRONG, 0.5) == pytest.approx(34.2 + 92.8 * 3.7 / 15.2)
    assert cpt_interpolated(POMDP, WEAK, STRONG, 0.95) == pytest.approx(172.4 + 322.4 * 2.77 / 4.6)


def test_interpolated_cpt_is_none_without_a_gap_and_refuses_a_share_outside_its_range() -> None:
    assert cpt_interpolated([], WEAK, STRONG, 0.5) == pytest.approx(STRONG.cost / 2)
    assert cpt_interpolated([STRONG], STRONG, WEAK, 0.5) is None
    with pytest.raises(DataError, match="must lie in"):
        cpt_interpolated([STRONG], WEAK, STRONG, 0)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(-5, 20)), max_size=8), st.sampled_from([0.1, 0.5, 0.8, 0.95, 1])
)
def test_interpolated_cpt_is_never_dearer_than_a_setting_or_than_mixing_the_two_models(
    raw: list[tuple[int, int]], x: float
) -> None:
    weak, strong = OperatingPoint(2, 0), OperatingPoint(20, 10)
    points = [OperatingPoint(c, a) for c, a in raw]
    measured, mixed = cpt(points, weak, strong, x), cpt_interpolated(points, weak, strong, x)
    index = cheapest(points, weak, strong, x)
    assert mixed is not None
    assert mixed <= weak.cost + x * (strong.cost - weak.cost) + 1e-9
    assert (measured is None) == (index is None)
    if measured is not None and index is not None:
        assert mixed <= measured
        assert points[index].cost == measured


def test_cpt_counts_a_point_that_reaches_the_share_only_up_to_rounding() -> None:
    weak, strong = OperatingPoint(0, 0.4), OperatingPoint(10, 0.9)
    point = OperatingPoint(3, 0.4 + 0.55 * 0.5)
    assert cpt([point], weak, strong, 0.55) == 3


@pytest.mark.parametrize("x", [0.0, -0.1, 1.01, math.nan])
def test_cpt_refuses_a_share_outside_its_range(x: float) -> None:
    with pytest.raises(DataError, match="must lie in"):
        cpt([STRONG], WEAK, STRONG, x)


def test_pgr_and_cpt_are_none_without_a_gap_and_where_strong_is_worse() -> None:
    assert pgr(OperatingPoint(1, 0.5), OperatingPoint(0, 0.4), OperatingPoint(9, 0.4)) is None
    assert cpt([OperatingPoint(1, 0.5)], OperatingPoint(0, 0.4), OperatingPoint(9, 0.4), 0.5) is None
    assert cpt([OperatingPoint(1, 0.3)], OperatingPoint(0, 0.4), OperatingPoint(9, 0.2), 0.5) is None
    assert pgr(OperatingPoint(1, 0.3), OperatingPoint(0, 0.4), OperatingPoint(9, 0.2)) is None


def test_delta_ibc_counts_only_the_cost_above_a_weak_model_that_is_not_free() -> None:
    weak, strong = OperatingPoint(100, 0.4), OperatingPoint(300, 0.8)
    assert delta_ibc(OperatingPoint(150, 0.6), weak, strong) == pytest.approx((0.2 / 50) / (0.4 / 200) - 1)
    assert delta_ibc(OperatingPoint(100, 0.6), weak, strong) is None
    assert delta_ibc(OperatingPoint(90, 0.6), weak, strong) is None
    assert delta_ibc(OperatingPoint(150, 0.6), weak, OperatingPoint(300, 0.4)) is None


@given(st.floats(0.01, 0.99))
def test_a_random_mix_gains_nothing(share: float) -> None:
    weak, strong = OperatingPoint(10, 0.3), OperatingPoint(210, 0.9)
    mix = OperatingPoint(10 + share * 200, 0.3 + share * 0.6)
    assert delta_ibc(mix, weak, strong) == pytest.approx(0, abs=1e-9)
    assert frontier_area([mix], weak, strong) == pytest.approx(0.5)


def test_the_hull_keeps_what_no_mixture_beats() -> None:
    points = [OperatingPoint(1, 0.5), OperatingPoint(2, 0.4), OperatingPoint(2, 0.7), OperatingPoint(3, 0.7)]
    assert hull(points) == [OperatingPoint(1, 0.5), OperatingPoint(2, 0.7)]
    assert hull([*points, OperatingPoint(3, 1.0)]) == [OperatingPoint(1, 0.5), OperatingPoint(3, 1.0)]


_POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12)


@given(_POINTS)
def test_no_point_lies_above_the_hull_which_rises_ever_less(raw: list[tuple[int, int]]) -> None:
    points = [OperatingPoint(c, a) for c, a in raw]
    best = hull(points)
    heights = [accuracy_at(best, point.cost) for point in points]
    assert all(y is not None and y >= point.accuracy - 1e-9 for point, y in zip(points, heights, strict=True))
    slopes = [(b.accuracy - a.accuracy) / (b.cost - a.cost) for a, b in pairwise(best)]
    assert all(first > second for first, second in pairwise([*slopes, 0.0]))


@given(_POINTS, st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_a_further_setting_never_lowers_the_area_nor_raises_what_a_share_of_the_gap_costs(
    raw: list[tuple[int, int]], further: tuple[int, int]
) -> None:
    weak, strong = OperatingPoint(2, 3), OperatingPoint(18, 15)
    points = [OperatingPoint(c, a) for c, a in raw]
    more = [*points, OperatingPoint(*further)]
    areas = [frontier_area(each, weak, strong) for each in ([], points, more)]
    assert None not in areas
    assert 0.5 - 1e-9 <= areas[0] <= areas[1] + 1e-9 <= areas[2] + 2e-9  # type: ignore[operator]
    costs = [cpt_interpolated(each, weak, strong, 0.7) for each in (points, more)]
    assert costs[1] <= costs[0] + 1e-9  # type: ignore[operator]


def test_frontier_area_by_hand() -> None:
    weak, strong = OperatingPoint(0, 0.0), OperatingPoint(10, 1.0)
    # (0, 0) - (2, 0.8) - (10, 1): 2 * 0.4 + 8 * 0.9 = 8 of 10
    assert frontier_area([OperatingPoint(2, 0.8)], weak, strong) == pytest.approx(0.8)
    # a point better than strong: (0, 0) - (5, 1.2), then flat: 5 * 0.6 + 5 * 1.2 = 9 of 10
    assert frontier_area([OperatingPoint(5, 1.2)], weak, strong) == pytest.approx(0.9)
    assert frontier_area([], weak, OperatingPoint(10, 0.0)) is None


def a_trace() -> Trace:
    """One kept weak step, one escalated step with its thrown-away draft, a last draft that came to nothing."""
    draft = Step("bad", "weak", usage=Usage("w", 1, 30, 5, 11))
    return Trace(
        Problem("p", "q"),
        (
            Step("one", "weak", usage=Usage("w", 1, 20, 20, 10)),
            Step("two", "strong", usage=Usage("s", 1, 30, 30, 7), discarded=(draft,)),
        ),
        "error",
        Usage("prm", 2, 50, 31, 0),
        abandoned=(Step("", "weak", usage=Usage("w", 1, 40, 8, 1)),),
    )


def test_cost_three_ways_by_hand() -> None:
    cost = cost_of([a_trace(), a_trace()], weak=2, strong=10, scorer=3)
    assert cost.strong_tokens == 2 * 7
    assert cost.all_tokens == 2 * (10 + 7 + 11 + 1)
    assert cost.discarded_tokens == 2 * (11 + 1)
    assert cost.parameter_tokens == 2 * (2 * (20 + 10 + 5 + 11 + 8 + 1) + 10 * (30 + 7) + 3 * 31)
    assert (cost.calls, cost.strong_calls, cost.problems) == (2 * 4, 2, 2)
    assert cost.strong_tokens_per_problem == 7


def test_parameter_tokens_are_unknown_where_a_size_is_unknown() -> None:
    assert cost_of([a_trace()], weak=2, strong=10).parameter_tokens is None
    idle = Trace(Problem("p", "q"), (Step("one", "weak", usage=Usage("w", 1, 2, 2, 3)),), "answer")
    assert cost_of([idle], weak=2).parameter_tokens == cost_of([idle], weak=2.0).parameter_tokens == 10
    with pytest.raises(DataError, match="no traces"):
        cost_of([])


def test_usage_is_split_by_author_and_adds_up_to_everything() -> None:
    spent = a_trace().usage
    assert set(spent) == {"weak", "strong", "scorer"}
    assert spent["weak"] == Usage("w", 3, 90, 33, 22)
