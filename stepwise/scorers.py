"""Process reward models behind one protocol: the probability that each step is right, given all before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from stepwise.types import Problem, Usage


@runtime_checkable
class Scorer(Protocol):
    """One probability per step. `incremental`: a step appended to a solution scored before costs its own tokens only.

    `usage` is what this scorer has spent since it was loaded; `parameters` is the number of weights, None if unknown.
    """

    name: str
    incremental: bool
    parameters: int | None
    usage: Usage

    def score_batch(self, items: Sequence[tuple[Problem | str, Sequence[str]]]) -> list[list[float]]:
        """Scores in [0, 1] for each (problem, steps), one per step."""
        ...

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        ...
