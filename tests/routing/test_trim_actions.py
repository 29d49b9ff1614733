"""The routing loop: wider actions than TRIM's, and caps."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.config import BudgetConfig, SamplingConfig
from stepwise.errors import BackendError
from stepwise.models.budget import Ledger
from stepwise.routing import (
    Action,
    Always,
    Escalate,
    HandOver,
    Keep,
    Models,
    Never,
    Policy,
    Random,
    Resample,
    RouteSettings,
    Threshold,
    View,
    route_all,
)
from stepwise.routing.metrics import cost_of
from stepwise.routing.policy import When
from tests.fakes import ScriptedBackend
from tests.routing import world
from tests.routing.scripted import STRONG, WEAK, P, Scripted, one

# --- wider actions ----------------------------------------------------------------------------------------------------


def test_escalating_for_two_steps_returns_after_two() -> None:
    trace = one(WEAK, STRONG, Scripted(((1, Escalate(2, "hard")),)))  # type: ignore[arg-type]
    assert "".join(step.author[0] for step in trace.steps) == "wsswww"
    assert [len(step.discarded) for step in trace.steps] == [0, 1, 0, 0, 0, 0]
    assert [trace.steps[i].decision for i in (1, 2)] == ["escalate: hard", "escalate: hard (continued)"]


@pytest.mark.parametrize(("when", "discarded"), [("before", 0), ("after", 1)])
def test_handing_over_is_for_good(when: When, discarded: int) -> None:
    trace = one(WEAK, STRONG, Scripted(((2, HandOver()),), when))  # type: ignore[arg-type]
    assert "".join(step.author[0] for step in trace.steps) == "wwssss"
    assert sum(len(step.discarded) for step in trace.steps) == discarded


@pytest.mark.parametrize(("action", "authors"), [(Keep(), "w"), (HandOver(), "s"), (Escalate(), "s")])
def test_a_policy_on_the_question_is_asked_once(action: Action, authors: str) -> None:
    trace = one(WEAK, STRONG, Scripted(((0, action), (3, HandOver())), "question"))  # type: ignore[arg-type]
    assert [s.author[0] for s in trace.steps] == [authors] + [("s" if isinstance(action, HandOver) else "w")] * 5


def test_resampling_draws_again_with_other_seeds_and_keeps_the_drafts() -> None:
    weak = ScriptedBackend(lambda p, prefix, seed: f"draw {seed}" if len(prefix) < 2 else "\\boxed{4}")
    policy = Scripted(((1, Resample("odd")),))
    trace = route_all([P], Models(weak, ScriptedBackend({})), policy)[0]  # type: ignore[arg-type]
    drafts = trace.steps[1].discarded
    assert [d.decision for d in drafts] == ["draft again: odd"] * 2
    assert len({trace.steps[1].text, *(d.text for d in drafts)}) == 3
    assert trace.steps[1].decision == "keep: enough"


def test_a_policy_before_the_draft_that_looks_at_scores_gets_those_of_the_steps_so_far() -> None:
    seen: list[tuple[float | None, ...]] = []

    @dataclasses.dataclass(frozen=True)
    class Looks(Scripted):
        def decide(self, view: View) -> Action:
            seen.append(view.scores)
            return Keep()

    one(["a", "b", "c \\boxed{4}"], policy=Looks((), "before", True), a=0.3, b=0.4)  # type: ignore[arg-type]
    assert seen == [(), (0.3,), (0.3, 0.4)]


# --- caps -------------------------------------------------------------------------------------------------------------


CAPPED = RouteSettings(SamplingConfig(max_step_tokens=16))


@pytest.mark.parametrize("policy", [Threshold(1.01), Always(), Random(0.8), Scripted(((0, HandOver()),), "question")])
@pytest.mark.parametrize("cap", [0, 15, 16, 100, 333])
def test_strong_tokens_never_pass_their_cap_and_the_weak_model_goes_on_alone(policy: Policy, cap: int) -> None:
    ledger = Ledger(BudgetConfig(strong_tokens=cap))
    made = world.models()
    traces = route_all(world.problems(15), made, policy, CAPPED, ledger=ledger)
    cost = cost_of(traces)
    assert cost.strong_tokens == ledger.usage("strong").generated_tokens <= cap
    assert cost.strong_tokens > cap - 16 or cap < 16
    refused = [s for t in traces for s in t.steps if s.decision.startswith("keep: budget.")]
    for trace in traces:
        kept = any(step in refused for step in trace.steps)
        assert trace.finish == ("capped" if kept else "answer")
    assert refused
    assert {s.author for s in refused} == {"weak"}


@given(st.integers(0, 700))
@settings(max_examples=30, deadline=None)
def test_all_tokens_never_pass_their_cap_and_what_is_stopped_is_named(cap: int) -> None:
    ledger = Ledger(BudgetConfig(total_tokens=cap))
    traces = route_all(world.problems(10), world.models(), Threshold(0.5), CAPPED, ledger=ledger)
    assert cost_of(traces).all_tokens == ledger.usage().generated_tokens <= cap
    assert all(
        t.finish in ("answer", "capped") or (t.finish == "budget" and "ended before step" in t.note) for t in traces
    )
    assert ledger.remaining()["total_tokens"] == cap - cost_of(traces).all_tokens


def test_calls_are_capped_exactly() -> None:
    made = world.models()
    traces = route_all(world.problems(10), made, Threshold(0.5), CAPPED, ledger=Ledger(BudgetConfig(calls=23)))
    assert cost_of(traces).calls == sum(len(m.requests) for m in made[:2]) == 23  # type: ignore[attr-defined]


def test_a_policy_is_told_what_is_left_of_the_strong_tokens() -> None:
    left: list[int | None] = []

    @dataclasses.dataclass(frozen=True)
    class Looks(Scripted):
        def decide(self, view: View) -> Action:
            left.append(view.strong_tokens_left)
            return Escalate()

    made = Models(ScriptedBackend({"p": WEAK}), ScriptedBackend({"p": STRONG}))
    route_all([P], made, Looks(()), CAPPED, ledger=Ledger(BudgetConfig(strong_tokens=20)))  # type: ignore[arg-type]
    assert left == [20, 18, 16, 14, 12, 10]


def test_a_failed_call_gives_its_reservations_back() -> None:
    made, ledger = world.models(), Ledger(BudgetConfig(total_tokens=1000))
    made.weak.broken = True  # type: ignore[attr-defined]
    with pytest.raises(BackendError):
        route_all(world.problems(3), made, Never(), ledger=ledger)
    assert ledger.remaining()["total_tokens"] == 1000
