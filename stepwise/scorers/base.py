"""What a scorer is, and the checks that every score passes on its way to whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from stepwise.errors import ScorerError
from stepwise.types import Problem, Usage, as_problem

Item = tuple[Problem | str, Sequence[str]]


@runtime_checkable
class Scorer(Protocol):
    """One probability per step. `incremental`: a step appended to a solution scored before costs its own tokens only.

    `usage` is what this scorer has spent since it was loaded; `parameters` is the number of weights, None if unknown.
    """

    name: str
    incremental: bool
    parameters: int | None
    usage: Usage

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """Scores in [0, 1] for each (problem, steps), one per step."""
        ...

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        ...


class Scored(NamedTuple):
    """Scores of one solution, and what scoring it cost; `error` says what happened where it could not be scored."""

    scores: list[float]
    usage: Usage
    error: str = ""

    def checked(self, name: str, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """The scores; raises `ScorerError` for an error, and for what `validate_scores` refuses."""
        if self.error:
            raise ScorerError(f"scorer {name!r}, problem {as_problem(problem).id!r}: {self.error}")
        return validate_scores(name, problem, steps, self.scores)


def validate_scores(name: str, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> list[float]:
    """`scores` as a list of floats; raises `ScorerError` unless there is one per step, each a number in [0, 1]."""
    where = f"scorer {name!r}, problem {as_problem(problem).id!r}"
    if len(scores) != len(steps):
        raise ScorerError(
            f"{where}: {len(scores)} scores for {len(steps)} steps; a scorer must return one probability per step"
        )
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise ScorerError(
                f"{where}, step {index}: the score is {score!r}; it must be a probability in [0, 1] "
                "(a logit must go through a sigmoid or softmax first)"
            )
    return [float(score) for score in scores]


def score_items(scorer: Scorer, items: Sequence[Item]) -> list[Scored]:
    """Validated scores (or an error) and the cost of each item, from any scorer; how the library asks for scores.

    A scorer with a method `score_detailed(items) -> list[Scored]` says itself what each item cost. For another, what
    its `usage` grew by is divided over the items: exact in the sum, as long as no other thread uses the scorer
    meanwhile.
    """
    detailed: Callable[[Sequence[Item]], list[Scored]] | None = getattr(scorer, "score_detailed", None)
    if detailed is not None:
        results = detailed(items)
    else:
        before = scorer.usage
        rows = scorer.score_batch(items)
        results = [
            Scored(row, usage) for row, usage in zip(rows, _shares(before, scorer.usage, len(rows)), strict=True)
        ]
    if len(results) != len(items):
        raise ScorerError(
            f"scorer {scorer.name!r}: {len(results)} results for {len(items)} solutions; return one list per solution"
        )
    return [
        result if result.error else result._replace(scores=result.checked(scorer.name, *item))
        for item, result in zip(items, results, strict=True)
    ]


def _shares(before: Usage, after: Usage, n: int) -> list[Usage]:
    """`after` - `before` in `n` parts that add up to it, the larger ones first."""
    counts = ("calls", "prompt_tokens", "evaluated_tokens", "generated_tokens", "retries")
    grown = {key: getattr(after, key) - getattr(before, key) for key in counts}
    cost = None if after.cost is None else (after.cost - (before.cost or 0.0)) / max(n, 1)
    return [
        Usage(after.model, **{key: total // n + (place < total % n) for key, total in grown.items()}, cost=cost)
        for place in range(n)
    ]
