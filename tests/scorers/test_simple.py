"""Scorers without a model."""

from __future__ import annotations

import pytest

from stepwise.errors import ScorerError
from stepwise.models.scorers import ConstantScorer, PerfectScorer, Scorer
from stepwise.types import Problem
from tests.fakes import ScriptedScorer

P = Problem("p", "How many?", "4")


def test_constant_and_perfect_scorers() -> None:
    assert ConstantScorer(0.25).score(P, ["a", "b"]) == [0.25, 0.25]
    with pytest.raises(ScorerError):
        ConstantScorer(1.5)
    perfect = PerfectScorer(lambda problem, steps: ["wrong" not in text for text in steps])
    assert perfect.score_batch([(P, ["fine", "wrong"]), (P, [])]) == [[1.0, 0.0], []]
    with pytest.raises(ScorerError, match="1 scores for 2 steps"):
        PerfectScorer(lambda problem, steps: [True]).score(P, ["a", "b"])
    assert all(isinstance(made, Scorer) for made in (ConstantScorer(0.5), perfect, ScriptedScorer({})))


def test_the_lab_checker_makes_a_perfect_scorer() -> None:
    from stepwise.lab.problems import generate

    problems = {made.problem.id: made for made in generate("val", 3)}
    scorer = PerfectScorer(lambda problem, steps: problems[problem.id].check(steps))
    made = next(iter(problems.values()))
    first = made.true_step([])
    assert first is not None
    assert scorer.score(made.problem, [first, "Nonsense: 1 + 1 = 3."]) == [1.0, 0.0]
