"""Mixtures of difficulties against the exact solver where it applies, and against the whole tree where it does not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from stepwise.errors import DataError
from stepwise.routing.difficulty import DifficultyPlan, DifficultyPomdp
from tests.routing.pomdp_world import SMALL, SMALL_PRICES, ends, random_model

# Two classes of problems on the small model, one strong model that does worse after a wrong draft.
MIXED = DifficultyPomdp(
    base=replace(SMALL, observation=((0.2, 0.8), (0.6, 0.4), (0.8, 0.2)), hazard=(0.0, 0.1, 0.3, 1.0)),
    shares=(0.6, 0.4),
    p_weak=(0.95, 0.6),
    p_strong=((0.99, 0.9),),
    p_strong_after_wrong=((0.97, 0.7),),
)


@cache
def mixed(scored: bool = False) -> DifficultyPlan:
    return replace(MIXED, strong_scored=scored).solve(0.5, 0.02)


def root(model: DifficultyPomdp, price: float) -> float:
    """Value before the first decision by expanding the whole tree over (class, right / earlier / now), in full."""
    base, law, classes = model.base, np.asarray(model.base.observation), len(model.shares)
    chance, fee = ends(base, False), price * base.tokens_per_step

    def drafted(weights: np.ndarray) -> np.ndarray:
        """Weights (classes, right or not) of the committed steps to (classes, 3) with the next draft."""
        p = np.asarray(model.p_weak)
        return np.stack([p * weights[:, 0], weights[:, 1], (1 - p) * weights[:, 0]], axis=1)

    def strong(weights: np.ndarray) -> list[np.ndarray]:
        """What a strong step makes of weights (classes, 3): (classes, right or not), one for each score of it."""
        after_wrong = (model.p_strong_after_wrong or model.p_strong)[0]
        parts = [np.zeros((classes, 2)) for _ in range(law.shape[1] if model.strong_scored else 1)]
        for k in range(classes):
            for z, part in enumerate(parts):
                own = law[:, z] if model.strong_scored else np.ones(3)
                for state, q in ((0, model.p_strong[0][k]), (2, after_wrong[k])):
                    part[k] += weights[k, state] * np.array([q * own[0], (1 - q) * own[2]])
                part[k, 1] += weights[k, 1] * own[1]
        return parts

    def before(n: int, committed: np.ndarray) -> float:
        """Value of weights (classes, right or not) of the committed steps before step n is drafted."""
        total = 0.0
        for column in law.T:
            seen = drafted(committed) * column
            kept = np.stack([seen[:, 0], seen[:, 1] + seen[:, 2]], axis=1)
            written, paid = strong(seen), fee * seen.sum()
            last = max(kept[:, 0].sum(), sum(part[:, 0].sum() for part in written) - paid / base.reward)
            total += chance[n] * base.reward * last
            if chance[n] < 1:
                on = max(before(n + 1, kept), sum(before(n + 1, part) for part in written) - paid)
                total += (1 - chance[n]) * on
        return total

    return before(0, np.stack([model.shares, np.zeros(classes)], axis=1))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scored", [False, True])
def test_random_mixtures_agree_with_full_tree_expansion(seed: int, scored: bool) -> None:
    rng = np.random.default_rng(seed)
    model = DifficultyPomdp(
        base=replace(SMALL, observation=tuple(map(tuple, rng.dirichlet((1, 1), 3))), hazard=(0.0, 0.1, 0.3, 1.0)),
        shares=tuple(rng.dirichlet((1, 1))),
        p_weak=tuple(rng.uniform(0.4, 1, 2)),
        p_strong=(tuple(rng.uniform(0.6, 1, 2)),),
        p_strong_after_wrong=(tuple(rng.uniform(0.5, 1, 2)),) if seed % 2 else None,
        strong_scored=scored,
    )
    solved, exact = model.solve(0.4, 0.02), root(model, 0.4)
    assert solved.root_value[0] - 1e-9 <= exact <= solved.root_value[1] + 1e-9
    assert solved.gap <= 0.02


@pytest.mark.parametrize("seed", range(8))
def test_one_class_agrees_with_the_exact_solver_within_both_bounds(seed: int) -> None:
    base, prices = random_model(seed)
    published, rng = seed % 2 == 0, np.random.default_rng(seed)
    same = DifficultyPomdp(base, (1.0,), (base.p_weak,), tuple((q,) for q in base.p_strong))
    exact, generic = base.solve(prices, 1e-7, published), same.solve(prices, 0.01, published_hazard=published)
    assert generic.root_value[0] - 1e-9 <= exact.root_value[1]
    assert exact.root_value[0] <= generic.root_value[1] + 1e-9
    assert generic.gap <= 0.01
    for step, last in ((0, False), (2, False), (9, False), (3, True)):
        belief = rng.dirichlet(np.ones(3))
        wide = generic.action_bounds(step, belief, 45, last=last)
        for (low, high), value in zip(wide, exact.action_values(step, belief, 45, last=last), strict=True):
            assert low - 1e-6 <= value <= high + 1e-6


def test_classes_that_do_not_differ_are_no_mixture() -> None:
    twice = DifficultyPomdp(SMALL, (0.3, 0.7), (0.85, 0.85), ((0.95, 0.95), (0.99, 0.99)))
    low, high = twice.solve(SMALL_PRICES, 0.05).root_value
    known = SMALL.solve(SMALL_PRICES, 1e-7).root_value
    assert low - 1e-9 <= known[1]
    assert known[0] <= high + 1e-9


def test_knowing_more_is_worth_no_less() -> None:
    low, high = mixed().root_value
    told = [
        replace(MIXED, shares=(1.0, 0.0)).solve(0.5, 0.02).root_value,
        replace(MIXED, shares=(0.0, 1.0)).solve(0.5, 0.02).root_value,
    ]
    assert low <= 0.6 * told[0][1] + 0.4 * told[1][1]
    assert mixed(scored=True).root_value[1] >= low - 1e-9
    assert mixed(scored=True).root_value[0] > high  # the score of the strong step is worth something


def test_drafts_that_look_wrong_move_the_belief_towards_hard_problems() -> None:
    model = mixed().solution.model
    belief = model.observed(model.prior, 0)
    assert len(belief) == 5
    at_rest = model.acted(belief, 1)
    easy, hard = at_rest[0], at_rest[1]
    assert hard / easy > 0.4 / 0.6 * 0.9 / 0.99
    assert model.acted(belief, 0)[2] == pytest.approx(belief[2] + belief[3] + belief[4])


def test_a_longer_step_costs_its_price() -> None:
    belief = (0.4, 0.2, 0.1, 0.1, 0.2)
    short, long = (mixed().action_bounds(1, belief, tokens) for tokens in (10, 30))
    assert short[0] == long[0]
    assert [a - b for a, b in zip(short[1], long[1], strict=True)] == pytest.approx([10, 10])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shares", (0.5, 0.4), r"shares adds up to 0\.9"),
        ("p_weak", (0.5,), r"p_weak has \(0\.5,\).*2 classes"),
        ("p_strong", ((0.5, 1.5),), r"p_strong has \(0\.5, 1\.5\)"),
        ("p_strong", (), "p_strong has 0"),
        ("p_strong_after_wrong", ((0.5, 0.5), (0.5, 0.5)), "p_strong_after_wrong 2 strong"),
        ("p_strong_after_wrong", ((0.5, float("nan")),), "p_strong_after_wrong has"),
    ],
)
def test_a_mixture_that_is_none_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(MIXED, **{field: value})


def test_prices_and_tokens_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="cost_per_token"):
        MIXED.solve((0.1, 0.2))
    with pytest.raises(DataError, match="tokens is nan"):
        mixed().action_bounds(0, (1, 0, 0, 0, 0), float("nan"))
