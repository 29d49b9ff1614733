"""Policies as values: operating points, configuration, and numbers that depend on the place alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.config import RoutingConfig
from stepwise.errors import ConfigError, DataError
from stepwise.routing import (
    Always,
    Escalate,
    HandOver,
    Keep,
    Never,
    Random,
    Threshold,
    View,
    policy_from_config,
    policy_from_dict,
    policy_to_dict,
)
from stepwise.seeds import stable_hash
from stepwise.types import Problem, Step, Usage

P = Problem("p", "How many?")


@pytest.mark.parametrize("policy", [Never(), Always(), Random(0.25, seed=2), Threshold(0.7)])
def test_policies_are_values_that_survive_a_dictionary(policy: Any) -> None:
    assert policy_from_dict(policy_to_dict(policy)) == policy
    assert len({policy, policy_from_dict(policy_to_dict(policy))}) == 1
    with pytest.raises(AttributeError):
        policy.threshold = 0.1


def test_at_moves_the_operating_point_and_nothing_else() -> None:
    assert Threshold(0.5).at(0.7) == Threshold(0.7)
    assert Random(0.5, seed=3).at(0.1) == Random(0.1, seed=3)
    assert Never().at(0.3) == Never()
    assert [p.point for p in (Never(), Always(), Random(0.2), Threshold(0.4))] == [None, None, 0.2, 0.4]


@pytest.mark.parametrize("make", [lambda: Threshold(-0.1), lambda: Threshold(float("nan")), lambda: Random(1.1)])
def test_an_operating_point_out_of_range_is_refused(make: Any) -> None:
    with pytest.raises(DataError):
        make()


def test_every_policy_of_the_configuration_can_be_made() -> None:
    names = ("never", "always", "random", "threshold")
    made = {name: policy_from_config(RoutingConfig(policy=name, threshold=0.3, probability=0.6)) for name in names}
    assert made == {"never": Never(), "always": Always(), "random": Random(0.6), "threshold": Threshold(0.3)}


def test_a_wrong_policy_or_value_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match="'treshold'; did you mean 'threshold'"):
        policy_from_dict({"policy": "treshold"})
    with pytest.raises(ConfigError, match="threshold is -1"):
        policy_from_dict({"policy": "threshold", "threshold": -1})


def test_actions_are_compared_without_their_reasons() -> None:
    assert Keep("a") == Keep("b")
    assert Escalate(2, "a") == Escalate(2) != Escalate()
    assert Keep() != HandOver()
    with pytest.raises(DataError):
        Escalate(0)


def test_reasons_name_score_and_threshold_and_tell_near_values_apart() -> None:
    def reason(score: float | None) -> str:
        return Threshold(0.5).decide(View(P, (), Step("x", "weak", score))).reason

    assert reason(0.31) == "score 0.31 < 0.50"
    assert reason(0.5) == "score 0.500000 >= 0.500000"
    assert reason(0.4996) == "score 0.499600 < 0.500000"
    assert reason(None).startswith("empty draft")


def test_a_view_shows_the_scores_and_tokens_up_to_the_draft() -> None:
    view = View(P, (Step("a", "weak", 0.9), Step("b", "strong")), Step("c", "weak", 0.2, Usage(generated_tokens=5)))
    assert (view.index, view.scores, view.tokens) == (2, (0.9, None, 0.2), 5)
    assert (View(P).index, View(P).scores, View(P).tokens) == (0, (), 0)


@given(st.integers(0, 2**40), st.text(max_size=8), st.integers(0, 30))
def test_draws_lie_in_the_unit_interval_and_differ_by_seed_problem_step_and_salt(seed: int, name: str, n: int) -> None:
    steps = tuple(Step(str(i), "weak") for i in range(n))
    view = View(Problem(id=name, question="?"), steps, seed=seed)
    assert 0 <= view.uniform() < 1
    assert view.uniform() == View(Problem(id=name, question="another text"), steps, seed=seed).uniform()
    others = [
        View(Problem(id=name, question="?"), steps, seed=seed + 1),
        View(Problem(id=name + "x", question="?"), steps, seed=seed),
    ]
    others.append(View(Problem(id=name, question="?"), (*steps, Step("z", "weak")), seed=seed))
    assert view.uniform() not in {*(other.uniform() for other in others), view.uniform(1)}


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from stepwise.routing.policy import stable_hash; print(stable_hash(3, 'problem', 2, 'weak', 0))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {str(stable_hash(3, "problem", 2, "weak", 0))}
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
