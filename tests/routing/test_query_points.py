"""Query-level policies set to hand over a share of the problems."""

from __future__ import annotations

import pytest

from stepwise.errors import DataError
from stepwise.routing import Cascade, HandOver, QueryClassifier, QueryRandom, View, fit_query_classifier
from stepwise.routing.query import at_share, question_key, refuse_overlap
from stepwise.types import Problem
from tests.routing import world
from tests.routing.test_query import asked, cascade, solved


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_cascade_is_set_on_other_problems_to_hand_over_a_share(share: float) -> None:
    at_zero = Cascade("least_score", 0.0)
    traces = world.solve(at_zero, 40, made=world.models())
    policy = at_share(at_zero, traces, share, measured_on=[Problem("new", "Another question?")])

    def handed(threshold: float) -> float:
        again = world.solve(policy.at(threshold), 40, made=world.models())
        return sum(trace.steps[0].author == "strong" for trace in again) / 40

    assert handed(policy.threshold) <= share
    assert share == 1.0 or handed(policy.threshold + 1e-9) > share


def test_a_verification_is_read_back_from_traces() -> None:
    trace = cascade(Cascade(samples=4, threshold=0.0))
    assert 0.75 < at_share(Cascade(samples=4), [trace], 1.0).threshold < 0.7500001
    with pytest.raises(DataError, match="has no least score; make it with this cascade at threshold 0"):
        at_share(Cascade("least_score"), [trace], 0.5)


def test_the_other_baselines_are_set_to_a_share_too() -> None:
    fitted = fit_query_classifier([solved(asked(i), i % 2 == 0) for i in range(60)])
    others = [solved(asked(i, noise=3), True) for i in range(100, 140)]
    policy = at_share(fitted, others, 0.5)
    decided = [policy.decide(View(trace.problem)) for trace in others]
    assert 0.3 <= sum(action == HandOver() for action in decided) / 40 <= 0.5
    assert at_share(QueryRandom(0.1, seed=4), others, 0.5) == QueryRandom(0.5, seed=4)
    assert len(policy.fitted_on) == 60
    with pytest.raises(DataError, match="the classifier was fitted on 1 of these problems"):
        at_share(fitted, [solved(asked(7), True)], 0.5)


def test_calibrating_on_what_is_measured_is_refused() -> None:
    traces = [solved(asked(i), True) for i in range(5)]
    for policy in (QueryRandom(), QueryClassifier((0.0,), 0.0), Cascade()):
        with pytest.raises(DataError, match="the operating point was fitted on 1 of these problems"):
            at_share(policy, traces, 0.5, measured_on=[asked(2)])
    refuse_overlap([question_key(asked(1))], [asked(2)])
    with pytest.raises(DataError, match=r"share is 1\.5 of 5 traces"):
        at_share(QueryRandom(), traces, 1.5)
