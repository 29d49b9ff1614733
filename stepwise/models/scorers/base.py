"""What a scorer is, the checks that every score passes, and scorers that keep what they said of a prefix.

A scorer of your own inherits from `Scorer` and has `score`; everything else has a default.
"""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from operator import attrgetter
from typing import Any, NamedTuple, Self, TypeVar

from stepwise.errors import BackendError, DataError, ScorerError, StepwiseError, reason_of, redact, wrong_type
from stepwise.models.driver import Batcher, Driver
from stepwise.models.failures import failure_of
from stepwise.plugins import Plugin, identity_of
from stepwise.steps import encodable
from stepwise.types import Failure, Problem, Usage, as_problem, texts_of

Item = tuple[Problem | str, Sequence[str]]
A = TypeVar("A")
B = TypeVar("B")


class Scored(NamedTuple):
    """Scores of one solution, and what scoring it cost; where it could not be scored, `error` says why for a person and
    `failure` for the program; `broken` where the scorer is at fault, not the solution.
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
        `stepwise.identity.settings_text`), and the code of its file and of those of yours that it imports.

        Raises `ConfigError` for an argument of which cannot be said which one it is; give such a class an `identity`.
        """
        return identity_of(self)

    def learn(self, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> None:
        """Take over scores that this scorer gave before, perhaps in another process."""

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
    """What `scorer` says of each item, checked: scores that are none become the item's error."""
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
    """What is wrong with the scores of the steps `first`.. of a solution of `steps` steps, "" for nothing."""
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
    """A scorer that reads many solutions at once: write `score_detailed`, or the coroutine `ascore`."""

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
    """A wrapper that does nothing yet: everything is the scorer's inside."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.name = scorer.name
        self.parameters, self.incremental = scorer.parameters, scorer.incremental
        self.memory_bytes, self.prompt_hash, self.remote = scorer.memory_bytes, scorer.prompt_hash, scorer.remote

    usage: Any = property(attrgetter("scorer.usage"), doc="The scorer's.")
    identity: Any = property(attrgetter("scorer.identity"), doc="The scorer's.")
    engines: Any = property(attrgetter("scorer.engines"), doc="The scorer's.")

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """The scorer's."""
        return await self.scorer.ascore(problem, steps, known)

    def learn(self, *args: Any) -> None:
        """The scorer's."""
        self.scorer.learn(*args)

    def reset_cache(self) -> None:
        """The scorer's."""
        self.scorer.reset_cache()

    def close(self) -> None:
        """Free the scorer."""
        self.scorer.close()


class Task(NamedTuple):
    """A solution on its way through a `PrefixScorer`: the steps from `first` (0-based) on are still to be scored.

    `keys` has one for each prefix, `known` the scores that were kept; `fault` says why it cannot be scored. `done`:
    nothing is to be asked.
    """

    question: str
    steps: Sequence[str]
    keys: Sequence[bytes] = ()
    known: Sequence[float] = ()
    fault: str = ""
    first: int = 0
    done: bool = False


class PrefixScorer(BatchScorer):
    """A scorer whose score of a step depends on the question and the steps up to it alone.

    Scores are kept by prefix, up to `memory` of them, so a known solution costs nothing. Thread safe, where `measure`
    is. `requests` is how many threads `map` has, which all calls share.
    """

    marker_text: str = ""

    def __init__(self, name: str, *, memory: int = 200_000, requests: int = 0):
        super().__init__(name)
        self.memory = memory
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._pool = ThreadPoolExecutor(max_workers=requests, thread_name_prefix="scorer") if requests else None

    @abstractmethod
    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """Scores of the steps from `first` on, cost and error, for each task; never raises for one task."""

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """See the base class; what cannot be scored becomes the `error` of that one item, and the others go on."""
        tasks = [self._begin(*item) for item in items]
        open_tasks = [task for task in tasks if not task.done]
        fresh = iter(self.measure(open_tasks) if open_tasks else [])
        return [self._end(task, None if task.done else next(fresh)) for task in tasks]

    def map(self, work: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """The results of `work` in order, made by the threads; raises `BackendError` where the scorer is closed."""
        if self._pool is None:
            raise BackendError(f"scorer {self.name!r} is closed; load it again")
        return list(self._pool.map(work, items))

    def _begin(self, problem: Problem | str, steps: Sequence[str]) -> Task:
        """What is known of a solution's scores."""
        question = encodable(problem.question if isinstance(problem, Problem) else problem)
        texts = [*map(encodable, steps)]
        key, keys = hashlib.sha256(f"{self.identity}\n{question}".encode()).digest(), []
        for text in texts:
            key = hashlib.sha256(key + text.encode()).digest()
            keys.append(key)
        with self._lock:
            known = [self._known[key] for key in takewhile(self._known.__contains__, keys)]
        fault, first = _text_fault(question, texts, self.marker_text), len(known)
        return Task(question, texts, keys, known, fault, first, bool(fault) or first == len(texts))

    def _end(self, task: Task, fresh: Scored | None) -> Scored:
        """The scores with the `fresh` ones, which are kept from now on."""
        if fresh is None:
            return Scored(list(task.known), Usage(self.name), task.fault)
        error = fresh.error or scores_fault(fresh.scores, len(task.steps), task.first)
        new = [] if error else fresh.scores
        with self._lock:
            self._known.update(zip(task.keys[task.first :], new, strict=not error))
            self.usage = fresh.usage if self.usage == Usage(self.name) else self.usage + fresh.usage
            while len(self._known) > self.memory:
                self._known.popitem(last=False)
        return Scored([*task.known, *new], fresh.usage, error, fresh.failure)

    def learn(self, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> None:
        """See the base class."""
        keys = self._begin(problem, steps).keys
        with self._lock:
            self._known.update(zip(keys, scores, strict=True))

    def reset_cache(self) -> None:
        """Drop every kept score, so that what follows is measured from cold."""
        with self._lock:
            self._known.clear()

    def close(self) -> None:
        """End the threads; calling it twice does nothing."""
        self.reset_cache()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _text_fault(question: str, steps: Sequence[str], marker: str = "") -> str:
    """Why this solution cannot be scored, "" where it can: an empty text, or one that holds the marker itself."""
    if not question.strip():
        return "the question is empty; give the text of the problem"
    for place, text in (("the question", question), *((f"step {index}", text) for index, text in enumerate(steps))):
        if not text.strip():
            return f"{place} is empty; split_steps makes no empty steps"
        if marker and marker in text:
            return f"{place} contains the marker {marker!r}, which would be read as the end of a step; remove it"
    return ""
