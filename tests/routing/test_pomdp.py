"""The exact solver against known answers on TRIM's published parameters, a model of our own, and full tree expansion.

Known answers on the published parameters (tests/data) are for the published hazard, from independent solvers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.errors import DataError
from stepwise.routing.pomdp import Plan, RoutingPomdp
from tests.published import TRIM
from tests.routing.pomdp_world import SMALL, SMALL_PRICES, critical_tokens, expand, random_model, simulate

PLACES = np.linspace(0, 1, 201)


@cache
def parameters() -> dict:
    return json.loads(TRIM.read_text())


@cache
def plan(cost: float = 0.25, published_hazard: bool = True, eps: float = 1e-5) -> Plan:
    return RoutingPomdp.from_dict(parameters()).solve(cost, eps, published_hazard)


@cache
def small(eps: float = 1e-8) -> Plan:
    return SMALL.solve(SMALL_PRICES, eps)


# TRIM's published parameters: (step, belief, worth of keeping, worth of the strong model, critical tokens)
PUBLISHED = [
    (0, (0.866, 0, 0.134), 58.16388, 50.57310, 29.64),
    (0, (0.3, 0.1, 0.6), 19.68145, 43.67802, 155.99),
    (5, (0.3, 0.1, 0.6), 23.82390, 55.89145, 188.27),
    (10, (0.4, 0.2, 0.4), 32.34688, 48.61694, 125.08),
    (29, (0.3, 0.1, 0.6), 28.05892, 68.04844, 219.96),
]
CORRECTED = [  # computed here with eps 1e-6
    (0, (0.866, 0, 0.134), 61.56581, 54.39993, 31.336),
    (0, (0.3, 0.1, 0.6), 20.83792, 47.10942, 165.086),
    (5, (0.3, 0.1, 0.6), 24.06083, 56.57741, 190.066),
    (10, (0.4, 0.2, 0.4), 32.21699, 48.35670, 124.559),
]
ROOTS = [  # cost per token, root value with the published hazard (known), with the corrected one (computed here)
    (0.05, 82.92137, 84.78128),
    (0.15, 72.82975, 75.77046),
    (0.25, 63.93817, 67.81264),
    (0.45, 48.78439, 54.07158),
    (0.65, 38.14755, 44.08723),
    (0.85, 33.49082, 38.67490),
]


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_values_of_both_actions_are_the_known_ones(case: tuple) -> None:
    step, belief, keep, strong, tokens = case
    assert plan().action_values(step, belief, 60) == pytest.approx((keep, strong), abs=2e-5)
    assert critical_tokens(plan(), step, belief) == pytest.approx(tokens, abs=6e-3)
    bounds = plan(eps=3e-4).action_bounds(step, belief, 60)
    for (low, high), known in zip(bounds, (keep, strong), strict=True):
        assert low - 6e-6 <= known <= high + 6e-6


@pytest.mark.parametrize("case", CORRECTED, ids=str)
def test_values_with_the_corrected_hazard_stay_what_they_are(case: tuple) -> None:
    step, belief, keep, strong, tokens = case
    corrected = plan(published_hazard=False)
    assert corrected.action_values(step, belief, 60) == pytest.approx((keep, strong), abs=2e-5)
    assert critical_tokens(corrected, step, belief) == pytest.approx(tokens, abs=2e-3)


def test_every_published_bound_of_the_continuation_overlaps_with_ours() -> None:
    rows = parameters()["reference_values"]["continuation"]
    assert len(rows) == 30
    for row in rows:
        for x, low, high in zip(row["x"], row["lo"], row["up"], strict=True):
            ours = plan().continuation(row["step"], x)
            assert ours[0] <= high + 1e-6, (row["step"], x)
            assert low - 1e-6 <= ours[1], (row["step"], x)


@pytest.mark.parametrize(("cost", "known", "corrected"), ROOTS)
def test_root_values_are_the_known_ones_at_every_price(cost: float, known: float, corrected: float) -> None:
    eps = 1e-4 if cost == 0.25 else 3e-4
    for value, hazard in ((known, True), (corrected, False)):
        low, high = plan(cost, hazard, eps).root_value
        assert low - 6e-6 <= value <= high + 6e-6
        assert high - low < 3 * eps


@pytest.mark.parametrize("cost", [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75])
def test_the_proven_gap_is_a_thousandth_of_a_point_at_every_published_price(cost: float) -> None:
    assert 0 < plan(cost, eps=3e-4).gap <= 1e-3


@pytest.mark.parametrize("cost", [0.05, 0.25, 0.75])
def test_with_the_corrected_hazard_the_gap_is_as_small(cost: float) -> None:
    assert 0 < plan(cost, published_hazard=False, eps=3e-4).gap <= 1e-3


def test_a_dear_strong_model_leaves_the_weak_one_alone() -> None:
    model = RoutingPomdp.from_dict(parameters())
    assert model.solve(1e4, published_hazard=True).root_value[1] == pytest.approx(31.784, abs=1e-3)
    assert model.solve(1e4).root_value[1] == pytest.approx(36.7, abs=0.05)


def accuracy_and_calls(model: RoutingPomdp, cost: float) -> tuple[float, float]:
    """Both at prices too small to change what is optimal: the root value falls with the price as calls are paid for."""
    free, paid = (sum(model.solve(c, 1e-6, published_hazard=True).root_value) / 2 for c in (cost, 2 * cost))
    calls = (free - paid) / (cost * model.tokens_per_step)
    return (free + cost * model.tokens_per_step * calls) / model.reward, calls


def test_without_observations_a_cheap_strong_model_is_always_called() -> None:
    blind = replace(RoutingPomdp.from_dict(parameters()), observation=((1.0,),) * 3, discount=1.0)
    assert accuracy_and_calls(blind, 1e-3) == pytest.approx((0.771834, 8.839341), abs=2e-6)


def test_with_the_state_in_sight_the_strong_model_is_called_at_first_errors_only() -> None:
    sight = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    seeing = replace(RoutingPomdp.from_dict(parameters()), observation=sight, discount=1.0)
    assert accuracy_and_calls(seeing, 1e-3) == pytest.approx((0.965598, 1.162245), abs=2e-6)


def test_published_models_and_hazards_are_found_by_name() -> None:
    model = RoutingPomdp.from_dict(
        parameters(), hazard="llm", weak="qwen2.5-7b-instruct", strong=["qwen3-8b", 0.999], observation="score"
    )
    assert (model.p_weak, *model.p_strong) == pytest.approx((0.970431544284, 0.992364637239, 0.999))
    assert model.hazard[2] == pytest.approx(0.012492427952)
    assert len(model.observation[0]) == 20
    with pytest.raises(DataError, match=r"'qwen9'.*'qwen3-8b'"):
        RoutingPomdp.from_dict(parameters(), strong="qwen9")
    with pytest.raises(DataError, match=r"hazard is 'none'.*'slm'"):
        RoutingPomdp.from_dict(parameters(), hazard="none")


def test_the_current_score_alone_is_worth_no_more_than_the_pair() -> None:
    score = RoutingPomdp.from_dict(parameters(), observation="score").solve(published_hazard=True)
    assert score.gap <= 1e-3
    assert score.root_value[0] < plan().root_value[1]


def test_following_the_plan_earns_the_root_value_on_published_parameters() -> None:
    solved = plan(published_hazard=False)
    mean, error = simulate(solved, 20_000, seed=3)
    assert abs(mean - solved.root_value[0]) < 3 * error


# A model of our own: (step, belief, last, worth of keeping and of either strong model, critical tokens)
OWN = [
    (0, (0.6, 0.1, 0.3), False, (48.3393955836, 67.5094474138, 62.8296050178), 115.850259),
    (1, (0.3, 0.2, 0.5), False, (23.6831687013, 61.6221510634, 56.6182668976), 209.694912),
    (3, (0.2, 0.5, 0.3), False, (17.192, 39.22275, 33.16055), 130.15375),
    (2, (0.4, 0.1, 0.5), True, (40.0, 81.5, 77.1), 227.5),
]


@pytest.mark.parametrize("case", OWN, ids=str)
def test_a_model_of_our_own_keeps_its_values(case: tuple) -> None:
    step, belief, last, values, tokens = case
    assert small().action_values(step, belief, 20, last=last) == pytest.approx(values, abs=1e-7)
    assert critical_tokens(small(), step, belief, last=last) == pytest.approx(tokens, abs=1e-5)


def test_a_model_of_our_own_keeps_its_root_values_under_both_hazards() -> None:
    assert small().root_value == pytest.approx((79.459377156, 79.459377156), abs=1e-7)
    assert SMALL.solve(SMALL_PRICES, 1e-8, published_hazard=True).root_value[0] == pytest.approx(74.038624024, abs=1e-7)


def test_following_the_plan_earns_the_root_value() -> None:
    mean, error = simulate(small(), 100_000, seed=1)
    assert abs(mean - small().root_value[0]) < 3 * error


@pytest.mark.parametrize("seed", range(16))
def test_random_small_models_agree_with_full_tree_expansion(seed: int) -> None:
    model, prices = random_model(seed)
    rng, published_hazard = np.random.default_rng(seed), seed % 3 == 0
    solved = model.solve(prices, 1e-8, published_hazard)
    for step in (1, 2, 4):
        belief = rng.dirichlet(np.ones(3))
        exact = expand(model, prices, published_hazard, step, belief)
        assert solved.action_values(step, belief, model.tokens_per_step) == pytest.approx(exact, abs=1e-6)
        coarse = model.solve(prices, 0.1, published_hazard).action_bounds(step, belief, model.tokens_per_step)
        for (low, high), value in zip(coarse, exact, strict=True):
            assert low - 1e-9 <= value <= high + 1e-9


def test_the_root_value_agrees_with_full_tree_expansion_where_the_first_step_may_be_the_last() -> None:
    model = replace(SMALL, hazard=(0.0, 0.3, 0.4, 1.0))
    prior, total = np.array([0.85, 0, 0.15]), 0.0
    for column in np.asarray(model.observation).T:
        total += 0.3 * max(expand(model, SMALL_PRICES, False, 0, prior * column, last=True))
        total += 0.7 * max(expand(model, SMALL_PRICES, False, 0, prior * column))
    assert model.solve(SMALL_PRICES, 1e-8).root_value == pytest.approx((total, total), abs=1e-6)


@given(seed=st.integers(0, 10_000), eps=st.sampled_from([1e-4, 1e-2, 0.5]))
def test_both_bounds_are_convex_and_grow_from_nothing_and_the_gap_is_the_largest_distance(
    seed: int, eps: float
) -> None:
    model, prices = random_model(seed)
    solved = model.solve(prices, eps)
    for curve in solved.curves:
        low, high = curve.bounds(PLACES)
        assert low[0] == pytest.approx(0, abs=1e-9)
        assert high[0] == pytest.approx(0, abs=1e-9)
        assert ((high - low) > -1e-9).all()
        assert ((high - low) <= solved.gap + 1e-9).all()
        for bound in (low, high):
            assert (np.diff(bound) > -1e-9).all()
            assert (np.diff(bound, 2) > -1e-9).all()


@given(seed=st.integers(0, 10_000), factor=st.floats(1.0, 5.0))
def test_dearer_tokens_are_never_worth_more(seed: int, factor: float) -> None:
    model, prices = random_model(seed)
    cheap, dear = (model.solve([price * f for price in prices], 1e-3) for f in (1.0, factor))
    assert dear.root_value[0] <= cheap.root_value[1] + 1e-9
    for a, b in zip(cheap.curves, dear.curves, strict=True):
        assert (b.bounds(PLACES)[0] <= a.bounds(PLACES)[1] + 1e-9).all()


@given(seed=st.integers(0, 10_000))
def test_a_coarser_observation_is_never_worth_more(seed: int) -> None:
    model, prices = random_model(seed)
    merged = tuple((row[0] + row[1], *row[2:]) for row in model.observation)
    coarse = replace(model, observation=merged)
    assert coarse.solve(prices, 1e-3).root_value[0] <= model.solve(prices, 1e-3).root_value[1] + 1e-9


@given(seed=st.integers(0, 10_000))
def test_one_more_strong_model_is_never_worth_less(seed: int) -> None:
    model, prices = random_model(seed)
    more = replace(model, p_strong=(*model.p_strong, 0.9)).solve((*prices, 0.3), 1e-3)
    assert more.root_value[1] >= model.solve(prices, 1e-3).root_value[0] - 1e-9


def test_a_weak_model_that_is_never_wrong_is_never_replaced() -> None:
    perfect = replace(SMALL, p_weak=1.0).solve(SMALL_PRICES)
    for curve in perfect.curves:
        low, high = curve.bounds(PLACES)
        assert low == pytest.approx(100 * PLACES, abs=1e-3)
        assert high == pytest.approx(100 * PLACES, abs=1e-3)
    assert critical_tokens(perfect, 1, (0.7, 0.3, 0.0)) == 0


def test_free_strong_tokens_have_no_critical_number() -> None:
    assert critical_tokens(SMALL.solve(0.0), 0, (0.2, 0.2, 0.6)) == float("inf")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("p_weak", 1.2, r"p_weak has 1\.2"),
        ("p_strong", (float("nan"),), r"p_strong has nan"),
        ("p_strong", (), r"p_strong is empty"),
        ("hazard", (0.0, 0.2, 0.9), r"hazard ends with 0\.9.*must be 1"),
        ("hazard", (1.0,), r"hazard ends"),
        ("observation", ((0.5, 0.5), (1.0,), (0.5, 0.5)), r"lengths \[2, 1, 2\]"),
        ("observation", ((0.5, 0.4), (0.5, 0.5), (0.5, 0.5)), r"observation\[0\] has 0\.4 .* adds up to 0\.9"),
        ("observation", ((1.5, -0.5), (0.5, 0.5), (0.5, 0.5)), r"observation\[0\] has -0\.5"),
        ("observation", ((float("nan"), 0.5), (0.5, 0.5), (0.5, 0.5)), r"observation\[0\] has nan"),
        ("tokens_per_step", 0.0, r"tokens_per_step is 0\.0"),
        ("reward", float("inf"), r"reward is inf"),
        ("discount", 1.1, r"discount is 1\.1"),
    ],
)
def test_a_model_that_is_none_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(SMALL, **{field: value})


def test_questions_that_have_no_answer_are_refused() -> None:
    for cost in (-0.1, float("nan"), (0.1,)):
        with pytest.raises(DataError, match="cost_per_token"):
            SMALL.solve(cost)
    with pytest.raises(DataError, match=r"eps is 0"):
        SMALL.solve(0.1, eps=0)
    for belief in ((0.5, 0.5), (0.5, 0.5, 0.5), (1.5, -0.5, 0.0), (float("nan"), 0.5, 0.5)):
        with pytest.raises(DataError, match="belief is"):
            small().action_values(0, belief, 20)
    with pytest.raises(DataError, match="tokens is nan"):
        small().action_values(0, (1, 0, 0), float("nan"))
    with pytest.raises(DataError, match="step is -1"):
        small().action_values(-1, (1, 0, 0), 20)
    with pytest.raises(DataError, match="x is 2"):
        small().continuation(0, 2)
    with pytest.raises(DataError, match="no 'defaults'"):
        RoutingPomdp.from_dict({"observation": {}})


def test_a_belief_that_rounding_put_just_outside_is_taken() -> None:
    inside, rounded = (small().action_values(0, belief, 20) for belief in ((1, 0, 0), (1 + 2e-16, -2e-16, 0.0)))
    assert rounded == pytest.approx(inside)


def test_steps_beyond_the_hazard_are_taken_as_the_last_one_it_knows() -> None:
    belief = (0.5, 0.2, 0.3)
    assert small().action_values(40, belief, 20) == small().action_values(4, belief, 20)
