"""Signals, each against numbers worked out by hand, and the mixture against draws from a known one."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from stepwise.errors import ConfigError, DataError
from stepwise.records import from_json, to_json
from stepwise.routing import (
    Agreement,
    CumulativeSum,
    FirstTokenEntropy,
    MaxLogit,
    MaxLogitMixture,
    ObservationLaw,
    ScoreDrop,
    Signalled,
    StepScore,
    StrongRating,
    TwoStage,
    View,
    fit_mixture,
    policy_from_dict,
    policy_to_dict,
    threshold_at,
)
from stepwise.types import Problem, Step

P = Problem("p", "How many?")
LAW = ObservationLaw((0.0, 0.5, 1.0), ((0.2, 0.8), (0.5, 0.5), (0.8, 0.2)))
MIXTURE = MaxLogitMixture((0.3, 0.7), (-0.9, -0.1), (0.3, 0.05))


def view(*scores: float | None, authors: str = "", **more: Any) -> View:
    """Steps with these scores, the last one the draft; `authors` has a letter for each."""
    names = {"s": "strong", "w": "weak"}
    made = [Step(f"t{i}", names[(authors or "w" * 99)[i]], score) for i, score in enumerate(scores)]
    return View(P, tuple(made[:-1]), made[-1] if made else None, **more)


def test_the_score_is_the_drafts_and_an_empty_draft_counts_as_zero() -> None:
    assert StepScore().value(view(0.9, 0.3)) == 0.3
    assert StepScore().value(view(0.9, None)) == 0.0


def test_the_drop_is_from_the_step_before_and_from_one_at_the_first() -> None:
    assert ScoreDrop().value(view(0.9, 0.3)) == pytest.approx(0.6)
    assert ScoreDrop().value(view(0.9)) == pytest.approx(0.1)
    assert ScoreDrop().value(view(0.4, 0.9)) == pytest.approx(-0.5)
    assert ScoreDrop().value(view(None, 0.9)) is None


def test_the_cumulative_sum_adds_log_ratios_stays_above_zero_and_restarts_after_the_strong_model() -> None:
    up = math.log(0.8 / 0.2)
    signal = CumulativeSum(LAW)
    assert signal.value(view(0.9, 0.9)) == 0.0
    assert signal.value(view(0.9, 0.1)) == pytest.approx(up)
    assert signal.value(view(0.1, 0.1, 0.9)) == pytest.approx(up)
    assert signal.value(view(0.1, 0.1, 0.1, authors="wsw")) == pytest.approx(up)


def test_the_cumulative_sum_of_a_law_of_pairs_takes_the_current_score() -> None:
    rows = tuple(tuple(a / 2 for _ in range(2) for a in row) for row in LAW.rows)
    pair = ObservationLaw(LAW.edges, rows, pair=True)  # type: ignore[arg-type]
    assert CumulativeSum(pair).value(view(0.1, 0.1)) == pytest.approx(2 * math.log(4))


def test_the_entropy_takes_what_is_not_told_as_one_outcome() -> None:
    halves = (math.log(0.5), math.log(0.25))
    assert FirstTokenEntropy().value(View(P, first_token=halves)) == pytest.approx(1.5 * math.log(2))
    assert FirstTokenEntropy().value(View(P, first_token=(0.0,))) == 0.0
    assert FirstTokenEntropy().value(View(P)) is None


def test_the_max_logit_is_the_mean_over_tokens_of_the_likeliest() -> None:
    assert MaxLogit().value(view(None, logprobs=((-0.1, -3.0), (-0.5, -1.0)))) == pytest.approx(-0.3)
    assert MaxLogit().value(view(None)) is None


def test_the_chance_under_a_mixture_is_bayes_between_the_means_and_falls_with_certainty() -> None:
    def density(x: float, i: int) -> float:
        z = (x - MIXTURE.means[i]) / MIXTURE.deviations[i]
        return MIXTURE.weights[i] * math.exp(-z * z / 2) / MIXTURE.deviations[i]

    x = -0.3
    assert MIXTURE.chance(x) == pytest.approx(density(x, 0) / (density(x, 0) + density(x, 1)))
    chances = [MIXTURE.chance(x) for x in np.linspace(-3, 0.5, 200)]
    assert all(a >= b for a, b in pairwise(chances))
    assert chances[0] > 0.99 > 0.1 > chances[-1]


def test_a_mixture_is_found_again_in_draws_from_it() -> None:
    rng = np.random.default_rng(0)
    draws = np.concatenate([rng.normal(-0.9, 0.2, 300), rng.normal(-0.1, 0.05, 700)])
    found = fit_mixture(rng.permutation(draws))
    assert found.means == pytest.approx((-0.9, -0.1), abs=0.03)
    assert found.deviations == pytest.approx((0.2, 0.05), abs=0.03)
    assert found.weights == pytest.approx((0.3, 0.7), abs=0.02)
    assert found == fit_mixture(draws)


@pytest.mark.parametrize("values", [[-0.1] * 30, [-0.1, -0.2], [float("nan"), *range(30)]])
def test_values_that_hold_no_mixture_are_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="values are too few for a mixture"):
        fit_mixture(values)


def test_agreement_compares_results_or_words() -> None:
    draft = Step("Then 3 + 4 = 7.", "weak")
    others = tuple(Step(text, "weak") for text in ("She has 7.0 now.", "then 3 + 4 = 7.", "So 3 + 4 = 8."))
    seen = View(P, (), draft, resamples=others)
    assert Agreement(3).value(seen) == pytest.approx(2 / 3)
    assert Agreement(3, by="text").value(seen) == pytest.approx(1 / 3)
    assert Agreement(3).value(View(P, (), draft)) is None


SIGNALS = [StepScore(), ScoreDrop(), CumulativeSum(LAW), FirstTokenEntropy(8), MaxLogit(), MIXTURE, StrongRating(),
           Agreement(5, "text")]  # fmt: skip


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda s: s.name)
def test_a_policy_on_any_signal_survives_json(signal: Any) -> None:
    policy = Signalled(signal, 0.25, steps=2)
    assert policy_from_dict(policy_to_dict(policy)) == policy
    assert from_json(Signalled, to_json(policy)) == policy
    assert policy.at(0.5) == Signalled(signal, 0.5, steps=2)
    assert policy.at(0.5).point == 0.5
    assert len({policy, policy.at(0.25)}) == 1


def test_two_stages_survive_json() -> None:
    policy = TwoStage(FirstTokenEntropy(), 0.1, 0.8, StepScore(), 0.5)
    assert policy_from_dict(policy_to_dict(policy)) == policy
    assert policy.at(0.7).point == 0.7


def test_wrong_signals_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="signal is 'luck'; did you mean 'score'"):
        policy_from_dict({"policy": "signal", "signal": {"name": "luck"}, "threshold": 0.5})
    with pytest.raises(DataError, match=r"signal is 3 \(int\); give a class that inherits from Signal"):
        Signalled(3, 0.5)
    with pytest.raises(DataError, match="acts before there is a draft"):
        Signalled(FirstTokenEntropy(), 0.5, "resample")
    with pytest.raises(DataError, match="must act before the draft"):
        TwoStage(StepScore(), 0.1, 0.8, StepScore(), 0.5)
    with pytest.raises(DataError, match=r"good=0\.9 is worse than bad=0\.8"):
        TwoStage(FirstTokenEntropy(), 0.9, 0.8, StepScore(), 0.5)
    with pytest.raises(DataError, match="use fit_mixture"):
        MaxLogitMixture((0.5, 0.5), (0.0, -1.0), (1.0, 1.0))


@pytest.mark.parametrize(("worse", "best"), [("low", 0.99), ("high", 0.0)])
def test_a_threshold_flags_the_share_that_was_asked_for(worse: Any, best: float) -> None:
    values = [i / 100 for i in range(100)]
    for share in (0.0, 0.1, 0.255, 0.99, 1.0):
        threshold = threshold_at(worse, values, share)
        flagged = [v < threshold if worse == "low" else v > threshold for v in values]
        assert sum(flagged) == int(share * 100)
    assert threshold_at(worse, [0.5] * 10, 0.3) == 0.5
    with pytest.raises(DataError, match="share is 2 of 1 values"):
        threshold_at(worse, [0.5], 2)
