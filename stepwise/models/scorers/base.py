"""What a scorer is, and the checks that every score passes.

A scorer of your own inherits from `Scorer` and has `score`; everything else has a default.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Self

from stepwise.errors import DataError, ScorerError, StepwiseError, reason_of, redact, wrong_type
from stepwise.models.base import Completion
from stepwise.models.driver import Batcher, Driver
from stepwise.models.failures import failure_of
from stepwise.plugins import Plugin, identity_of
from stepwise.records import items_of
from stepwise.steps import split_steps
from stepwise.types import Failure, Problem, Step, Trace, Usage, as_problem

Item = tuple[Problem | str, Sequence[str]]


class Scored(NamedTuple):
    """Scores of one solution, and what scoring it cost; where it could not be scored, `error` says why for a person and
    `failure` for the program; `broken` where the scorer is at fault, not the solution.

    Example:
        >>> Scored([0.9, 0.2], Usage("prm", 1)).failed is None
        True
    """

    scores: Sequence[float]
    usage: Usage
    error: str = ""
    failure: Failure | None = None
    broken: bool = False

    @property
    def failed(self) -> Failure | None:
        """Why there are no scores, None where there are; a scorer that gives no object refused the solution."""
        return self.failure or (Failure("refused", self.error) if self.error else None)

    @classmethod
    def of_failure(cls, failure: Failure, usage: Usage, broken: bool = False) -> Scored:
        """What stands for the scores of a solution that could not be scored."""
        return cls([], usage, failure.reason, failure, broken)

    def as_error(self, name: str, problem: Problem | str) -> ScorerError:
        """The exception that says what `error` does of scorer `name` and this problem."""
        joint = ", " if self.error.startswith("step ") else ": "
        return ScorerError(f"scorer {name!r}, problem {as_problem(problem).id!r}{joint}{self.error}")


class Scorer(Plugin):
    """Gives the probability that each step is right, given the problem and all steps before it: inherit and write
    `score`.

    An exception in `score`, or scores that are none, cost that solution, not the run. `score` is called by one thread
    at a time. Scores are kept by `identity`, which follows from settings and code.

    Attributes:
        name: what tables call it; the class's name where nothing else is said.
        usage: what it has spent since it was loaded; add to it in `score` where calls cost tokens.
        incremental: a step appended to a solution scored before costs its own tokens only.
        parameters: number of weights, None if unknown; `memory_bytes`: what they and a cache take on this machine.
        prompt_hash: of the prompt that solutions are read under.
        remote: it answers when it likes, so that nothing that waits for it can be exact.
        wants_states: it reads what the weak model computed while it wrote, which `observe` is told.

    Example:
        >>> class Short(Scorer):
        ...     def score(self, problem, steps):
        ...         return [1.0 if len(step) < 80 else 0.5 for step in steps]
        >>> Short().score_batch([("1 + 1?", ["That is 2."])])
        [[1.0]]
    """

    name: str  # type: ignore[misc]
    usage: Usage = Usage()
    incremental: bool = False
    parameters: int | None = None
    memory_bytes: int | None = None
    prompt_hash: str = ""
    remote: bool = False
    wants_states: bool = False
    _lock: threading.Lock
    _batcher: Batcher[Item, Scored]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """A scorer of one's own need not call `super().__init__()`."""
        self = super().__new__(cls, *args, **kwargs)
        self._lock = threading.Lock()
        self._batcher = Batcher(lambda items: score_items(self, items))
        return self

    @abstractmethod
    def score(self, problem: Problem, steps: Sequence[str]) -> Sequence[float]:
        """Scores in [0, 1] as plain floats, one per step."""

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """Scores and cost of each item; where one cannot be scored, its `error` says why."""
        return [self._score_one(as_problem(problem), list(steps)) for problem, steps in items]

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """Scores of all steps and what they cost, or why there are none; those of the first `known` steps were asked
        for before. Without a coroutine of its own, a scorer is asked for everything that waits when it is free.
        """
        return await self._batcher.ask((problem, steps))

    def score_batch(self, items: Sequence[Item]) -> list[list[float]]:
        """Scores in [0, 1] for each (problem, steps); raises `ScorerError` where one cannot be scored."""
        for place, item in enumerate(items):
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise DataError(wrong_type(f"items[{place}]", item, "give a pair of a problem and its steps"))
        items = [(as_problem(problem), texts_of(steps)) for problem, steps in items]
        for (problem, _), result in zip(items, results := score_items(self, items), strict=True):
            if result.error:
                raise result.as_error(self.name, problem)
        return [list(result.scores) for result in results]

    @property
    def engines(self) -> tuple[Any, ...]:
        """The engines of this process that it runs on, for a driver to move."""
        return ()

    @property
    def identity(self) -> str:
        """Scores made under one identity are never used under another: the class, how it is set (see
        `stepwise.plugins.identity.settings_text`), and the code of its file and of those of yours that it imports.

        Raises `ConfigError` for an argument of which cannot be said which one it is; give such a class an `identity`.
        """
        return identity_of(self)

    def learn(self, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> None:
        """Take over scores that this scorer gave before, perhaps in another process."""

    def observe(self, problem: Problem | str, before: Sequence[str], made: Completion) -> None:
        """Take note of the step that the weak model wrote behind the steps `before`."""

    def reset_cache(self) -> None:
        """Drop what is kept of earlier calls, so that what follows is measured from cold."""

    def close(self) -> None:
        """Free what the scorer holds; calling it twice does nothing."""
        self.reset_cache()

    def _score_one(self, problem: Problem, steps: list[str]) -> Scored:
        with self._lock:
            before, self.usage = self.usage, Usage()
            try:
                result = Scored(self.score(problem, steps), Usage())
            except StepwiseError as error:
                result = Scored.of_failure(failure_of(error), Usage())
            except Exception as error:
                fault = f"{type(self).__name__}.score() raised {type(error).__name__}: {redact(reason_of(error))}"
                fault += f" (problem {problem.id!r}, {len(steps)} steps)"
                result = Scored.of_failure(Failure("refused", fault), Usage(), broken=True)
            spent = self.usage if self.usage != Usage() else Usage(self.name, 1)
            self.usage = before + spent
        return result._replace(usage=spent)


def score_items(scorer: Scorer, items: Sequence[Item]) -> list[Scored]:
    """What `scorer` says of each item, checked: scores that are none become the item's error.

    Example:
        >>> class Odd(Scorer):
        ...     def score(self, problem, steps):
        ...         return [2.0 for _ in steps]
        >>> score_items(Odd(), [("1 + 1?", ["That is 2."])])[0].error[:54]
        'step 0: the score is 2.0; it must be a probability in '
    """
    results = scorer.score_detailed(items)
    if len(results) != len(items):
        raise ScorerError(
            f"scorer {scorer.name!r}: {len(results)} results for {len(items)} solutions; return one list per solution"
        )
    checked = []
    for result, (_, steps) in zip(results, items, strict=True):
        if not result.error and (fault := scores_fault(result.scores, len(steps))):
            result = Scored.of_failure(Failure("refused", fault), result.usage, broken=True)
        checked.append(result if result.error else result._replace(scores=list(map(float, result.scores))))
    return checked


def scores_fault(scores: Any, steps: int, first: int = 0) -> str:
    """What is wrong with the scores of the steps `first`.. of a solution of `steps` steps, "" for nothing.

    >>> scores_fault([0.9, 0.2], steps=2), scores_fault([0.9, 1.2], steps=2)[:24]
    ('', 'step 1: the score is 1.2')
    """
    if not isinstance(scores, list | tuple):
        return f"score() returned a {type(scores).__name__}; return a list of floats, such as scores.tolist()"
    if len(scores) != steps - first:
        return f"{len(scores)} scores for {steps - first} steps; score() must return one probability per step"
    for index, score in enumerate(scores, start=first):
        if type(score).__module__ == "numpy":
            return f"step {index}: the score is {score!r}; return plain floats, such as float(score) or scores.tolist()"
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            return (
                f"step {index}: the score is {score!r}; it must be a probability in [0, 1] "
                "(a logit must go through a sigmoid or softmax first)"
            )
    return ""


class BatchScorer(Scorer):
    """A scorer that reads many solutions at once: write `score_detailed`, or the coroutine `ascore`.

    Example:
        >>> class Half(BatchScorer):
        ...     def score_detailed(self, items):
        ...         return [Scored([0.5] * len(steps), Usage(self.name)) for _, steps in items]
        >>> Half("half").score("1 + 1?", ["That is 2."])
        [0.5]
    """

    _asked_for: str = ""

    def __init__(self, name: str):
        self.name = name
        self.usage = Usage(name)

    @property
    def identity(self) -> str:
        """The model's name with what it is asked for beside the default; of a class of one's own also what `Scorer`
        says.
        """
        own = identity_of(self) if type(self)._source else ""
        return " ".join(filter(None, (self._model_name(), self._asked_for, own)))

    def _model_name(self) -> str:
        return self.name

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """Scores and cost of each item; where one cannot be scored, its `error` says why."""
        return Driver(self.engines).run([self.ascore(problem, steps) for problem, steps in items])

    def score(self, problem: Problem | str, steps: Sequence[str]) -> list[float]:
        """Scores of one solution; raises `ScorerError` where it cannot be scored."""
        return self.score_batch([(problem, steps)])[0]


class WrappedScorer(BatchScorer):
    """A wrapper that does nothing yet: everything is the scorer's inside.

    Example:
        class Logged(WrappedScorer):
            async def ascore(self, problem, steps, known=0):
                print(len(steps))
                return await super().ascore(problem, steps, known)
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.name = scorer.name
        self.parameters, self.incremental = scorer.parameters, scorer.incremental
        self.memory_bytes, self.prompt_hash, self.remote = scorer.memory_bytes, scorer.prompt_hash, scorer.remote
        self.wants_states = scorer.wants_states

    usage: Any = property(attrgetter("scorer.usage"), doc="The scorer's.")
    identity: Any = property(attrgetter("scorer.identity"), doc="The scorer's.")
    engines: Any = property(attrgetter("scorer.engines"), doc="The scorer's.")

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """The scorer's."""
        return await self.scorer.ascore(problem, steps, known)

    def learn(self, *args: Any) -> None:
        """The scorer's."""
        self.scorer.learn(*args)

    def observe(self, *args: Any) -> None:
        """The scorer's."""
        self.scorer.observe(*args)

    def reset_cache(self) -> None:
        """The scorer's."""
        self.scorer.reset_cache()

    def close(self) -> None:
        """Free the scorer."""
        self.scorer.close()


def texts_of(steps: Any) -> list[str]:
    r"""The texts of the steps of a solution: of a list of texts or steps, of a trace, or of a whole solution, which is
    split. Raises DataError for anything else.

    >>> texts_of("1 + 1 = 2.\n\nSo it is 2."), texts_of([Step("1 + 1 = 2.", "weak")])
    (['1 + 1 = 2.', 'So it is 2.'], ['1 + 1 = 2.'])
    """
    if isinstance(steps, str):
        return split_steps(steps)
    steps = steps.steps if isinstance(steps, Trace) else steps
    remedy = "give the texts of the steps, a Trace, or the whole solution as one text"
    if not isinstance(steps, Sequence):
        raise DataError(wrong_type("steps", steps, remedy))
    return [step if isinstance(step, str) else step.text for step in items_of(steps, (str, Step), "steps", remedy)]
