"""Whole problems to one model: at random, by the question, or after a check of the weak model's solution."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stepwise.config import BudgetConfig
from stepwise.errors import DataError
from stepwise.models.budget import Ledger
from stepwise.routing import (
    Always,
    Cascade,
    HandOver,
    Keep,
    Models,
    Never,
    QueryRandom,
    RoutingInterrupted,
    View,
    fit_query_classifier,
    policy_from_dict,
    policy_to_dict,
    route_all,
)
from stepwise.routing.metrics import cost_of
from stepwise.routing.query import _buckets
from stepwise.stats import auroc
from stepwise.types import Problem, Step, Trace
from tests.fakes import Line, ScriptedBackend, ScriptedScorer, n_tokens
from tests.routing import world
from tests.routing.scripted import STRONG, WEAK, P
from tests.routing.telling import TellingBackend

WRONG = [*WEAK[:5], "w \\boxed{5}"]


def cascade(
    policy: Cascade, weak: Any = None, strong: Any = None, budget: BudgetConfig | None = None, **scores: float
) -> Trace:
    models = Models(
        weak or TellingBackend({"p": WEAK}, answers={"Check a solution": ["yes", "no", "yes", "Yes."]}),
        strong or ScriptedBackend({"p": STRONG}, "strong"),
        ScriptedScorer(scores),
    )
    return route_all([P], models, policy, ledger=Ledger(budget))[0]


# --- at random --------------------------------------------------------------------------------------------------------


def test_a_random_mix_hands_whole_problems_over_at_its_rate_and_a_higher_rate_only_adds() -> None:
    low, high = (world.solve(QueryRandom(p), 200, made=world.models()) for p in (0.3, 0.6))
    for traces, p in ((low, 0.3), (high, 0.6)):
        writers = [{step.author for step in trace.steps} for trace in traces]
        assert all(len(each) == 1 for each in writers)
        assert sum(each == {"strong"} for each in writers) / 200 == pytest.approx(p, abs=0.1)
    assert all(b.steps[0].author == "strong" for a, b in zip(low, high, strict=True) if a.steps[0].author == "strong")


# --- by the question --------------------------------------------------------------------------------------------------


def asked(i: int, noise: int = 0) -> Problem:
    """Every second question is of a kind that the weak model gets wrong."""
    kind = "planted in a row with gaps between them" if i % 2 else "given to her by a friend"
    return Problem(f"q{i}", f"Ada has {7 * i + noise} trees {kind}. How many has she then, on day {i * i}?", "1")


def solved(problem: Problem, right: bool, author: str = "weak") -> Trace:
    return Trace(problem, (Step(f"\\boxed{{{1 if right else 2}}}", author),), "answer")


def test_a_classifier_learns_which_kind_of_question_needs_the_strong_model() -> None:
    policy = fit_query_classifier([solved(asked(i), i % 2 == 0) for i in range(60)])
    fresh = [asked(i, noise=3) for i in range(100, 160)]
    chances = [policy.chance(problem.question) for problem in fresh]
    assert auroc(chances[1::2], chances[::2]) > 0.99
    hard, easy = fresh[1], fresh[0]
    assert policy.at(0.5).decide(View(hard)) == HandOver()
    assert policy.at(0.5).decide(View(easy)) == Keep()
    assert policy.at(1.0).decide(View(hard)) == Keep()


def test_a_fit_is_on_what_the_strong_model_can_do_better_where_that_is_known() -> None:
    weak = [solved(asked(i), False) for i in range(60)]
    strong = [solved(asked(i), i % 2 == 1, "strong") for i in range(60)]
    policy = fit_query_classifier(weak, strong)
    assert policy.chance(asked(201).question) > 0.5 > policy.chance(asked(202).question)


def test_labels_that_the_question_does_not_tell_give_about_the_base_rate() -> None:
    policy = fit_query_classifier([solved(asked(2 * i), bool((i * 7919) % 13 % 3)) for i in range(120)])
    rate = sum(not (i * 7919) % 13 % 3 for i in range(120)) / 120
    chances = [policy.chance(asked(2 * i).question) for i in range(500, 540)]
    assert sum(chances) / 40 == pytest.approx(rate, abs=0.1)


def test_a_classifier_is_plain_json_and_routes_whole_problems() -> None:
    fitted = fit_query_classifier([solved(asked(i), i % 2 == 0) for i in range(60)], size=256)
    policy = policy_from_dict(json.loads(json.dumps(policy_to_dict(fitted))))
    assert policy == fitted
    models = Models(
        ScriptedBackend(lambda *_: "weakly \\boxed{1}"), ScriptedBackend(lambda *_: "strongly \\boxed{1}", "s")
    )
    traces = route_all([asked(100), asked(101)], models, policy)
    assert [trace.steps[0].author for trace in traces] == ["weak", "strong"]
    assert traces[1].steps[0].discarded == ()


def test_a_fit_refuses_what_it_cannot_learn_from() -> None:
    traces = [solved(asked(i), i % 2 == 0) for i in range(30)]
    with pytest.raises(DataError, match="fitted on 1 of these problems, such as 'other-id'"):
        fit_query_classifier(traces, measured_on=[Problem("other-id", asked(3).question.upper())])
    with pytest.raises(DataError, match="at least 20 problems"):
        fit_query_classifier(traces[:10])
    with pytest.raises(DataError, match="0 of 30 traces need"):
        fit_query_classifier([solved(asked(i), True) for i in range(30)])
    with pytest.raises(DataError, match="have no trace of the strong model"):
        fit_query_classifier(traces, [solved(asked(0), True, "strong")])
    with pytest.raises(DataError, match="'x' has no gold answer"):
        fit_query_classifier([*traces, Trace(Problem("x", "Why?"), (), "answer")])


def test_buckets_tell_kinds_of_question_and_not_their_numbers() -> None:
    assert _buckets("She has 12 eggs.", 4096) == _buckets("she has 34 EGGS.", 4096)
    assert _buckets("She has 12 eggs.", 4096)[0] != _buckets("She has 123 eggs.", 4096)[0]
    where, height = _buckets("a b", 4096)
    assert len(where) == 5  # two words, a pair, no numbers, no sentences
    assert height == pytest.approx(5**-0.5)
    assert _buckets("", 8)[0]


# --- after the solution -----------------------------------------------------------------------------------------------


def test_a_solution_that_passes_its_check_stands_and_the_check_is_paid_for() -> None:
    trace = cascade(Cascade(samples=4, threshold=0.75))
    assert {step.author for step in trace.steps} == {"weak"}
    assert (trace.finish, trace.note) == ("answer", "")
    assert [part.decision for part in trace.abandoned] == [f"verification: {w}" for w in ("right", "wrong")] + [
        "verification: right"
    ] * 2
    spent = trace.usage
    assert spent["weak"].generated_tokens == sum(map(n_tokens, WEAK)) + 4 * n_tokens("yes")
    assert spent["weak"].calls == len(WEAK) + 4
    assert "strong" not in spent


def test_a_solution_that_fails_is_solved_anew_and_paid_for_twice() -> None:
    trace = cascade(Cascade(samples=4, threshold=0.8))
    assert [step.text for step in trace.steps] == STRONG
    assert {step.author for step in trace.steps} == {"strong"}
    assert [draft.text for draft in trace.steps[0].discarded] == WEAK
    assert trace.steps[0].decision == "hand over: verification 0.750 < 0.800"
    assert (trace.finish, trace.abandoned) == ("answer", ())
    cost = cost_of([trace])
    assert cost.strong_tokens == sum(map(n_tokens, STRONG))
    assert cost.all_tokens == sum(map(n_tokens, [*WEAK, *STRONG])) + 4 * n_tokens("yes")


def test_the_strong_model_starts_from_the_bare_problem_with_the_seeds_of_strong_only() -> None:
    strong, alone = ScriptedBackend({"p": STRONG}), ScriptedBackend({"p": STRONG})
    cascade(Cascade("least_score", 0.8), strong=strong, w1=0.5)
    route_all([P], Models(ScriptedBackend({}), alone), Always())
    asked = [[(r.seed, [step.text for step in r.prefix]) for r in model.requests] for model in (strong, alone)]
    assert asked[0] == asked[1]
    assert len(asked[0]) == len(STRONG)


def test_the_least_score_is_the_check_of_a_scorer_that_is_asked_once() -> None:
    scorer = ScriptedScorer({"w3": 0.4})
    models = Models(ScriptedBackend({"p": WEAK}), ScriptedBackend({"p": STRONG}), scorer)
    kept, gone = (route_all([P], models, Cascade("least_score", t))[0] for t in (0.4, 0.41))
    assert [len(batch) for batch in scorer.batches] == [1, 1]
    assert [step.score for step in kept.steps] == [0.9, 0.9, 0.9, 0.4, 0.9, 0.9]
    assert gone.steps[0].decision == "hand over: least score 0.400 < 0.410"
    assert gone.scorer_usage.calls == 1


@pytest.mark.parametrize("ending", [Line("", "eos"), Line("going on", "length"), Line("la la", "repeat")])
def test_a_solution_without_an_answer_is_handed_over_unchecked(ending: Line) -> None:
    weak = TellingBackend({"p": ["w0", ending]}, answers={"Check": ["yes"]})
    trace = cascade(Cascade(threshold=0.0), weak)
    assert [step.text for step in trace.steps] == STRONG
    assert trace.steps[0].decision.startswith("hand over: the weak model's solution ended in")
    assert trace.steps[0].evidence == ()
    assert trace.steps[0].discarded[0].text == "w0"


def test_a_weak_model_that_fails_ends_the_trace_as_under_any_policy() -> None:
    trace = cascade(Cascade(), ScriptedBackend({"p": ["w0", Line("", "error", "gone")]}))
    assert (trace.finish, [step.text for step in trace.steps]) == ("error", ["w0"])


def test_where_the_budget_forbids_the_strong_model_the_weak_solution_stands() -> None:
    trace = cascade(Cascade(threshold=1.01, samples=2), budget=BudgetConfig(strong_tokens=7))
    assert [step.text for step in trace.steps] == WEAK
    assert (trace.finish, len(trace.abandoned)) == ("capped", 2)
    assert trace.note == "not handed over: budget.strong_tokens has 7 of 7 left, a step needs 8"
    assert "strong" not in trace.usage


def test_cascades_repair_the_world_and_cost_both_models() -> None:
    never = world.solve(Never(), 60, made=world.models())
    both = world.solve(Cascade("least_score", 0.3), 60, made=world.models())
    assert sum(map(world.right, both)) > sum(map(world.right, never)) + 15
    gone = [trace for trace in both if trace.steps[0].author == "strong"]
    assert cost_of(both).discarded_tokens == sum(n_tokens(d.text) for t in gone for d in t.steps[0].discarded)


def test_ctrl_c_while_the_strong_model_solves_anew_keeps_what_was_paid() -> None:
    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    with pytest.raises(RoutingInterrupted) as stopped:
        cascade(Cascade("least_score", 1.01), strong=ScriptedBackend(stop))
    (trace,) = stopped.value.traces
    assert trace.finish == "interrupted"
    assert [part.text for part in trace.abandoned] == WEAK
