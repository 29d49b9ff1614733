"""Schemes and rewards of one's own: found by import path, checked when they are handed in and in what they return."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

import stepwise.credit.base
from stepwise.config import Config
from stepwise.config.training import CreditConfig
from stepwise.credit import (
    Credit,
    Group,
    Reward,
    advantages,
    as_credit,
    as_reward,
    load_credit,
    outcome,
)  # fmt: skip
from stepwise.errors import ConfigError
from stepwise.grading import Verdict
from stepwise.types import Problem
from tests.credit.groups import by_hand

PROBLEM = Problem("p7", "1 + 1?", "2")


class Whole(Credit):
    """Returns what it is made with."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def advantages(self, group: Group, seed: int) -> Any:
        return outcome(group) if self.value is None else self.value


class Asks(Whole):
    needs = "first_errors"


class Nothing(Credit):
    """Lacks its method."""


class Fixed(Reward):
    def __init__(self, value: Any = 1.0) -> None:
        self.value = value

    def reward(self, problem: Problem, solution: str, verdict: Verdict) -> Any:
        return self.value


def half(problem: Problem, solution: str, verdict: Verdict) -> float:
    return 0.5


def broken(problem: Problem, solution: str, verdict: Verdict) -> float:
    return {}["gone"]


def test_a_scheme_in_the_configuration_does_as_one_that_is_handed_in() -> None:
    cfg = Config.load(None, [f"rl.credit={__name__}:Whole"]).rl.credit
    assert cfg == CreditConfig(scheme=f"{__name__}:Whole")
    assert np.array_equal(advantages(by_hand(), cfg), outcome(by_hand()))
    assert isinstance(load_credit(cfg), Whole)
    assert isinstance(as_credit(Whole), Whole)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rl.credit.scheme=first_eror", r'"first_eror" is no credit scheme; did you mean "first_error"'),
        ("rl.credit=vpo", 'did you mean "vppo"'),
        ("rl.reward=Short", r'"rl\.reward": "Short" is no import path; write "my_package\.my_file:MyReward"'),
    ],
)  # fmt: skip
def test_what_is_no_scheme_and_no_path_is_refused_where_it_is_written(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config.load(None, [setting])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"{__name__}:Nothing", "Nothing .*advantages.*, which every Credit must have; add `def advantages"),
        (f"{__name__}:Fixed", "Fixed is a Reward, where a Credit is wanted; give it as rl.reward"),
        (f"{__name__}:Hole", "has no 'Hole'; did you mean 'Whole'"),
        (Asks(), r"Asks\.needs is 'first_errors'; did you mean 'first_error'"),
        (3, "is 3 \\(int\\); give a class that inherits from Credit"),
    ],
)
def test_what_is_no_scheme_is_refused_when_it_is_handed_in(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        as_credit(given, "rl.credit.scheme")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((4, 3)), r"Whole\.advantages returned an array of shape \(4, 3\) for 4 rollouts"),
        (np.full((4, 10), np.nan), r"Whole\.advantages returned nan at rollout 0, token 0; return finite numbers"),
        ("much", r"Whole\.advantages returned 'much'; return an array of \(4, 10\) numbers"),
        ([[1.0], [2.0, 3.0]], r"Whole\.advantages returned \[\[1"),
        ({}, r"Whole\.advantages returned \{\}"),
    ],
)  # fmt: skip
def test_what_a_scheme_returns_is_checked(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Whole(value).checked(by_hand(), 0)


def test_advantages_of_tokens_that_nobody_sampled_are_put_to_zero_and_an_exception_names_the_method() -> None:
    checked = Whole(np.ones((4, 10))).checked(by_hand(), 0)
    assert np.array_equal(checked, by_hand().mask)

    class Failing(Credit):
        def advantages(self, group: Group, seed: int) -> Any:
            raise IndexError("no step 3")

    with pytest.raises(ConfigError, match=r"Failing\.advantages raised IndexError: no step 3"):
        Failing().checked(by_hand(), 0)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float32(0.5), r"Fixed\.reward returned .*0\.5.*, a float32; return a float from 0 \(wrong\) to 1"),
        (np.float64(0.5), r"a float64; return a float"),
        (float("nan"), r"Fixed\.reward returned nan for problem 'p7'"),
        (2, r"Fixed\.reward returned 2 for problem 'p7'"),
        (-0.5, r"Fixed\.reward returned -0\.5"),
        ("1", r"Fixed\.reward returned '1', a str"),
    ],
)
def test_what_a_reward_returns_is_checked(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Fixed(value).checked(PROBLEM, "2", Verdict.CORRECT)


def test_a_class_an_object_a_function_and_a_path_are_rewards() -> None:
    for given, paid in ((Fixed, 1.0), (Fixed(None), None), (half, 0.5), (f"{__name__}:half", 0.5), (Fixed(True), 1.0)):
        assert as_reward(given).checked(PROBLEM, "2", Verdict.WRONG) == paid
    with pytest.raises(ConfigError, match=r"reward: CreditConfig is no Reward"):
        as_reward(CreditConfig())
    with pytest.raises(ConfigError, match=r"broken \(problem 'p7'\) raised KeyError: 'gone'"):
        as_reward(broken).checked(PROBLEM, "2", Verdict.WRONG)


def test_the_examples_in_docstrings_are_true() -> None:
    for module in (stepwise.credit, stepwise.credit.base):
        found = doctest.testmod(module)
        assert found.failed == 0
        assert found.attempted
