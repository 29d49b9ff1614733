"""Scorers without a model: a control and a bound for experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stepwise.models.scorers.base import Item, validate_scores
from stepwise.types import Problem, Usage, as_problem


class ConstantScorer:
    """Gives every step the score `p`: a control, and a stand-in where a scorer is asked for but not wanted."""

    incremental = True
    parameters: int | None = 0
    memory_bytes: int | None = 0

    def __init__(self, p: float):
        self.name = f"constant {p}"
        self.usage = Usage(self.name)
        self.p = validate_scores(self.name, "", [""], [p])[0]

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """`p` for each step."""
        return [[self.p] * len(steps) for _, steps in items]

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        return self.score_batch([(problem, steps)])[0]


class PerfectScorer:
    """Knows which steps are right: the bound that no scorer beats, where a checker exists (the lab's problems have
    one).

    `check(problem, steps)` says of each step whether it is right given the problem and the steps before it as
    written; a right step scores 1.0, a wrong one 0.0. Free of cost.
    """

    incremental = True
    parameters: int | None = 0
    memory_bytes: int | None = 0

    def __init__(self, check: Callable[[Problem, Sequence[str]], Sequence[bool]], name: str = "perfect"):
        self.name = name
        self.usage = Usage(name)
        self.check = check

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """1.0 for each right step, 0.0 for each wrong one; raises `ScorerError` when the checker's verdicts do not
        fit.
        """
        rows = [[1.0 if right else 0.0 for right in self.check(as_problem(problem), steps)] for problem, steps in items]
        return [validate_scores(self.name, *item, row) for item, row in zip(items, rows, strict=True)]

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        return self.score_batch([(problem, steps)])[0]
