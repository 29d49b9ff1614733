"""What a scorer is, and the checks that every score passes on its way to whoever asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from stepwise.errors import ScorerError
from stepwise.models.driver import Batcher, Driver
from stepwise.types import Failure, Problem, Usage, as_problem

Item = tuple[Problem | str, Sequence[str]]


@runtime_checkable
class Scorer(Protocol):
    """One probability per step. `incremental`: a step appended to a solution scored before costs its own tokens only.

    `usage` is what this scorer has spent since it was loaded; `parameters` is the number of weights, None if unknown.
    Calls may come from several threads at once. A scorer of one's own may have these alone; `BaseScorer` gives all but
    one method.
    """

    name: str
    incremental: bool
    parameters: int | None

    @property
    def usage(self) -> Usage:
        """All that it has spent."""
        ...

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """Scores in [0, 1] for each (problem, steps), one per step."""
        ...

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        ...


class Scored(NamedTuple):
    """Scores of one solution, and what scoring it cost; where it could not be scored, `error` says why for a person and
    `failure` for the program.
    """

    scores: list[float]
    usage: Usage
    error: str = ""
    failure: Failure | None = None

    @property
    def failed(self) -> Failure | None:
        """Why there are no scores, None where there are; a scorer that gives no object refused the solution."""
        return self.failure or (Failure("refused", self.error) if self.error else None)

    @classmethod
    def of_failure(cls, failure: Failure, usage: Usage) -> Scored:
        """What stands for the scores of a solution that could not be scored."""
        return cls([], usage, failure.reason, failure)

    def checked(self, name: str, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """The scores; raises `ScorerError` for an error, and for what `validate_scores` refuses."""
        if self.error:
            raise ScorerError(f"scorer {name!r}, problem {as_problem(problem).id!r}{_joint(self.error)}{self.error}")
        return validate_scores(name, problem, steps, self.scores)


@runtime_checkable
class _Itemizes(Protocol):
    """A scorer that says itself what each solution cost, and has checked its scores."""

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]: ...


class BaseScorer:
    """A scorer of which one method is to be written: `score_detailed` for batches, or the coroutine `ascore`.

    `memory_bytes`: an estimate of what the model takes on this machine, weights and key-value cache or activations,
    None where it runs elsewhere. `prompt_hash`: of the prompt that solutions are read under. `remote`: it answers when
    it likes, so that nothing that waits for it can be exact.
    """

    incremental: bool = False
    parameters: int | None = None
    memory_bytes: int | None = None
    prompt_hash: str = ""
    remote: bool = False

    def __init__(self, name: str):
        self.name = name
        self.usage = Usage(name)
        self._batcher: Batcher[Item, Scored] = Batcher(lambda items: score_items(self, items))

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """Scores of all steps and what they cost, or why there are none; those of the first `known` steps were asked
        for before. Without a coroutine of its own, a scorer is asked for everything that waits when it is free.
        """
        return await self._batcher.ask((problem, steps))

    @property
    def engines(self) -> tuple[Any, ...]:
        """The engines of this process that it runs on, for a driver to move."""
        return ()

    @property
    def identity(self) -> str:
        """Scores made under one identity are never used under another."""
        return self.name

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """Scores and cost of each item; where one cannot be scored, its `error` says why."""
        return Driver(self.engines).run([self.ascore(problem, steps) for problem, steps in items])

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """Scores in [0, 1] for each (problem, steps); raises `ScorerError` where one cannot be scored."""
        results = self.score_detailed(items)
        return [scored.checked(self.name, *item) for item, scored in zip(items, results, strict=True)]

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """`score_batch` for one solution."""
        return self.score_batch([(problem, steps)])[0]

    def learn(self, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> None:
        """Take over scores that this scorer gave before, perhaps in another process."""
        return

    def reset_cache(self) -> None:
        """Drop what is kept of earlier calls, so that what follows is measured from cold."""
        return

    def close(self) -> None:
        """Free what the scorer holds; calling it twice does nothing."""
        self.reset_cache()


def validate_scores(name: str, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> list[float]:
    """`scores` as a list of floats; raises `ScorerError` unless there is one per step, each a number in [0, 1]."""
    fault = scores_fault(scores, len(steps))
    if fault:
        raise ScorerError(f"scorer {name!r}, problem {as_problem(problem).id!r}{_joint(fault)}{fault}")
    return [float(score) for score in scores]


def _joint(fault: str) -> str:
    """A fault that begins with its step goes on with the place, another says what is wrong there."""
    return ", " if fault.startswith("step ") else ": "


def scores_fault(scores: Sequence[float], steps: int, first: int = 0) -> str:
    """What is wrong with the scores of the steps `first`.. of a solution of `steps` steps, "" for nothing."""
    if len(scores) != steps - first:
        return f"{len(scores)} scores for {steps - first} steps; a scorer must return one probability per step"
    for index, score in enumerate(scores, start=first):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            return (
                f"step {index}: the score is {score!r}; it must be a probability in [0, 1] "
                "(a logit must go through a sigmoid or softmax first)"
            )
    return ""


def score_items(scorer: Scorer, items: Sequence[Item]) -> list[Scored]:
    """Validated scores (or an error) and the cost of each item, from any scorer; how the library asks for scores.

    For a scorer that does not itemize, what its `usage` grew by is divided over the items: exact in the sum, as long as
    no other thread uses the scorer meanwhile.
    """
    if isinstance(scorer, _Itemizes):
        results = scorer.score_detailed(items)
    else:
        before = scorer.usage
        rows = scorer.score_batch(items)
        results = list(map(Scored, rows, _shares(before, scorer.usage, len(rows))))
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


class _BatchedScorer(BaseScorer):
    """A coroutine in front of a scorer of anybody's."""

    def __init__(self, scorer: Scorer):
        super().__init__(scorer.name)
        self.scorer = scorer
        self.parameters, self.incremental = scorer.parameters, scorer.incremental

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """The scorer's."""
        return score_items(self.scorer, items)


def scorer_of(scorer: Scorer) -> BaseScorer:
    """`scorer` itself where it has the coroutine, else `_BatchedScorer` around it."""
    return scorer if isinstance(scorer, BaseScorer) else _BatchedScorer(scorer)


class WrappedScorer(BaseScorer):
    """A wrapper that does nothing yet: everything is the scorer's inside."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = inner = scorer_of(scorer)
        self.name = inner.name
        self.parameters, self.incremental, self.memory_bytes = inner.parameters, inner.incremental, inner.memory_bytes
        self.prompt_hash, self.remote = inner.prompt_hash, inner.remote

    @property
    def usage(self) -> Usage:  # type: ignore[override]
        """The scorer's."""
        return self.scorer.usage

    @property
    def identity(self) -> str:
        """The scorer's."""
        return self.scorer.identity

    @property
    def engines(self) -> tuple[Any, ...]:
        """The scorer's."""
        return self.scorer.engines

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """The scorer's."""
        return await self.scorer.ascore(problem, steps, known)

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """Through the coroutine."""
        return Driver(self.engines).run([self.ascore(problem, steps) for problem, steps in items])

    def learn(self, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> None:
        """The scorer's."""
        self.scorer.learn(problem, steps, scores)

    def reset_cache(self) -> None:
        """The scorer's."""
        self.scorer.reset_cache()

    def close(self) -> None:
        """Free the scorer."""
        self.scorer.close()
