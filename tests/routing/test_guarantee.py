"""Promises: how often they are broken where they are barely false, what they need, and what calibrate makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.config import BudgetConfig, SamplingConfig
from stepwise.errors import ConfigError, DataError
from stepwise.routing import Always, StepRouter, Threshold
from stepwise.routing.calibration import calibrate
from stepwise.routing.calibration_result import Calibrated
from stepwise.routing.compare import Measured, compare
from stepwise.routing.guarantee import Promise, certify, evidence, problems_needed
from stepwise.routing.saved import load_policy
from tests.routing import world

ALL = world.problems(122)
FIRST, OTHERS = ALL[:12], ALL[12:]


def drawn(n: int, mean: float, moved: float, seed: int) -> list[float]:
    """Losses in {-1, 0, 1} with that mean, `moved` of them not 0."""
    shares = [(moved + mean) / 2, (moved - mean) / 2, 1 - moved]
    losses: list[float] = np.random.default_rng(seed).choice([1.0, -1.0, 0.0], size=n, p=shares).tolist()
    return losses


def passed(n: int, mean: float, moved: float, limit: float, draws: int = 400) -> float:
    """How often a limit is certified with a confidence of 90 %."""
    return sum(evidence(drawn(n, mean, moved, seed), limit, -1, 1, seed) >= 10 for seed in range(draws)) / draws


@pytest.mark.parametrize(("n", "limit", "moved"), [(400, 0.05, 0.2), (400, 0.05, 0.05), (900, 0.02, 0.1)])
def test_a_promise_that_is_just_false_is_made_in_at_most_the_stated_share_of_draws(
    n: int, limit: float, moved: float
) -> None:
    assert passed(n, limit, moved, limit) <= 0.1 + 2.5 * (0.09 / 400) ** 0.5


def test_a_promise_that_is_true_is_made_more_often_with_more_problems() -> None:
    assert passed(150, 0.0, 0.1, 0.05) < passed(600, 0.0, 0.1, 0.05)
    assert passed(600, 0.0, 0.1, 0.05) > 0.8
    assert passed(600, -0.02, 0.1, 0.05) > 0.95


@pytest.mark.parametrize(
    ("losses", "limit", "message"),
    [
        ([], 0.05, "give at least one, each in"),
        ([2.0], 0.05, r"losses are \[2.0\]; give at least one, each in \[-1, 1\]"),
        ([0.0], 1.0, "the limit is 1; it must lie between -1 and 1"),
    ],
)
def test_losses_out_of_range_are_refused(losses: Sequence[float], limit: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evidence(losses, limit, -1, 1)


def test_the_problems_that_a_promise_takes_are_those_of_the_normal_law() -> None:
    # (1.2816 + 0.8416)^2 * 0.1 / 0.02^2, from tables of the normal law.
    assert problems_needed(0.02, 0.10, 0.9) == 1127
    assert problems_needed(0.05, 0.30, 0.9) == 541
    with pytest.raises(DataError, match=r"a mean loss of 0\.05 is not below the limit of 0\.05"):
        problems_needed(0.05, 0.3, 0.9, mean=0.05)


def test_the_last_setting_before_the_first_failure_is_taken_and_none_behind_it_is_run() -> None:
    arms = compare(router(), [Always(), Threshold(0.9), Threshold(0.5), Threshold(0.1)], OTHERS, progress=False)
    losses = {arm.label: [loss] * 110 for arm, loss in zip(arms, (0.0, 0.0, 1.0, 0.0), strict=True)}
    ran: list[str] = []

    def runs(arm: Measured) -> Callable[[], Measured]:
        return lambda: (ran.append(arm.label), arm)[1]

    result = certify(
        map(runs, arms), lambda arm: losses[arm.label], kind="accuracy", limit=0.05, confidence=0.9, span=(-1, 1)
    )
    assert result.setting is arms[1]
    assert ran == [arm.label for arm in arms[:3]]
    assert result.promise is not None
    assert (result.promise.tested, result.promise.problems, result.promise.mean) == (3, 110, 0.0)
    assert "Threshold 0.50 was not certified: it lost 100.0 points on 110 problems" in result.note


def router(**settings: Any) -> StepRouter:
    made = world.models()
    return StepRouter(made.weak, made.strong, made.scorer, sampling=SamplingConfig(max_step_tokens=16), **settings)


def promised(**settings: Any) -> Calibrated:
    arm = settings.pop("router", None) or router()
    return calibrate(
        Threshold(),
        FIRST,
        router=arm,
        measure_on=OTHERS,
        progress=False,
        samples=50,
        rounds=6,
        confidence=0.9,
        **settings,
    )


def test_calibrate_finds_the_cheapest_setting_whose_accuracy_it_can_promise(tmp_path: Path) -> None:
    made = promised(lose_at_most=0.1)
    assert made.reached
    assert made.promise is not None
    assert made.promise.kind == "accuracy"
    assert isinstance(made.policy, Threshold)
    strong, routed = compare(router(), [Always(), made.policy], OTHERS, progress=False)
    assert routed.point.cost < strong.point.cost
    lost = [float(a) - float(b) for a, b in zip(strong.correct, routed.correct, strict=True)]
    assert made.promise.mean == pytest.approx(float(np.mean(lost)))
    assert evidence(lost, 0.1, -1, 1) >= 10
    made.save(tmp_path / "promise.json")
    assert Calibrated.load(tmp_path / "promise.json") == made
    assert load_policy(tmp_path / "promise.json").promise == made.promise


def test_where_nothing_cheaper_is_certified_it_is_the_strong_model_and_the_number_needed_is_said() -> None:
    made = promised(lose_at_most=0.001)
    assert made.policy == Always()
    assert made.promise is not None  # trivially true
    assert made.promise.mean == 0.0
    assert "a setting that loses nothing would need about" in made.note


def test_a_promise_about_spending_is_the_dearest_setting_that_holds_it() -> None:
    caps = BudgetConfig.of({"problem": {"strong_tokens": 60}}, "budget")
    made = promised(spend_at_most=25, router=router(budget=caps))
    assert made.promise is not None
    assert made.promise.kind == "spend"
    assert 0 < made.promise.mean < 25
    assert made.achieved.cost.value == pytest.approx(made.promise.mean)
    assert "was not certified: it spent" in made.note


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "nothing is given; give one of budget, lose_at_most, spend_at_most"),
        ({"budget": 5.0, "lose_at_most": 0.05}, ConfigError, "budget and lose_at_most is given"),
        ({"spend_at_most": 5.0}, ConfigError, "needs a cap for each problem above it"),
        ({"lose_at_most": 5.0}, DataError, "lose_at_most is 5.0; give a fraction between 0 and 1"),
    ],
)
def test_what_cannot_be_promised_is_refused_before_anything_runs(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        promised(**settings)


def test_a_promise_reads_as_a_sentence() -> None:
    promise = Promise("spend", 12.0, 0.95, 300, 9.0, 0.4, 3)
    assert str(promise) == "expected spend is at most 12 strong tokens a problem (confidence 95 %, 300 problems)"
