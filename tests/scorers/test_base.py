"""The checks that every score passes, and what a scorer shares between threads."""

from __future__ import annotations

import pytest

from stepwise.errors import BackendError, ScorerError
from stepwise.models.scorers import score_items, validate_scores
from stepwise.models.scorers.prefix import Workers
from stepwise.types import Problem, Usage
from tests.fakes import ScriptedScorer

P = Problem("p", "How many?", "4")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.5], "1 scores for 2 steps"),
        ([0.5, 0.5, 0.5], "3 scores for 2 steps"),
        ([0.5, 1.0001], "step 1: the score is 1.0001"),
        ([-0.1, 0.5], "step 0: the score is -0.1"),
        ([float("nan"), 0.5], "step 0: the score is nan"),
        ([float("inf"), 0.5], "step 0: the score is inf"),
        ([None, 0.5], "step 0: the score is None"),
        (["0.5", 0.5], "step 0: the score is '0.5'"),
        ([True, 0.5], "step 0: the score is True"),
    ],
)
def test_what_is_no_probability_per_step_is_refused_by_name(scores: list[float], message: str) -> None:
    with pytest.raises(ScorerError, match=f"scorer 'prm', problem 'p'.*{message}"):
        validate_scores("prm", P, ["a", "b"], scores)


def test_any_scorer_is_validated_on_its_way_to_the_router() -> None:
    assert [s.scores for s in score_items(ScriptedScorer({"a": 0.2}), [(P, ["a", "b"])])] == [[0.2, 0.9]]
    with pytest.raises(ScorerError, match="2 scores for 1 steps"):
        score_items(ScriptedScorer(lambda _, steps: [0.1, 0.2]), [(P, ["a"])])


def test_the_cost_of_a_scorer_that_does_not_itemise_is_split_exactly() -> None:
    scorer = ScriptedScorer({})
    items = [(P, ["one two", "three"]), (P, ["four"]), (Problem("q", "?"), ["one two three"])]
    scored = score_items(scorer, items)
    assert sum((s.usage for s in scored), Usage()) == scorer.usage
    assert [s.usage.calls for s in scored] == [1, 1, 1]


def test_workers_keep_the_order_and_say_when_they_are_closed() -> None:
    workers = Workers("prm", 3)
    assert workers.map(lambda k: k * k, range(20)) == [k * k for k in range(20)]
    workers.close()
    workers.close()
    with pytest.raises(BackendError, match="scorer 'prm' is closed; load it again"):
        workers.map(str, [1])
