"""Bounds of the generic solver against Tiger's known values and against expanding the whole tree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.errors import DataError
from stepwise.routing.point_based import FinitePomdp, Solution

EYE = np.eye(2)


def tiger(decisions: int, discount: float = 1.0, hears: float = 0.85) -> FinitePomdp:
    """Cassandra, Kaelbling and Littman (AAAI 1994): listen, or open the left or the right of two doors."""
    listen = np.stack([EYE * [hears, 1 - hears], EYE * [1 - hears, hears]])
    opened = np.full((1, 2, 2), 0.5)
    reward = np.array([[-1.0, -1.0], [-100.0, 10.0], [10.0, -100.0]])
    ends = (*[0.0] * (decisions - 1), 1.0)
    return FinitePomdp(EYE[None], (listen, opened, opened), reward, reward, ends, np.array([0.5, 0.5]), discount)


def random_pomdp(seed: int) -> FinitePomdp:
    """Two or three states at rest, two to four at a decision, four decisions; one of two actions shows something."""
    rng = np.random.default_rng(seed)
    rest, states, seen = 2 + seed % 2, 2 + seed % 3, 1 + seed % 3

    def chances(count: int, source: int, target: int) -> np.ndarray:
        return rng.dirichlet(np.full(count * target, 0.5), source).reshape(source, count, target).transpose(1, 0, 2)

    return FinitePomdp(
        sense=chances(seen, rest, states),
        acts=(chances(1, states, rest), chances(2, states, rest)),
        reward=rng.normal(0, 3, (2, states)),
        final=rng.normal(0, 10, (2, states)),
        ends=(*rng.uniform(0, 0.7, 3), 1.0),
        prior=rng.dirichlet(np.ones(rest)),
        discount=0.95,
    )


def expand_rest(model: FinitePomdp, step: int, rest: np.ndarray) -> float:
    """Value of an unnormalised belief at rest, by expanding the whole tree of what may follow."""
    total, end = 0.0, model.ends[step]
    for table in model.sense:
        belief = rest @ table
        total += end * max(model.final @ belief) if end else 0.0
        total += (1 - end) * max(expand(model, step, belief)) if end < 1 else 0.0
    return total


def expand(model: FinitePomdp, step: int, belief: np.ndarray) -> list[float]:
    """Value of each action at an unnormalised belief at decision `step`, which is not the last."""
    return [
        reward @ belief + model.discount * sum(expand_rest(model, step + 1, belief @ moved) for moved in act)
        for reward, act in zip(model.reward, model.acts, strict=True)
    ]


@pytest.mark.parametrize(
    ("decisions", "known", "discounted"),
    [(1, -1, -1), (2, -2, -1.95), (3, 2.72, 2.3098), (4, 2.42125, 1.795544), (5, 3.60915, 2.763096)],
)
def test_tiger_is_worth_what_others_found(decisions: int, known: float, discounted: float) -> None:
    for discount, value in ((1.0, known), (0.95, discounted)):
        low, high = tiger(decisions, discount).solve(1e-6).root_value
        assert low - 1e-6 <= value <= high + 1e-6
        assert high - low <= 1e-6


def test_tiger_of_six_decisions() -> None:
    assert tiger(6).solve(1e-6).root_value == pytest.approx((5.618819, 5.618819), abs=1e-6)


@pytest.mark.parametrize(("discount", "decisions", "known"), [(0.75, 60, 1.933439), (0.95, 300, 19.371368)])
def test_a_long_discounted_tiger_is_worth_the_known_value_of_the_endless_one(
    discount: float, decisions: int, known: float
) -> None:
    low, high = tiger(decisions, discount).solve(1e-4).root_value
    rest = discount**decisions * 100 / (1 - discount)  # no decision after the last earns or loses more than 100
    assert low - rest - 1e-6 <= known <= high + rest + 1e-6
    assert high - low <= 1e-4


@pytest.mark.parametrize("decisions", [2, 3, 4])
@pytest.mark.parametrize("left", [0.0, 0.03, 0.2, 0.5, 0.9])
def test_tiger_agrees_with_full_tree_expansion_from_any_belief(decisions: int, left: float) -> None:
    model, belief = tiger(decisions, hears=0.8), np.array([left, 1 - left])
    exact = expand(model, 0, belief)
    for resolution in (1, 7, 64):
        for (low, high), value in zip(Solution(model, resolution).action_bounds(0, belief), exact, strict=True):
            assert low - 1e-9 <= value <= high + 1e-9


@given(seed=st.integers(0, 100_000))
@settings(max_examples=30)
def test_random_small_models_lie_between_the_bounds_and_finer_grids_narrow_them(seed: int) -> None:
    model, rng = random_pomdp(seed), np.random.default_rng(seed)
    coarse, fine = Solution(model, 2), Solution(model, 24)
    assert 0 <= fine.gap + 1e-9 <= coarse.gap + 2e-9
    for step in (0, 2):
        rest, belief = (rng.dirichlet(np.full(n, 0.6)) for n in model.sense.shape[1:])
        value, actions = expand_rest(model, step, rest), expand(model, step, belief)
        for solved in (coarse, fine):
            low, high = solved.value(step, rest)
            assert low - 1e-9 <= value <= high + 1e-9
            for (below, above), exact in zip(solved.action_bounds(step, belief), actions, strict=True):
                assert below - 1e-9 <= exact <= above + 1e-9
        assert [low for low, _ in fine.action_bounds(step, belief, last=True)] == pytest.approx(model.final @ belief)


@given(seed=st.integers(0, 100_000))
@settings(max_examples=20)
def test_every_value_of_the_grid_bounds_the_tree_and_the_grid_holds_each_point_once(seed: int) -> None:
    model = random_pomdp(seed)
    solved = Solution(model, 3)
    points = solved.points
    assert len(np.unique(points, axis=0)) == len(points) == {2: 4, 3: 10}[len(model.prior)]
    assert points.sum(1) == pytest.approx(1)
    for point, vector, above in zip(points, solved.vectors[1], solved.values[1], strict=True):
        value = expand_rest(model, 1, point)
        assert vector @ point - 1e-9 <= value <= above + 1e-9
        assert solved.value(1, point)[1] == pytest.approx(above)


def test_the_solver_says_what_it_reached_where_points_run_out() -> None:
    solved = tiger(12, hears=0.7).solve(1e-9, most=9)
    assert solved.resolution == 8
    assert solved.gap > 1e-3
    low, high = tiger(12, hears=0.7).solve(1e-3).root_value
    assert solved.root_value[0] <= high
    assert low <= solved.root_value[1]


def test_beliefs_are_filtered_by_what_is_seen_and_shown() -> None:
    model = tiger(3)
    heard = model.acted((0.5, 0.5), 0, shown=1)
    assert heard == pytest.approx([0.15, 0.85])
    assert model.acted(heard, 1) == pytest.approx([0.5, 0.5])
    assert model.observed(heard, 0) == pytest.approx(heard)
    with pytest.raises(DataError, match="1 cannot be shown by action 0"):
        tiger(3, hears=1.0).acted((1.0, 0.0), 0, shown=1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prior", np.array([0.5, 0.4]), r"prior has 0\.4 .*adds up to 0\.9"),
        ("prior", np.array([1.0]), r"sense has shape \(1, 2, 2\), prior \(1,\)"),
        ("sense", 0.5 * EYE[None], r"sense has 0 .*adds up to 0\.5"),
        ("acts", (EYE[None], EYE[None], np.ones((1, 3, 2))), r"acts\[2\] has shape \(1, 3, 2\)"),
        ("reward", np.zeros((2, 2)), r"reward has shape \(2, 2\)"),
        ("final", np.full((3, 2), np.nan), "final has shape"),
        ("ends", (0.0, 0.5), "no problem may go on for ever"),
        ("discount", 1.5, r"discount is 1\.5"),
    ],
)
def test_a_problem_that_is_none_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(tiger(2), **{field: value})


def test_questions_that_have_no_answer_are_refused() -> None:
    solved = Solution(tiger(3), 4)
    with pytest.raises(DataError, match=r"step is 3.*from 0 to 2"):
        solved.action_bounds(3, (0.5, 0.5))
    with pytest.raises(DataError, match=r"belief has shape \(3,\)"):
        solved.value(0, (0.5, 0.2, 0.3))
    with pytest.raises(DataError, match="adds up to 0"):
        solved.value(0, (0.2, 0.2))
    with pytest.raises(DataError, match="eps is 0"):
        tiger(3).solve(0)
    with pytest.raises(DataError, match="most is 2"):
        tiger(3).solve(most=2)
