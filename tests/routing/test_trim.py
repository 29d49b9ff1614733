"""The routing loop on scripted models: who writes what, in which calls, at what cost, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.config import SamplingConfig
from stepwise.errors import BackendError, ConfigError, ScorerError
from stepwise.models.base import Completion, Request, first_of
from stepwise.routing import (
    Always,
    Escalate,
    Keep,
    Models,
    Never,
    Policy,
    Random,
    RouteSettings,
    RoutingInterrupted,
    Threshold,
    View,
    route_all,
)
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Step, Trace, Usage
from tests.fakes import Line, ScriptedBackend, ScriptedScorer, n_tokens
from tests.routing import world
from tests.routing.scripted import P, one


def alone(backend: ScriptedBackend, role: str, problem: Problem, seed: int = 0) -> list[str]:
    """One model alone, one request at a time, with the seeds that the loop documents."""
    from stepwise.seeds import stable_hash

    texts: list[Step] = []
    for index in range(30):
        request = Request(problem, tuple(texts), max_tokens=128, seed=stable_hash(seed, problem.id, index, role, 0))
        result = backend.continue_solutions([request])[0]
        texts.append(Step(result.text, role))
        if result.finish == "answer":
            break
    return [step.text for step in texts]


def test_a_step_below_the_threshold_is_rewritten_and_control_returns_to_the_weak_model() -> None:
    trace = one(["a", "b", "c \\boxed{4}"], ["A", "B", "C"], a=0.9, b=0.31)
    assert [(step.text, step.author) for step in trace.steps] == [
        ("a", "weak"),
        ("B", "strong"),
        ("c \\boxed{4}", "weak"),
    ]
    kept, escalated, last = trace.steps
    assert kept.decision == "keep: score 0.90 >= 0.50"
    assert escalated.decision == "escalate: score 0.31 < 0.50"
    assert [(d.text, d.author, d.score) for d in escalated.discarded] == [("b", "weak", 0.31)]
    assert (kept.score, escalated.score, last.score) == (0.9, 0.9, 0.9)
    assert (trace.finish, trace.answer, trace.note) == ("answer", "4", "")


def test_the_usage_of_every_piece_of_text_is_recorded_once() -> None:
    made = world.models()
    traces = world.solve(made=made)
    assert isinstance(made.weak, ScriptedBackend)
    assert isinstance(made.strong, ScriptedBackend)
    assert made.scorer is not None
    cost = cost_of(traces, weak=made.weak, strong=made.strong, scorer=made.scorer)
    assert cost.calls == len(made.weak.requests) + len(made.strong.requests)
    assert cost.strong_calls == len(made.strong.requests)
    assert sum((trace.scorer_usage for trace in traces), Usage()) == made.scorer.usage
    texts = [part.text for t in traces for s in t.steps for part in (s, *s.discarded)]
    assert cost.all_tokens == sum(map(n_tokens, texts))
    assert cost.discarded_tokens == sum(n_tokens(d.text) for t in traces for s in t.steps for d in s.discarded) > 0


def test_problems_that_wait_at_once_share_a_call_and_nobody_waits_for_another_step() -> None:
    """The successor of "all problems move in lockstep": one request a step and problem, in common batches."""
    made = world.models()
    world.solve(n=20, made=made)
    assert isinstance(made.weak, ScriptedBackend)
    assert isinstance(made.scorer, ScriptedScorer)
    for batches in (made.weak.batches, made.scorer.batches):
        assert len(batches[0]) == 20
        assert sum(len(batch) for batch in batches) == 20 * world.LENGTH


def test_a_request_that_hangs_holds_up_its_own_problem_only() -> None:
    hold, ended = threading.Event(), list[str]()

    class Slow(ScriptedBackend):
        """Answers each request by itself; those of the first problem wait until the others have ended."""

        remote = True

        async def generate(self, request: Request) -> Completion:
            if request.problem.id == "p0":
                assert await asyncio.to_thread(hold.wait, 30)
            return first_of(self.continue_solutions([request]))

    def told(trace: Trace) -> None:
        ended.append(trace.problem.id)
        if len(ended) == 4:
            hold.set()

    made = world.models()._replace(weak=Slow(world.weak_step, "w"))
    traces = route_all(world.problems(5), made, Threshold(0.5), on_trace=told)
    assert [trace.finish for trace in traces] == ["answer"] * 5
    assert ended[-1] == "p0"


@pytest.mark.parametrize("seed", [0, 7])
def test_never_is_the_weak_model_alone_and_always_the_strong_one(seed: int) -> None:
    never, always = world.solve(Never(), seed=seed), world.solve(Always(), seed=seed)
    for trace in never:
        assert [s.text for s in trace.steps] == alone(ScriptedBackend(world.weak_step), "weak", trace.problem, seed)
        assert {s.author for s in trace.steps} == {"weak"}
    for trace in always:
        assert [s.text for s in trace.steps] == alone(ScriptedBackend(world.strong_step), "strong", trace.problem, seed)
        assert {s.author for s in trace.steps} == {"strong"}


@pytest.mark.parametrize("policy", [Never(), Always(), Random(0.5)])
def test_policies_that_decide_before_waste_no_draft_and_call_no_scorer(policy: Policy) -> None:
    made = world.models()
    traces = world.solve(policy, made=made)
    assert all(not step.discarded for trace in traces for step in trace.steps)
    assert cost_of(traces).discarded_tokens == 0
    assert made.scorer is not None
    assert made.scorer.usage.calls == 0
    if isinstance(policy, Always):
        assert isinstance(made.weak, ScriptedBackend)
        assert made.weak.requests == []


def test_random_escalates_about_its_rate_and_a_higher_rate_only_adds_at_the_same_prefix() -> None:
    views = [View(P, tuple(Step(str(j), "weak") for j in range(i % 9)), seed=i) for i in range(2000)]
    low = [isinstance(Random(0.2).decide(view), Escalate) for view in views]
    high = [isinstance(Random(0.5).decide(view), Escalate) for view in views]
    assert 0.17 < sum(low) / 2000 < 0.23
    assert 0.46 < sum(high) / 2000 < 0.54
    assert all(h for lo, h in zip(low, high, strict=True) if lo)
    other = [isinstance(Random(0.5, seed=1).decide(view), Escalate) for view in views]
    assert other != high


@given(st.floats(0, 1), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1)))
def test_at_one_prefix_a_higher_threshold_never_escalates_less(a: float, b: float, score: float | None) -> None:
    view = View(P, (), Step("draft", "weak", score))
    low, high = sorted((a, b))
    if Threshold(low).decide(view) == Escalate():
        assert Threshold(high).decide(view) == Escalate()


@given(st.floats(0, 1))
def test_threshold_zero_keeps_every_score_and_one_above_one_keeps_none(score: float) -> None:
    view = View(P, (), Step("draft", "weak", score))
    assert Threshold(0).decide(view) == Keep()
    assert Threshold(1.01).decide(view) == Escalate()
    assert Threshold(score).decide(view) == Keep()


def test_the_first_step_escalated_at_a_threshold_is_escalated_at_every_higher_one() -> None:
    runs = {t: world.solve(Threshold(t), n=40) for t in (0.0, 0.2, 0.4, 0.6, 1.01)}

    def first(trace: Trace) -> int:
        return next((i for i, step in enumerate(trace.steps) if step.author == "strong"), 99)

    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 1.01)):
        assert all(first(h) <= first(lo) for lo, h in zip(runs[low], runs[high], strict=True))
    authors = {t: {step.author for trace in traces for step in trace.steps} for t, traces in runs.items()}
    assert authors[0.0] == {"weak"}
    assert authors[1.01] == {"strong"}


def test_policies_share_drafts_at_equal_prefixes() -> None:
    low, high = world.solve(Threshold(0.2), n=40), world.solve(Threshold(0.6), n=40)
    shared = 0
    for a, b in zip(low, high, strict=True):
        for i in range(min(len(a.steps), len(b.steps))):
            if a.prefix(i).text != b.prefix(i).text:
                break
            first = [s.discarded[0] if s.discarded else s for s in (a.steps[i], b.steps[i])]
            assert first[0].text == first[1].text
            shared += 1
    assert shared >= 40


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12), st.sampled_from([Threshold(0.5), Random(0.4), Never()]))
def test_a_trace_depends_on_neither_order_nor_company_nor_window(order: list[int], window: int, policy: Policy) -> None:
    def texts(traces: list[Trace]) -> dict[str, list[tuple[str, str, str]]]:
        return {t.problem.id: [(s.text, s.author, s.decision) for s in t.steps] for t in traces}

    pool = world.problems(12)
    whole = texts(route_all(pool, world.models(), policy))
    shuffled = route_all([pool[i] for i in order], world.models(), policy, RouteSettings(window=window))
    assert [t.problem.id for t in shuffled] == [pool[i].id for i in order]
    assert texts(shuffled) == whole
    assert texts(route_all(pool[:1], world.models(), policy)) == {"p0": whole["p0"]}


def test_a_window_bounds_the_batch_and_is_refilled() -> None:
    made = world.models()
    route_all(world.problems(10), made, Never(), RouteSettings(window=4))
    assert isinstance(made.weak, ScriptedBackend)
    assert [len(batch) for batch in made.weak.batches] == [4] * 10 + [2] * 5


def test_escalating_repairs_the_world() -> None:
    rights = [sum(map(world.right, world.solve(policy, n=60))) for policy in (Never(), Threshold(0.6), Always())]
    assert rights[0] < rights[1] <= rights[2] == 60


# --- how a trace ends -------------------------------------------------------------------------------------------------


def test_an_end_of_message_without_a_box_ends_the_trace_and_says_so() -> None:
    trace = one(["a", Line("b", "eos")], a=0.9, b=0.9)
    assert (trace.finish, len(trace.steps)) == ("eos", 2)
    assert "without a boxed answer" in trace.note


def test_an_empty_end_of_message_leaves_the_steps_clean_and_its_cost_counted() -> None:
    trace = one(["a"], policy=Never())
    assert (trace.finish, [s.text for s in trace.steps]) == ("eos", ["a"])
    assert [(s.text, s.usage.generated_tokens) for s in trace.abandoned] == [("", 1)]
    assert cost_of([trace]).all_tokens == n_tokens("a") + 1


@pytest.mark.parametrize("empty", ["", "  \n "])
def test_an_empty_step_ends_the_trace_and_is_named(empty: str) -> None:
    trace = one(["a", empty, "c"], policy=Never())
    assert (trace.finish, trace.text) == ("repeat", "a")
    assert "step 1 (weak) is empty" in trace.note


def test_an_empty_draft_counts_as_zero_for_the_threshold_and_is_not_shown_to_the_scorer() -> None:
    made = Models(ScriptedBackend({"p": ["", "b \\boxed{4}"]}), ScriptedBackend({"p": ["A"]}), ScriptedScorer({}))
    trace = route_all([P], made, Threshold(0.5))[0]
    assert [s.text for s in trace.steps] == ["A", "b \\boxed{4}"]
    assert "empty draft" in trace.steps[0].decision
    assert isinstance(made.scorer, ScriptedScorer)
    assert [steps for batch in made.scorer.batches for _, steps in batch] == [("A", "b \\boxed{4}")]


def test_a_text_that_repeats_itself_ends_the_trace() -> None:
    trace = one([Line("a a a a", "repeat")], policy=Never())
    assert (trace.finish, trace.text) == ("repeat", "a a a a")
    assert "repeats itself" in trace.note


def test_going_in_circles_ends_at_the_third_copy_of_a_step() -> None:
    trace = one(["x", "y", "x", "y", "x", "y", "x"], policy=Never())
    assert (trace.finish, [s.text for s in trace.steps]) == ("repeat", ["x", "y", "x", "y", "x"])
    assert "more than 2 times" in trace.note


def test_a_model_that_never_boxes_stops_at_the_step_limit() -> None:
    made = Models(ScriptedBackend(lambda p, prefix, seed: f"step {len(prefix)}"), ScriptedBackend({}))
    trace = route_all([P], made, Never(), RouteSettings(max_steps=7))[0]
    assert (trace.finish, len(trace.steps)) == ("steps", 7)
    assert "7 steps" in trace.note


def test_a_step_that_reaches_its_token_limit_ends_the_trace() -> None:
    made = Models(ScriptedBackend({"p": ["one two three four five six"]}), ScriptedBackend({}))
    trace = route_all([P], made, Never(), RouteSettings(SamplingConfig(max_step_tokens=4)))[0]
    assert (trace.finish, trace.text) == ("length", "one two three four")
    assert "cut at 4 tokens" in trace.note


def test_a_box_ends_the_trace_even_where_the_backend_missed_it() -> None:
    assert one([Line("it is \\boxed{4}", "step"), "more"], policy=Never()).finish == "answer"


@pytest.mark.parametrize("role", ["weak", "strong"])
def test_a_model_that_fails_for_one_problem_ends_that_trace_alone(role: str) -> None:
    fail = Line(error="the socket closed")
    weak, strong = ["a", "b", "c \\boxed{4}"], ["A", "B", "C"]
    (weak if role == "weak" else strong)[1] = fail  # type: ignore[call-overload]
    other = Problem("q", "?", "4")
    made = Models(
        ScriptedBackend({"p": weak, "q": ["a", "e \\boxed{4}"]}),
        ScriptedBackend({"p": strong}),
        ScriptedScorer({"b": 0.1}),
    )
    failed, fine = route_all([P, other], made, Threshold(0.5))
    assert (failed.finish, failed.text) == ("error", "a")
    assert f"{role} model failed at step 1: the socket closed" in failed.note
    assert cost_of([failed]).calls == (2 if role == "weak" else 3)
    assert fine.finish == "answer"


def test_a_call_that_fails_as_a_whole_is_raised() -> None:
    made = world.models()
    made.weak.broken = True  # type: ignore[attr-defined]
    with pytest.raises(BackendError):
        world.solve(made=made)


def test_a_backend_that_drops_a_request_is_an_error() -> None:
    class Lossy(ScriptedBackend):
        def continue_solutions(self, requests: Sequence[Request]) -> list:  # type: ignore[type-arg]
            return super().continue_solutions(requests)[1:]

    with pytest.raises(BackendError, match="0 answers to 1 requests"):
        route_all([P], Models(Lossy({"p": ["a"]}), ScriptedBackend({})), Never())


@pytest.mark.parametrize("score", [1.2, -0.1, float("nan")])
def test_a_score_that_is_no_probability_is_an_error_that_names_scorer_and_problem(score: float) -> None:
    with pytest.raises(ScorerError, match=r"'scripted-scorer', problem 'p', step 0: the score is"):
        one(["a"], a=score)


def test_a_policy_that_needs_scores_needs_a_scorer() -> None:
    with pytest.raises(ConfigError, match="no scorer"):
        route_all([P], Models(ScriptedBackend({}), ScriptedBackend({})), Threshold(0.5))


def test_ctrl_c_raises_with_one_trace_per_problem() -> None:
    made = world.models()
    finished: list[Trace] = []

    def step(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        if len(prefix) == 3:
            raise KeyboardInterrupt
        return "so \\boxed{7}" if problem.id == "p1" else f"step {len(prefix)}"

    made = made._replace(weak=ScriptedBackend(step))
    with pytest.raises(RoutingInterrupted) as caught:
        route_all(world.problems(3), made, Never(), on_trace=finished.append)
    assert [t.finish for t in caught.value.traces] == ["interrupted", "answer", "interrupted"]
    assert [len(t.steps) for t in caught.value.traces] == [3, 1, 3]
    assert [t.problem.id for t in finished] == ["p1"]
