"""Scorers that keep what they said of a prefix: the score of a step depends on what stands up to it alone."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import NamedTuple, TypeVar

from stepwise.errors import BackendError
from stepwise.models.scorers.base import BatchScorer, Item, Scored, scores_fault
from stepwise.steps import encodable
from stepwise.types import Problem, Usage

A = TypeVar("A")
B = TypeVar("B")


class Task(NamedTuple):
    """A solution on its way through a `PrefixScorer`: the steps from `first` (0-based) on are still to be scored.

    `keys` has one for each prefix, `known` the scores that were kept; `fault` says why it cannot be scored. `done`:
    nothing is to be asked.

    >>> Task("1 + 1?", ["One and one.", "That is 2."], first=1).done
    False
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

    Example:
        >>> class Length(PrefixScorer):
        ...     def measure(self, tasks):
        ...         return [Scored([1 / len(s) for s in t.steps[t.first :]], Usage(self.name, 1)) for t in tasks]
        >>> Length("length").score("1 + 1?", ["Yes.", "2"])
        [0.25, 1.0]
    """

    marker_text: str = ""

    def __init__(self, name: str, *, memory: int = 10_000, requests: int = 0):
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
