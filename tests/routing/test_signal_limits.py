"""Policies on signals: caps, company, plans and names."""

from __future__ import annotations

import dataclasses
import math

import pytest

from stepwise.config import BudgetConfig, Config
from stepwise.routing import (
    Agreement,
    FirstTokenEntropy,
    Keep,
    MaxLogit,
    Models,
    Policy,
    Random,
    ScoreDrop,
    Signalled,
    StepScore,
    StrongRating,
    TwoStage,
    Watch,
    route_all,
)
from stepwise.routing.deciding import label_of
from stepwise.routing.planning import plan_routing
from stepwise.types import Trace, Usage
from tests.routing import world
from tests.routing.scripted import STRONG, WEAK
from tests.routing.telling import SURE, TORN, TellingBackend
from tests.routing.test_signal_policies import authors, go


def test_evidence_is_bought_under_the_caps() -> None:
    strong = TellingBackend({"p": STRONG}, answers={"Rate": ["9"]})
    trace = go(Signalled(StrongRating(), 7), strong=strong, budget=BudgetConfig(strong_tokens=17))
    assert [len(step.evidence) for step in trace.steps] == [1] * 5 + [0]  # 8 are held for each, 2 are used
    assert trace.steps[5].decision == "keep: rating is missing"
    assert trace.usage["strong"].generated_tokens <= 17


@pytest.mark.parametrize(
    "policy",
    [
        Signalled(FirstTokenEntropy(), 0.3),
        Signalled(StepScore(), 1.01, "hand_over"),
        Signalled(StrongRating(), 9),
        TwoStage(FirstTokenEntropy(), 0.1, 0.65, StepScore(), 1.01),
    ],
    ids=lambda p: p.family,
)
def test_a_budget_of_zero_is_the_weak_model_alone(policy: Policy) -> None:
    trace = go(policy, budget=BudgetConfig(strong_tokens=0))
    assert [step.text for step in trace.steps] == WEAK
    assert "strong" not in trace.usage


@pytest.mark.parametrize(
    "policy",
    [
        Signalled(FirstTokenEntropy(), 0.3),
        Signalled(Agreement(2, "text"), 0.5),
        TwoStage(FirstTokenEntropy(), 0.1, 0.65, StepScore(), 0.5),
        Signalled(StepScore(), 0.5, "resample"),
    ],
    ids=lambda p: p.family,
)
def test_a_trace_depends_neither_on_company_nor_on_the_window(policy: Policy) -> None:
    def models() -> Models:
        slips = [f"slip step {i} by weak" for i in range(5)]
        return world.models()._replace(weak=TellingBackend(world.weak_step, unsure=slips))

    from stepwise.routing import RouteSettings

    asked = world.problems(8)

    def without_shares(traces: list[Trace]) -> list[Trace]:
        """A scorer that does not itemize has its cost divided over whoever is in the batch."""
        return [dataclasses.replace(trace, scorer_usage=Usage()) for trace in traces]

    together = route_all(asked, models(), policy)
    narrow = route_all(asked[::-1], models(), policy, RouteSettings(window=2))[::-1]
    alone = [route_all([problem], models(), policy)[0] for problem in asked]
    assert without_shares(together) == without_shares(narrow) == without_shares(alone)


def test_the_plan_bounds_what_signals_cost() -> None:
    problems = world.problems(12)
    strong = TellingBackend(world.strong_step, answers={"Rate": [str(i) for i in range(10)]})
    policies = [
        Signalled(FirstTokenEntropy(), 0.3),
        Signalled(Agreement(3), 0.5),
        Signalled(StrongRating(), 7, "resample", tries=3, last="escalate"),
    ]
    for policy in policies:
        traces = route_all(problems, Models(TellingBackend(world.weak_step), strong), policy)
        planned = {part.role: part for part in plan_routing(Config(), [policy], problems)}
        for trace in traces:
            for role, usage in trace.usage.items():
                assert usage.calls <= planned[role].calls / len(problems)  # type: ignore[index]


def test_policies_are_named_by_their_signal_in_tables() -> None:
    assert label_of(Signalled(ScoreDrop(), 0.25)) == "Score_drop 0.25"
    assert Signalled(ScoreDrop(), 0.25, "resample").family == "score_drop, resample 2"
    assert Random(0.3).family == "random"


def test_watching_notes_every_step_of_the_weak_model_alone() -> None:
    watch = Watch(MaxLogit())
    trace = go(watch)
    assert authors(trace) == "wwwwww"
    assert watch.values == {"p": [pytest.approx(TORN[0] if i in (1, 3) else SURE[0]) for i in range(6)]}
    assert go(watch).steps[0].decision == "keep: watching"
    assert Keep() == Keep("watching")
    assert math.isfinite(sum(watch.values["p"]))
