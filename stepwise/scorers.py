"""Process reward models behind one protocol: the probability that each step is right, given all before it.

What `LabelTokenScorer` does differently from Math-Shepherd (arXiv 2312.08935):
1. One marker token stands after every step, at the end of its blank line, and stays in the context.
2. The score is the softmax over two label tokens alone, read at the marker; the label itself is never written.
3. A step appended to a known prefix costs its own tokens and the marker: the prefix is in the engine's cache and its
   scores are kept.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from stepwise.errors import ConfigError, ScorerError
from stepwise.prompt import SolvePrompt
from stepwise.steps import SEPARATOR
from stepwise.types import Problem, Usage, as_problem

if TYPE_CHECKING:
    from stepwise.config import ScorerConfig

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
    """Scores of one solution, and what scoring it cost."""

    scores: list[float]
    usage: Usage


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
    """Validated scores and the cost of each item, from any scorer; the one way the library asks for scores.

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
        Scored(validate_scores(scorer.name, problem, steps, result.scores), result.usage)
        for (problem, steps), result in zip(items, results, strict=True)
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


class LabelReader(Protocol):
    """What `LabelTokenScorer` needs of the engine; `stepwise.engine` has it."""

    name: str
    parameters: int | None

    def token_id(self, text: str) -> int:
        """Id of one special token; raises `ConfigError` when the vocabulary has no such token."""
        ...

    def prompt_ids(self, prompt: SolvePrompt, question: str) -> list[int]:
        """Ids of the chat up to where the assistant's solution begins."""
        ...

    def step_ids(self, text: str) -> list[int]:
        """Ids of a step's text as part of a solution."""
        ...


class ConstantScorer:
    """Gives every step the score `p`: a control, and a stand-in where a scorer is asked for but not wanted."""

    incremental = True
    parameters: int | None = 0

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
