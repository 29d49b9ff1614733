"""Policies on signals in the routing loop: what they escalate, what they save, and what looking costs."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest

from stepwise.config import BudgetConfig
from stepwise.errors import CapabilityError, ConfigError
from stepwise.models.budget import Ledger
from stepwise.records import from_json, to_json
from stepwise.routing import (
    Action,
    Agreement,
    FirstTokenEntropy,
    LeastLogprob,
    Look,
    MaxLogit,
    MeanLogprob,
    Models,
    Never,
    Policy,
    ScoreDrop,
    Signalled,
    StepScore,
    StrongRating,
    Threshold,
    TokenEntropy,
    TwoStage,
    View,
    route_all,
)
from stepwise.routing.metrics import cost_of
from stepwise.routing.policy import When
from stepwise.types import Problem, TokenStats, Trace
from tests.fakes import Line, ScriptedBackend, ScriptedScorer, n_tokens
from tests.routing import world
from tests.routing.scripted import STRONG, WEAK, P
from tests.routing.telling import TORN, TellingBackend


def go(
    policy: Policy,
    weak: ScriptedBackend | None = None,
    strong: ScriptedBackend | None = None,
    scores: dict[str, float] | None = None,
    budget: BudgetConfig | None = None,
) -> Trace:
    """Route the single problem with the scripted steps."""
    models = Models(
        weak or TellingBackend({"p": WEAK}, unsure=["w1", "w3"]),
        strong or ScriptedBackend({"p": STRONG}, "strong"),
        ScriptedScorer(scores or {}),
    )
    return route_all([P], models, policy, ledger=Ledger(budget))[0]


def authors(trace: Trace) -> str:
    return "".join(step.author[0] for step in trace.steps)


# --- before the draft -------------------------------------------------------------------------------------------------


def test_a_signal_before_the_draft_saves_the_draft_and_costs_one_token_a_step() -> None:
    trace = go(Signalled(FirstTokenEntropy(), 0.3))
    assert authors(trace) == "wswsww"
    assert all(not step.discarded for step in trace.steps)
    assert [len(step.evidence) for step in trace.steps] == [1] * 6
    spent, kept = trace.usage, [WEAK[i] for i in (0, 2, 4, 5)]
    assert spent["weak"].generated_tokens == sum(map(n_tokens, kept)) + 6
    assert spent["weak"].calls == len(kept) + 6
    assert spent["strong"].generated_tokens == n_tokens("s1") + n_tokens("s3")
    assert trace.steps[1].decision == "escalate: first_token_entropy 0.729 > 0.3"


def test_the_same_steps_flagged_after_the_draft_cost_the_drafts() -> None:
    trace = go(Signalled(MaxLogit(), -0.3))
    assert authors(trace) == "wswsww"
    assert trace.usage["weak"].generated_tokens == sum(map(n_tokens, WEAK))
    assert cost_of([trace]).discarded_tokens == n_tokens("w1") + n_tokens("w3")
    assert cost_of([go(Signalled(FirstTokenEntropy(), 0.3))]).discarded_tokens == 0


def test_a_glimpse_is_the_first_token_of_the_draft_that_follows() -> None:
    weak = TellingBackend({"p": WEAK})
    go(Signalled(FirstTokenEntropy(12), 0.3), weak)
    glimpses, drafts = weak.requests[::2], weak.requests[1::2]
    assert {(r.max_tokens, r.top_logprobs) for r in glimpses} == {(1, 12)}
    assert [r.seed for r in glimpses] == [r.seed for r in drafts]
    assert {r.top_logprobs for r in drafts} == {0}


# --- on the draft -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.3, 0.6, 1.01])
def test_the_score_as_a_signal_is_the_threshold_policy(t: float) -> None:
    plain, signal = (world.solve(policy, made=world.models()) for policy in (Threshold(t), Signalled(StepScore(), t)))
    for a, b in zip(plain, signal, strict=True):
        assert [(s.text, s.author, s.score) for s in a.steps] == [(s.text, s.author, s.score) for s in b.steps]
        assert a.scorer_usage == b.scorer_usage
    assert cost_of(plain) == cost_of(signal)


def test_a_drop_is_seen_where_the_level_is_not_low() -> None:
    trace = go(Signalled(ScoreDrop(), 0.2), scores={"w0": 0.95, "w1": 0.6, "s1": 0.7, "w2": 0.65, "w3": 0.7})
    assert authors(trace) == "wswwww"


def test_a_rating_is_asked_of_the_strong_model_and_counted_as_its_tokens() -> None:
    asked = {"The step to rate:\nw2": ["3"], "The step to rate": ["9"]}
    strong = TellingBackend({"p": STRONG}, answers=asked, name="strong")
    trace = go(Signalled(StrongRating(), 7), strong=strong)
    assert authors(trace) == "wwswww"
    spent = trace.usage["strong"]
    assert (spent.calls, spent.generated_tokens) == (6 + 1, 6 * n_tokens("9") + n_tokens("s2"))
    assert [step.evidence[0].decision for step in trace.steps[:3]] == ["rating: 9 of 9", "rating: 9 of 9",
                                                                       "rating: 3 of 9"]  # fmt: skip
    questions = [r.problem.question for r in strong.requests if not r.prefix and r.stop == "solution"]
    assert "Steps before:\nw0\n\nw1\n\nThe step to rate:\nw2\n" in questions[2]
    assert from_json(Trace, to_json(trace)) == trace


@pytest.mark.parametrize(
    ("text", "rating"),
    [("7", 7), (" **8**/9", 8), ("<think>2 is low</think>\n6.", 6), ("10", None), ("0.5", None), ("good: 7", None)],
)
def test_a_rating_is_one_digit_at_the_start(text: str, rating: int | None) -> None:
    strong = TellingBackend({"p": STRONG}, answers={"w0": [text], "Rate": ["9"]})
    said = go(Signalled(StrongRating(), 7), strong=strong).steps[0].evidence[0].decision
    assert said == f"rating: {'cannot be read' if rating is None else f'{rating} of 9'}"


def test_a_rating_that_cannot_be_read_or_fails_keeps_the_step_and_says_so() -> None:
    strong = TellingBackend({"p": STRONG}, answers={"w0": ["certainly"], "Rate": ["9"]})
    trace = go(Signalled(StrongRating(), 7), strong=strong)
    assert trace.steps[0].decision == "keep: rating is missing"
    assert trace.steps[0].evidence[0].decision == "rating: cannot be read"
    failing = ScriptedBackend(lambda *_: Line("", "error", "no such model"))
    trace = go(Signalled(StrongRating(), 7), strong=failing)
    assert (authors(trace), trace.finish) == ("wwwwww", "answer")
    assert trace.steps[0].evidence[0].decision == "rating: failed: no such model"


def test_samples_of_a_step_are_drawn_counted_and_compared() -> None:
    def weak(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        return f"guess {seed}" if len(prefix) == 1 else WEAK[len(prefix)]

    trace = go(Signalled(Agreement(4), 0.5), ScriptedBackend(weak))
    assert authors(trace) == "wswwww"
    assert [len(step.evidence) for step in trace.steps] == [4] * 6
    spent = trace.usage["weak"]
    assert spent.calls == 6 * 5
    assert trace.steps[1].discarded[0].text.startswith("guess")
    assert len({part.text for part in (*trace.steps[1].evidence, *trace.steps[1].discarded)}) == 5


# --- the weak model again ---------------------------------------------------------------------------------------------


def test_resampling_a_flagged_step_costs_no_strong_token_and_stops_when_it_is_no_longer_flagged() -> None:
    tries: list[int] = []

    def weak(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        if len(prefix) != 1:
            return WEAK[len(prefix)]
        tries.append(seed)
        return "slip" if len(tries) < 3 else "fine"

    trace = go(Signalled(StepScore(), 0.5, "resample", tries=4), ScriptedBackend(weak), scores={"slip": 0.1})
    assert authors(trace) == "wwwwww"
    assert "strong" not in trace.usage
    assert [d.text for d in trace.steps[1].discarded] == ["slip", "slip"]
    assert [d.score for d in trace.steps[1].discarded] == [0.1, 0.1]
    assert (trace.steps[1].text, trace.steps[1].score) == ("fine", 0.9)


@pytest.mark.parametrize(("last", "author"), [("keep", "w"), ("escalate", "s")])
def test_what_is_flagged_to_the_last_try_is_kept_or_escalated(last: Any, author: str) -> None:
    policy = Signalled(StepScore(), 0.5, "resample", tries=2, last=last)
    trace = go(policy, scores={"w1": 0.1})
    assert authors(trace) == f"w{author}wwww"
    assert len(trace.steps[1].discarded) == (2 if last == "keep" else 3)


def test_resampling_repairs_a_part_of_the_world_without_the_strong_model() -> None:
    never = world.solve(Never(), 60, made=world.models())
    again = world.solve(Signalled(StepScore(), 0.5, "resample", tries=3), 60, made=world.models())
    assert sum(map(world.right, again)) > sum(map(world.right, never)) + 10
    assert cost_of(again).strong_tokens == 0


# --- two stages -------------------------------------------------------------------------------------------------------


def test_the_second_signal_is_paid_for_only_where_the_first_is_undecided() -> None:
    scorer = ScriptedScorer({"w3": 0.1})
    weak = TellingBackend({"p": WEAK}, unsure=["w1", "w3"])
    entropy = FirstTokenEntropy().value(View(P, first_token=TORN))
    assert entropy is not None
    middle = TwoStage(FirstTokenEntropy(), 0.3, entropy + 0.1, StepScore(), 0.5)
    trace = route_all([P], Models(weak, ScriptedBackend({"p": STRONG}), scorer), middle)[0]
    assert authors(trace) == "wwwsww"
    assert [len(batch) for batch in scorer.batches] == [1, 1]
    assert trace.steps[1].score == 0.9
    assert trace.steps[0].score is not None  # scored with the first undecided step, in the same call
    assert trace.steps[5].score is None
    sure = TwoStage(FirstTokenEntropy(), 0.3, 0.3, StepScore(), 0.5)
    silent = ScriptedScorer({})
    trace = route_all([P], Models(weak, ScriptedBackend({"p": STRONG}), silent), sure)[0]
    assert authors(trace) == "wswsww"
    assert not silent.batches
    assert cost_of([trace]).discarded_tokens == 0


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [FirstTokenEntropy(), MaxLogit(), LeastLogprob(), MeanLogprob("worst")])
def test_a_model_without_log_probabilities_is_refused_with_signal_model_and_remedy(signal: Any) -> None:
    with pytest.raises(CapabilityError, match=rf"signal '{signal.name}' needs .* 'mute' gives none; .*agreement"):
        go(Signalled(signal, 0.5), ScriptedBackend({"p": WEAK}, "mute"))


def test_entropy_of_a_model_that_tells_the_likeliest_tokens_alone_is_refused_with_a_signal_that_it_has() -> None:
    weak = TellingBackend({"p": WEAK}, name="api")
    weak.capabilities = dataclasses.replace(weak.capabilities, entropy=False)
    with pytest.raises(CapabilityError, match=r"signal 'entropy' needs .* 'api' does not tell; .*least_logprob"):
        go(Signalled(TokenEntropy(), 0.5), weak)
    assert authors(go(Signalled(LeastLogprob(), -0.3), weak)) == "wwwwww"  # sure everywhere


@pytest.mark.parametrize("signal", [LeastLogprob(), MeanLogprob(), TokenEntropy()])
def test_what_comes_with_the_draft_is_seen_at_no_cost_and_stands_in_the_trace(signal: Any) -> None:
    weak = TellingBackend({"p": WEAK}, unsure=["w1", "w3"])
    trace = go(Signalled(signal, -0.3 if signal.worse == "low" else 0.5), weak)
    assert authors(trace) == "wswsww"
    assert {request.top_logprobs for batch in weak.batches for request in batch} == {0}
    assert all(not step.evidence for step in trace.steps)
    kept = from_json(Trace, to_json(trace)).steps
    assert kept[0].token_stats == TokenStats(-0.01, -0.01, 0.02)
    assert kept[1].discarded[0].token_stats == TokenStats(-0.7, -0.355, 0.71)


def test_running_forms_leave_out_what_the_strong_model_wrote_and_what_was_thrown_away() -> None:
    values: list[float] = []

    class Noting(LeastLogprob):
        def value(self, view: View) -> float | None:
            values.append(super().value(view) or 0.0)
            return values[-1]

    strong = TellingBackend({"p": STRONG}, unsure=STRONG, name="strong")
    assert authors(go(Signalled(Noting("worst"), -0.5), strong=strong)) == "wswsww"
    assert values == [-0.01, -0.7, -0.01, -0.7, -0.01, -0.01]


def test_a_signal_on_scores_needs_a_scorer() -> None:
    with pytest.raises(ConfigError, match="'signal' looks at scores, but there is no scorer"):
        route_all([P], Models(TellingBackend({"p": WEAK}), ScriptedBackend({})), Signalled(StepScore(), 0.5))


def test_a_policy_that_looks_twice_or_for_what_it_did_not_name_is_told() -> None:
    @dataclasses.dataclass(frozen=True)
    class Curious(Policy):
        named: tuple[str, ...]
        name: ClassVar[str] = "curious"
        when: ClassVar[When] = "before"
        needs_scores: ClassVar[bool] = False
        point: ClassVar[float | None] = None

        @property
        def looks(self) -> dict[str, str]:
            return dict.fromkeys(self.named, "curious")

        def decide(self, view: View) -> Action | Look:
            return Look("first_token")

        def at(self, x: float) -> Curious:
            return self

    with pytest.raises(ConfigError, match="'first_token' which is not in its `looks`"):
        go(Curious(()))
    with pytest.raises(ConfigError, match="'first_token' again, although it is there"):
        go(Curious(("first_token",)))
