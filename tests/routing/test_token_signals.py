"""Signals that come with the draft, in place of a score: in a fit of the routing model and in the policies on it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from programs.fit_router import _by
from stepwise.errors import ConfigError, DataError
from stepwise.routing import (
    BeliefThreshold,
    LeastLogprob,
    MeanLogprob,
    Models,
    Planned,
    Published,
    Signalled,
    TokenEntropy,
    View,
    load_policy,
    policy_from_dict,
    policy_to_dict,
    route_all,
)
from stepwise.routing.deciding import label_of, needs_scorer
from stepwise.routing.pomdp.fit import FitCard, RouterFit
from stepwise.types import Problem, Step, TokenStats, Trace
from tests.fakes import ScriptedBackend
from tests.routing.scripted import STRONG, WEAK, P
from tests.routing.telling import TellingBackend
from tests.routing.test_planned import LAW, MODEL

P1 = Problem("p", "How many?")


def drafted(least: float, author: str = "weak", **more: Any) -> Step:
    return Step("So 3.", author, token_stats=TokenStats(least, least / 2, -least), **more)


def scored(*scores: float) -> list[Step]:
    return [Step("So 3.", "weak", score) for score in scores]


@pytest.mark.parametrize("kind", [BeliefThreshold, Planned, Published])
def test_a_policy_on_a_signal_decides_as_on_a_score_of_that_size_and_needs_no_scorer(kind: Any) -> None:
    on_signal, on_score = kind(MODEL, LAW, signal=LeastLogprob()), kind(MODEL, LAW)
    for scores in ([0.9, 0.1], [0.9, 0.9], [0.05], [0.3, 0.3, 0.3]):
        steps = [drafted(math.log(score)) for score in scores]
        seen = on_signal.decide(View(P1, tuple(steps[:-1]), steps[-1]))
        assert seen == on_score.decide(View(P1, tuple(scored(*scores)[:-1]), scored(*scores)[-1]))
    assert (needs_scorer(on_signal), needs_scorer(on_score)) == (False, True)
    assert label_of(on_signal).startswith(f"{kind.name.capitalize()} on least_logprob")


def test_a_draft_that_was_thrown_away_counts_and_what_the_strong_model_wrote_does_not() -> None:
    step = drafted(-0.01, "strong", discarded=(drafted(-2.0),))
    (made,) = LeastLogprob().scored(P1, [step])
    assert made.score is None
    assert made.discarded[0].score == pytest.approx(math.exp(-2))
    (entropy,) = TokenEntropy().scored(P1, [drafted(-0.5)])
    assert entropy.score == pytest.approx(math.exp(-0.5))
    _, second = MeanLogprob("worst").scored(P1, [drafted(-2.0), drafted(-0.2)])
    assert second.score == pytest.approx(math.exp(-1))


def test_a_policy_on_a_signal_routes_without_a_scorer_and_is_saved_and_loaded(tmp_path: Path) -> None:
    policy = Planned(MODEL, LAW, 0.01, signal="least_logprob:worst")
    row = policy_to_dict(policy)
    assert row["signal"] == {"name": "least_logprob", "over": "worst"}
    assert policy_from_dict(row) == policy == policy_from_dict({**row, "signal": "least_logprob:worst"})
    weak = TellingBackend({"p": WEAK}, unsure=["w1"])
    (trace,) = route_all([P], Models(weak, ScriptedBackend({"p": STRONG}, "strong")), policy)
    assert trace.finish == "answer"
    card = FitCard("weak", "strong", policy.signal.title, "", "column", 1, 1, (1, 1, 1), 1, False, {}, None)
    fit = RouterFit(
        MODEL.p_weak, MODEL.p_strong, MODEL.hazard, LAW, MODEL.tokens_per_step, card, signal=LeastLogprob("worst")
    )
    fit.save(tmp_path / "fit.json")
    assert RouterFit.load(tmp_path / "fit.json") == fit
    loaded = load_policy(tmp_path / "fit.json")
    assert loaded.policy.signal == LeastLogprob("worst")  # type: ignore[attr-defined]
    assert loaded.card is not None
    assert loaded.card.scorer is None  # none is asked, so any will do
    assert Signalled("least_logprob", -1.0).signal == LeastLogprob()


@pytest.mark.parametrize("given", ["least", "score", 3, {"name": "agreement"}, "least_logprob:median"])
def test_only_what_comes_with_the_draft_stands_in_for_a_score(given: Any) -> None:
    with pytest.raises((ConfigError, DataError)):
        Planned(MODEL, LAW, signal=given)


def test_a_trace_that_does_not_say_how_sure_its_model_was_is_refused_with_the_remedy() -> None:
    trace = Trace(P1, (drafted(-0.5),), "answer")
    assert _by(LeastLogprob(), trace, "f, row 1").steps[0].score == pytest.approx(math.exp(-0.5))
    bare = replace(trace, steps=(Step("So 3.", "weak"),))
    assert _by(None, bare, "f, row 1") is bare
    with pytest.raises(DataError, match=r"f, row 1, problem 'p': .* --signal least_logprob needs; route with a model"):
        _by(LeastLogprob(), bare, "f, row 1")
