"""What a scorer of one's own must have, the checks of every score, and what a scorer shares between threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.errors import BackendError, ConfigError, ScorerError
from stepwise.models.cached import StoredScorer
from stepwise.models.scorers import PrefixScorer, Scored, Scorer, load_scorer, score_items
from stepwise.models.scorers.prefix import Task
from stepwise.models.store import CallCache
from stepwise.routing import Threshold
from stepwise.routing.route import Models, route_all
from stepwise.types import Problem, Usage
from tests.fakes import ScriptedBackend, ScriptedScorer

P = Problem("p", "How many?", "4")


class Short(Scorer):
    """The least that one writes."""

    def score(self, problem: Problem, steps: Sequence[str]) -> Sequence[float]:
        return [1.0 if len(step) < 5 else 0.5 for step in steps]


def returning(scores: Any) -> Scorer:
    class Fixed(Scorer):
        def score(self, problem: Problem, steps: Sequence[str]) -> Any:
            return scores

    return Fixed()


def test_a_scorer_of_ones_own_needs_one_method() -> None:
    scorer = load_scorer(Short())
    assert scorer.name == "Short"
    assert scorer.score_batch([("How many?", ["Four.", "4"]), (P, [])]) == [[0.5, 1.0], []]
    assert scorer.usage == Usage("Short", 2)
    assert load_scorer(Short).score(P, ["4"]) == [1.0]  # type: ignore[arg-type]


def test_a_method_that_is_missing_and_an_object_that_is_no_scorer_are_named() -> None:
    class Lazy(Scorer):
        def scores(self, problem: Problem, steps: Sequence[str]) -> Sequence[float]:
            return []

    with pytest.raises((TypeError, ConfigError), match=r"Lazy.*\bscore\b"):
        Lazy()  # type: ignore[abstract]
    with pytest.raises(ConfigError, match=r"scorer: .*Lazy .*\bscore\b"):
        load_scorer(Lazy)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"scorer is 0.5 \(float\); give a class that inherits from Scorer"):
        load_scorer(0.5)  # type: ignore[arg-type]


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
        ([0.5, np.float64(0.5)], r"step 1: the score is np.float64\(0.5\); return plain floats"),
        (np.array([0.5, 0.5]), r"score\(\) returned a ndarray; return a list of floats, such as scores.tolist\(\)"),
        (None, r"score\(\) returned a NoneType"),
        (0.5, r"score\(\) returned a float; return a list"),
    ],
)
def test_what_is_no_probability_per_step_is_refused_by_name(scores: Any, message: str) -> None:
    with pytest.raises(ScorerError, match=f"scorer 'Fixed', problem 'p'.*{message}"):
        returning(scores).score_batch([(P, ["a", "b"])])


def test_any_scorer_is_validated_on_its_way_to_the_router() -> None:
    assert [s.scores for s in score_items(ScriptedScorer({"a": 0.2}), [(P, ["a", "b"])])] == [[0.2, 0.9]]
    (bad,) = score_items(ScriptedScorer(lambda _, steps: [0.1, 0.2]), [(P, ["a"])])
    assert (bad.failed is not None and bad.failed.kind, bad.scores) == ("refused", [])
    assert "2 scores for 1 steps" in bad.error


def test_a_scorer_that_raises_costs_that_solution_and_says_where() -> None:
    class Picky(Short):
        def score(self, problem: Problem, steps: Sequence[str]) -> Sequence[float]:
            return [1 / problem.question.count("?")] * len(steps)

    good, bad = score_items(Picky(), [(P, ["a"]), (Problem("q7", "Count."), ["a", "b"])])
    assert good.scores == [1.0]
    assert bad.error == "Picky.score() raised ZeroDivisionError: division by zero (problem 'q7', 2 steps)"


def test_what_a_scorer_adds_to_its_usage_is_the_cost_of_that_solution() -> None:
    class Paid(Short):
        def score(self, problem: Problem, steps: Sequence[str]) -> Sequence[float]:
            self.usage += Usage("prm", 1, 10 * len(steps), 10 * len(steps))
            return super().score(problem, steps)

    scorer = Paid()
    scored = score_items(scorer, [(P, ["one two", "three"]), (P, ["four"])])
    assert [s.usage.prompt_tokens for s in scored] == [20, 10]
    assert scorer.usage == Usage("prm", 2, 30, 30)


def test_scores_kept_under_one_setting_are_not_used_under_another(tmp_path: Path) -> None:
    class Limit(Scorer):
        def __init__(self, limit: int = 5):
            self.limit = limit

        def score(self, problem: Problem, steps: Sequence[str]) -> Sequence[float]:
            return [float(len(step) < self.limit) for step in steps]

    with CallCache(tmp_path / "scores.jsonl") as cache:
        assert StoredScorer(Limit(5), cache).score(P, ["four"]) == [1.0]
        assert StoredScorer(Limit(2), cache).score(P, ["four"]) == [0.0]
        assert cache.misses["scorer"] == 2
        assert StoredScorer(Limit(5), cache).score(P, ["four"]) == [1.0]
        assert cache.misses["scorer"] == 2


def test_threads_keep_the_order_and_say_when_they_are_closed() -> None:
    class Threaded(PrefixScorer):
        def measure(self, tasks: Sequence[Task]) -> list[Scored]:
            return self.map(lambda task: Scored([0.5] * len(task.steps), Usage(self.name, 1, len(task.steps))), tasks)

    scorer = Threaded("prm", requests=3)
    scored = scorer.score_detailed([(f"Q{n}?", ["a"] * n) for n in range(20)])
    assert [len(s.scores) for s in scored] == list(range(20))
    scorer.close()
    scorer.close()
    with pytest.raises(BackendError, match="scorer 'prm' is closed; load it again"):
        scorer.score("New?", ["a"])


def test_a_scorer_that_raises_ends_one_trace_and_no_other() -> None:
    class Failing(Scorer):
        def score(self, problem: Problem, steps: Sequence[str]) -> Sequence[float]:
            if problem.id == "b" and len(steps) == 2:
                raise RuntimeError("out of ideas")
            return [0.9] * len(steps)

    weak = ScriptedBackend({name: ["One.", "Two.", "So \\boxed{4}."] for name in "abc"}, name="weak")
    models = Models(weak, ScriptedBackend({}, name="strong"), Failing())
    traces = route_all(
        [Problem(id=name, question=f"How many {name}?", answer="4") for name in "abc"], models, Threshold(0.5)
    )
    assert [trace.finish for trace in traces] == ["answer", "error", "answer"]
    assert traces[1].note.startswith("the scorer failed at step 1: Failing.score() raised RuntimeError: out of ideas")
    assert "problem 'b'" in traces[1].note
    assert len(traces[1].steps) == 1
