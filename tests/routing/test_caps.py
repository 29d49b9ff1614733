"""Caps on each problem of a run, alone and beside those of the run."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.config import BudgetConfig, CapsConfig, SamplingConfig
from stepwise.models.budget import Ledger
from stepwise.models.store import CallCache
from stepwise.routing import Always, Models, Never, Policy, RouteSettings, RoutingInterrupted, StepRouter, Threshold
from stepwise.routing import route_all as route
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Trace, Usage
from tests.fakes import ScriptedBackend, ScriptedScorer
from tests.routing import world

CAPPED = RouteSettings(SamplingConfig(max_step_tokens=16))


def strong(trace: Trace) -> int:
    return cost_of([trace]).strong_tokens


def run(policy: Policy, caps: BudgetConfig, n: int = 12) -> tuple[list[Trace], Ledger]:
    ledger = Ledger(caps)
    return route(world.problems(n), world.models(), policy, CAPPED, ledger=ledger), ledger


@pytest.mark.parametrize("policy", [Threshold(1.01), Threshold(0.5), Always()])
@pytest.mark.parametrize("cap", [0, 15, 16, 23, 30])
def test_strong_tokens_of_a_problem_never_pass_its_cap_and_the_weak_model_goes_on(policy: Policy, cap: int) -> None:
    traces, ledger = run(policy, BudgetConfig(problem=CapsConfig(strong_tokens=cap)))
    free, _ = run(policy, BudgetConfig())
    assert max(map(strong, traces)) <= cap
    assert all(trace.finish == ("capped" if "kept weak" in trace.note else "answer") for trace in traces)
    assert ledger.usage("strong").generated_tokens == cost_of(traces).strong_tokens
    for trace, uncapped in zip(traces, free, strict=True):
        refused = [step for step in trace.steps if "budget.problem.strong_tokens" in step.decision]
        assert {step.author for step in refused} <= {"weak"}
        assert bool(refused) == (trace.steps != uncapped.steps)  # a cap that is not reached changes nothing
        assert not refused or strong(trace) > cap - 16
    assert any("keep: budget.problem.strong_tokens has" in step.decision for trace in traces for step in trace.steps)


@given(st.integers(0, 90), st.integers(0, 700))
@settings(max_examples=40, deadline=None)
def test_caps_on_the_problem_and_on_the_run_hold_together(per_problem: int, for_all: int) -> None:
    caps = BudgetConfig(total_tokens=for_all, problem=CapsConfig(total_tokens=per_problem))
    traces, ledger = run(Threshold(0.5), caps)
    assert max(cost_of([trace]).all_tokens for trace in traces) <= per_problem
    assert cost_of(traces).all_tokens == ledger.usage().generated_tokens <= for_all
    assert ledger.remaining()["total_tokens"] == for_all - cost_of(traces).all_tokens
    for trace in traces:
        assert trace.finish == "answer" or (trace.finish in ("budget", "capped") and "total_tokens" in trace.note)


def test_the_calls_of_a_problem_are_capped_exactly() -> None:
    traces, _ = run(Never(), BudgetConfig(problem=CapsConfig(calls=3)))
    assert [cost_of([trace]).calls for trace in traces] == [3] * len(traces)
    assert {(trace.finish, trace.note) for trace in traces} == {
        ("budget", "the budget ended before step 3: budget.problem.calls has 0 of 3 left")
    }


def test_a_dear_problem_at_the_head_of_the_line_holds_nobody_up() -> None:
    """One that talks at length reaches its cap; those behind it in the same batch are served in full."""

    def step(problem: Problem, prefix: Sequence[str], seed: int) -> str:
        if problem.id == "p0":
            return f"{len(prefix)} " + "word " * 14
        return "\\boxed{7}" if len(prefix) == 2 else f"step {len(prefix)}"

    made = Models(ScriptedBackend(step), ScriptedBackend(step))
    caps = BudgetConfig(problem=CapsConfig(total_tokens=40))
    traces = route(world.problems(6), made, Never(), CAPPED, ledger=Ledger(caps))
    assert [trace.finish for trace in traces] == ["budget"] + ["answer"] * 5
    assert [len(batch) for batch in made.weak.batches] == [6, 6, 6]  # type: ignore[attr-defined]
    assert made.weak.requests[-6].max_tokens == 8  # type: ignore[attr-defined]  # what the first one had left
    assert [step.decision for step in traces[0].abandoned] == ["cut: budget.problem.total_tokens"]


def test_a_policy_is_told_of_the_nearer_cap() -> None:
    seen: list[int | None] = []

    class Looks(Always):
        def decide(self, view):  # type: ignore[no-untyped-def]
            seen.append(view.strong_tokens_left)
            return super().decide(view)

    route(
        world.problems(1),
        world.models(),
        Looks(),
        CAPPED,
        ledger=Ledger(BudgetConfig(strong_tokens=30, problem=CapsConfig(strong_tokens=20))),
    )
    assert seen[0] == 20


def test_an_interrupted_attempt_counts_for_the_caps_of_its_problem_and_of_the_run() -> None:
    made = world.models()
    script, calls = made.strong._script, 0  # type: ignore[attr-defined]

    def stops(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 11:
            raise KeyboardInterrupt
        return script(problem, prefix, seed)  # type: ignore[no-any-return]

    made.strong._script = stops  # type: ignore[attr-defined]
    caps = BudgetConfig(strong_tokens=400, problem=CapsConfig(strong_tokens=60))
    router = StepRouter(*made, Always(), budget=caps, sampling=SamplingConfig(max_step_tokens=16))
    with pytest.raises(RoutingInterrupted) as stop:
        router.solve_all(world.problems(5), progress=False)
    before = stop.value.traces
    assert min(map(strong, before)) > 10
    after = router.solve_all(world.problems(5), progress=False, resume=before)
    for one, two in zip(before, after, strict=True):
        assert 60 - 16 < strong(one) + strong(two) <= 60
        assert two.finish == "answer"
    assert router.ledger.usage("strong").generated_tokens == sum(map(strong, [*before, *after]))


def test_asking_a_router_the_same_question_again_begins_a_new_problem() -> None:
    router = StepRouter(*world.models(), Always(), budget=BudgetConfig(problem=CapsConfig(strong_tokens=60)))
    first, second = (router.solve_all(world.problems(1), progress=False)[0] for _ in range(2))
    assert [step.text for step in first.steps] == [step.text for step in second.steps]
    assert strong(first) == strong(second)


# --- a step gets what is left -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("caps", [{"strong_tokens": 100}, {"problem": {"strong_tokens": 20}}, {"strong_tokens": 45}])
def test_a_cap_smaller_than_the_longest_step_does_not_switch_the_strong_model_off(caps: dict[str, object]) -> None:
    """Steps here have 8 tokens, and may have 128."""
    budget = BudgetConfig.model_validate(caps)
    ledger = Ledger(budget)
    traces = route(world.problems(3), world.models(), Always(), RouteSettings(), ledger=ledger)
    if (cap := budget.strong_tokens) is not None:
        assert cap - 8 < cost_of(traces).strong_tokens == ledger.usage("strong").generated_tokens <= cap
    if (cap := budget.problem.strong_tokens) is not None:
        assert all(cap - 8 < strong(trace) <= cap for trace in traces)
    assert all(trace.finish == ("capped" if "kept weak" in trace.note else "answer") for trace in traces)


def test_a_strong_step_that_the_cap_cuts_gives_way_to_the_draft_and_is_counted() -> None:
    talks = {"p0": ["one two three four five six seven eight nine ten", "\\boxed{7}"]}
    made = Models(ScriptedBackend({"p0": ["draft", "\\boxed{7}"]}), ScriptedBackend(talks), ScriptedScorer({}, 0.0))
    ledger, store = Ledger(BudgetConfig(strong_tokens=9)), CallCache(replays_are_free=True)
    (trace,) = route(world.problems(1), made, Threshold(0.5), RouteSettings(), ledger=ledger, store=store)
    first, last = trace.steps
    assert (first.text, first.author) == ("draft", "weak")
    assert first.decision.startswith("keep: budget.strong_tokens had 9 tokens left, which cut the step (escalate: ")
    assert [(step.author, step.usage.generated_tokens) for step in first.evidence] == [("strong", 9)]
    assert last.decision.startswith("keep: budget.strong_tokens has 0 of 9 left, a step needs 8 (escalate: ")
    assert (trace.finish, trace.note) == ("capped", "kept weak at step 0, 1: budget.strong_tokens")
    assert strong(trace) == ledger.usage("strong").generated_tokens == store.spent()["strong"].generated_tokens == 9
    assert ledger.summary().splitlines()[-2:] == [
        "requests refused by budget.strong_tokens: 1", "answers cut short by budget.strong_tokens: 1",
    ]  # fmt: skip


def test_the_summary_shows_the_highest_spending_of_a_problem_beside_its_cap() -> None:
    ledger = Ledger(BudgetConfig.model_validate({"problem": {"strong_tokens": 60, "calls": 100}}))
    traces = route(world.problems(3), world.models(), Always(), RouteSettings(), ledger=ledger)
    calls = max(sum(usage.calls for role, usage in t.usage.items() if role != "scorer") for t in traces)
    assert f"cap on strong_tokens of each problem: 60, at most {max(map(strong, traces))} spent by one" in str(ledger)
    assert f"cap on calls of each problem: 100, at most {calls} spent by one" in ledger.summary()


@given(st.integers(0, 120), st.integers(0, 400), st.sampled_from([16, 64, 128]))
@settings(max_examples=30, deadline=None)
def test_what_is_left_is_spent_and_never_more(strong_cap: int, total: int, longest: int) -> None:
    ledger = Ledger(BudgetConfig(strong_tokens=strong_cap, total_tokens=total))
    steps = RouteSettings(SamplingConfig(max_step_tokens=longest))
    traces = route(world.problems(8), world.models(), Threshold(0.5), steps, ledger=ledger)
    cost = cost_of(traces)
    assert cost.strong_tokens == ledger.usage("strong").generated_tokens <= strong_cap
    assert cost.all_tokens == ledger.usage().generated_tokens <= total
    ended = [trace for trace in traces if trace.finish == "budget"]
    assert not ended or cost.all_tokens > total - 8
    weak = [trace for trace in traces if "kept weak" in trace.note and trace not in ended]
    assert not weak or cost.strong_tokens > strong_cap - 8 or cost.all_tokens > total - 8


# --- models behind an API ---------------------------------------------------------------------------------------------


class Probing(ScriptedBackend):
    """Has to be tried out before its first request, and may ask twice for one sample."""

    remote = True
    calls_per_sample = 2
    probe_bound = Usage("w", 4, 400, 400, 40)
    prepared = 0

    def prepare(self) -> Usage:
        self.prepared += 1
        self.probe_bound = Usage()
        return Usage("w", 3, 300, 300, 30, cost=0.0) if self.prepared == 1 else Usage()


def test_what_trying_out_a_model_costs_is_counted_once_and_for_the_run() -> None:
    made = Models(Probing(world.weak_step, "w"), Probing(world.strong_step, "s"))
    ledger = Ledger(BudgetConfig(problem=CapsConfig(total_tokens=400)))
    traces = route(world.problems(4), made, Never(), CAPPED, ledger=ledger)
    assert {trace.finish for trace in traces} == {"answer"}
    assert ledger.usage("weak").calls == 3 + cost_of(traces).calls
    assert ledger.usage("weak").generated_tokens == 30 + cost_of(traces).all_tokens
    assert made.strong.prepared == 0  # type: ignore[attr-defined]  # a model that nobody asks costs nothing


@pytest.mark.parametrize(("calls", "prepared", "asked"), [(3, 0, 0), (4, 1, 0), (5, 1, 1), (7, 1, 3)])
def test_a_model_is_not_tried_out_or_asked_where_that_could_pass_a_cap(calls: int, prepared: int, asked: int) -> None:
    weak = Probing(world.weak_step, "w")
    ledger = Ledger(BudgetConfig(calls=calls))
    (trace,) = route(world.problems(1), Models(weak, weak), Never(), CAPPED, ledger=ledger)
    assert (weak.prepared > 0, len(weak.requests)) == (bool(prepared), asked)
    assert (trace.finish, ledger.usage().calls) == ("budget", 3 * prepared + asked)
    assert "budget.calls" in trace.note


def test_a_scorer_that_costs_money_is_not_asked_where_it_could_pass_the_cap() -> None:
    prices = {"weak": (0.0, 0.0), "strong": (0.0, 0.0), "scorer": (1000.0, 0.0)}
    spent = []
    for cap in (0.5, 0.8, 4.0):
        ledger = Ledger(BudgetConfig(money=cap), prices)
        traces = route(world.problems(6), world.models(), Threshold(0.5), CAPPED, ledger=ledger)
        money = ledger.usage("scorer").cost or 0.0
        assert money <= cap
        assert all(t.finish == "answer" or "was scored: budget.money" in t.note for t in traces)
        assert any(t.finish == "budget" for t in traces) == (cap < 4)
        spent.append(money)
    assert spent[0] < spent[1] < spent[2]
