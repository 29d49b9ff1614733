"""Several strong steps on end and priced drafts, in the exact solver, against full tree expansion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stepwise.errors import DataError
from stepwise.routing.pomdp import RoutingPomdp
from tests.routing.pomdp_world import SMALL, SMALL_PRICES, ends, random_model

RUNS = (1, 2, 6)  # 6 is for good in models of five steps


def expand(model: RoutingPomdp, prices: Any, draft: float, published: bool, step: int, belief: Any) -> list[float]:
    """Value of keeping and of each run of each strong model at a draft that is not the last.

    By expanding the tree in the hidden states, with an observation after each draft and none after a step of a run;
    beliefs need not add up to 1.
    """
    fees = [price * model.tokens_per_step for price in prices]
    chances = [*ends(model, published)[: len(model.hazard) - 1], 1.0]
    p = model.p_weak

    def drafting(right: float, wrong: float, n: int) -> float:
        """Value before step n is drafted, of committed steps that are all right or not."""
        total = -draft * model.tokens_per_step * (right + wrong)
        for column in np.asarray(model.observation).T:
            seen = np.array([p * right, wrong, (1 - p) * right]) * column
            kept = [(seen[0], 0.0), *((q * (seen[0] + seen[2]), f) for q, f in zip(model.p_strong, fees, strict=True))]
            total += chances[n] * max(model.reward * y - fee * seen.sum() for y, fee in kept)
            total += (1 - chances[n]) * max(decide(seen, n)) if chances[n] < 1 else 0.0
        return model.discount * total

    def running(right: float, wrong: float, n: int, left: int, q: float, fee: float) -> float:
        """Value before step n, which a strong model writes with `left` - 1 after it."""
        if not left:
            return drafting(right, wrong, n)
        after = (q * right, wrong + (1 - q) * right)
        rest = running(*after, n + 1, left - 1, q, fee) if chances[n] < 1 else 0.0
        earned = chances[n] * model.reward * after[0] + (1 - chances[n]) * rest
        return model.discount * (earned - fee * (right + wrong))

    def decide(seen: np.ndarray, n: int) -> list[float]:
        values = [drafting(seen[0], seen[1] + seen[2], n + 1)]
        for q, fee in zip(model.p_strong, fees, strict=True):
            open_ = seen[0] + seen[2]
            after = (q * open_, seen[1] + (1 - q) * open_)
            values += [running(*after, n + 1, k - 1, q, fee) - fee * seen.sum() for k in RUNS]
        return values

    return decide(np.asarray(belief, dtype=float), step)


@pytest.mark.parametrize(
    ("seed", "published", "draft", "step"),
    [(0, False, 0.0, 0), (2, True, 0.2, 2), (4, False, 0.5, 0), (1, True, 0.4, 3)],
)
def test_values_of_runs_and_priced_drafts_equal_those_of_the_whole_tree(
    seed: int, published: bool, draft: float, step: int
) -> None:
    model, prices = random_model(seed)
    plan = model.solve(prices, 1e-7, published, runs=RUNS, cost_per_draft_token=draft)
    rng = np.random.default_rng(seed)
    for belief in (*rng.dirichlet(np.ones(3), size=2), np.array([1.0, 0, 0]), np.array([0, 1.0, 0])):
        known = expand(model, prices, draft, published, step, belief)
        bounds = plan.action_bounds(step, tuple(belief), model.tokens_per_step)
        assert len(known) == len(bounds) == 1 + len(RUNS) * len(prices)
        for value, (low, high) in zip(known, bounds, strict=True):
            assert low - 1e-9 <= value <= high + 1e-9
            assert high - low < 1e-5


def test_where_drafts_are_free_a_longer_run_is_worth_nothing() -> None:
    narrow, wide = SMALL.solve(SMALL_PRICES, 1e-6), SMALL.solve(SMALL_PRICES, 1e-6, runs=RUNS)
    assert wide.root_value == pytest.approx(narrow.root_value, abs=1e-5)
    for options in wide.options:
        assert [(option.writer, option.length) for option in options[:4]] == [(0, 1), (1, 1), (1, 2), (1, 6)]


def test_where_drafts_have_a_price_handing_over_can_be_best() -> None:
    model = replace(SMALL, p_weak=0.5, p_strong=(0.99,))
    given = {"cost_per_token": 0.2, "eps": 1e-6, "cost_per_draft_token": 0.2}
    narrow, wide = model.solve(**given), model.solve(**given, runs=(len(model.hazard),))
    assert wide.root_value[0] > narrow.root_value[1] + 1
    keep, once, for_good = wide.action_values(0, (0.3, 0.1, 0.6), 20)
    assert for_good > once > keep


def test_at_the_last_step_all_runs_are_one_step() -> None:
    plan = SMALL.solve(SMALL_PRICES, runs=RUNS)
    values = plan.action_values(1, (0.3, 0.1, 0.6), 20, last=True)
    assert values[1] == values[2] == values[3]


@pytest.mark.parametrize("runs", [(0,), (-1,), (1.5,)])
def test_a_run_of_no_steps_is_refused(runs: tuple) -> None:
    with pytest.raises(DataError, match="a run of"):
        SMALL.solve(SMALL_PRICES, runs=runs)


def test_a_price_of_drafts_below_zero_is_refused() -> None:
    with pytest.raises(DataError, match="cost_per_draft_token is -1"):
        SMALL.solve(SMALL_PRICES, cost_per_draft_token=-1)
