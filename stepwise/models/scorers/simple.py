"""Scorers without a model: a control and a bound for experiments. Both are free of cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stepwise.models.scorers.base import BaseScorer, Item, Scored, validate_scores
from stepwise.types import Problem, Usage, as_problem


class ConstantScorer(BaseScorer):
    """Gives every step the score `p`: a control, and a stand-in where a scorer is asked for but not wanted."""

    incremental = True
    parameters: int | None = 0
    memory_bytes: int | None = 0

    def __init__(self, p: float):
        super().__init__(f"constant {p}")
        self.p = validate_scores(self.name, "", [""], [p])[0]

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """`p` for each step."""
        return [Scored([self.p] * len(steps), Usage(self.name)) for _, steps in items]


class PerfectScorer(BaseScorer):
    """Knows which steps are right: the bound that no scorer beats, where a checker exists (the lab's problems have
    one).

    `check(problem, steps)` says of each step whether it is right given the problem and the steps before it as
    written; a right step scores 1.0, a wrong one 0.0.
    """

    incremental = True
    parameters: int | None = 0
    memory_bytes: int | None = 0

    def __init__(self, check: Callable[[Problem, Sequence[str]], Sequence[bool]], name: str = "perfect"):
        super().__init__(name)
        self.check = check

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """1.0 for each right step, 0.0 for each wrong one."""
        return [
            Scored([float(bool(right)) for right in self.check(as_problem(problem), steps)], Usage(self.name))
            for problem, steps in items
        ]
