"""Scorers whose score of a step depends on what stands before it alone: kept by prefix, asked for the rest."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from threading import Lock
from typing import NamedTuple, TypeVar

from stepwise.errors import BackendError
from stepwise.models.scorers.base import BaseScorer, Item, Scored, scores_fault
from stepwise.steps import encodable
from stepwise.types import Problem, Usage

A = TypeVar("A")
B = TypeVar("B")


class Task(NamedTuple):
    """What is still to be scored: the steps `first`.. of a solution, each given the question and all steps before."""

    question: str
    steps: Sequence[str]
    first: int


class _Begun(NamedTuple):
    """A solution on its way through a `PrefixScorer`: a key for each step, known scores, why it cannot be scored."""

    keys: list[bytes]
    known: list[float]
    fault: str
    task: Task | None


class PrefixScorer(BaseScorer):
    """A scorer whose score of a step depends on the question and the steps up to it alone.

    Scores are kept by prefix, up to `memory` of them, so a known solution costs nothing. What cannot be scored becomes
    the `error` of that one item; the others go on. Thread safe, where `measure` is.
    """

    marker_text: str = ""

    def __init__(self, name: str, *, memory: int = 200_000):
        super().__init__(name)
        self.memory = memory
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._lock = Lock()

    @abstractmethod
    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """Scores of the steps from `first` on, cost and error, for each task; never raises for one task."""

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """Scores and cost of each item; where one cannot be scored, its `error` says why."""
        begun = [self._begin(*item) for item in items]
        tasks = [item.task for item in begun if item.task is not None]
        fresh = iter(self.measure(tasks) if tasks else [])
        return [self._end(item, None if item.task is None else next(fresh)) for item in begun]

    def _begin(self, problem: Problem | str, steps: Sequence[str]) -> _Begun:
        """What is known of a solution's scores, and the task of finding the others, None where all is."""
        question = encodable(problem.question if isinstance(problem, Problem) else problem)
        texts = [*map(encodable, steps)]
        keys = self._keys(question, texts)
        with self._lock:
            known = [self._known[key] for key in takewhile(self._known.__contains__, keys)]
        fault = _text_fault(question, texts, self.marker_text)
        task = None if fault or len(known) == len(texts) else Task(question, texts, len(known))
        return _Begun(keys, known, fault, task)

    def _end(self, begun: _Begun, fresh: Scored | None) -> Scored:
        """The scores with the `fresh` ones, which are kept from now on."""
        keys, known = begun.keys, begun.known
        if fresh is None:
            return Scored(known, Usage(self.name), begun.fault)
        error = fresh.error or scores_fault(fresh.scores, len(keys), len(known))
        new = [] if error else fresh.scores
        with self._lock:
            self._known.update(zip(keys[len(known) :], new, strict=not error))
            self.usage = fresh.usage if self.usage == Usage(self.name) else self.usage + fresh.usage
            while len(self._known) > self.memory:
                self._known.popitem(last=False)
        return Scored([*known, *new], fresh.usage, error, fresh.failure)

    def learn(self, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> None:
        """See the base class."""
        keys = self._begin(problem, steps).keys
        with self._lock:
            self._known.update(zip(keys, scores, strict=True))

    def reset_cache(self) -> None:
        """Drop every kept score, so that what follows is measured from cold."""
        with self._lock:
            self._known.clear()

    def _keys(self, question: str, steps: Sequence[str]) -> list[bytes]:
        """A key for each prefix of the solution."""
        key, keys = hashlib.sha256(f"{self.identity}\n{question}".encode()).digest(), []
        for text in steps:
            key = hashlib.sha256(key + text.encode()).digest()
            keys.append(key)
        return keys


class Workers:
    """A fixed number of threads, shared by all calls; `map` raises `BackendError` once they are closed."""

    def __init__(self, name: str, threads: int):
        self._name, self._closed = name, False
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="scorer")

    def map(self, work: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """The results in order; the first exception is raised."""
        if self._closed:
            raise BackendError(f"scorer {self._name!r} is closed; load it again")
        return list(self._pool.map(work, items))

    def close(self) -> None:
        """End the threads; calling it twice does nothing."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)


def _text_fault(question: str, steps: Sequence[str], marker: str = "") -> str:
    """Why this solution cannot be scored, "" where it can: an empty text, or one that holds the marker itself."""
    if not question.strip():
        return "the question is empty; give the text of the problem"
    if marker and marker in question:
        return f"the question contains the marker {marker!r}, which would be read as the end of a step; remove it"
    for index, text in enumerate(steps):
        if not text.strip():
            return f"step {index} is empty; split_steps makes no empty steps"
        if marker and marker in text:
            return f"step {index} contains the marker {marker!r}, which would be read as the end of a step; remove it"
    return ""
