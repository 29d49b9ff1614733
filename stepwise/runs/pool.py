"""Chunks handed to workers that may die: each is done once, and asked for again where its worker was lost.

One rule: a worker has one chunk at a time, so that as many chunks are in hand as there are workers, however many there
are to do. A lost worker is replaced, and its chunk goes to whoever is free first; a chunk that has cost three workers
stops the run. So does any other error; what others have in hand is finished first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stepwise.errors import BackendError
from stepwise.runs.chunks import Part, Work

_TRIES = 3


class WorkerLostError(BackendError):
    """The process of a worker, or its node, is gone.

    Example:
        raise WorkerLostError("the worker on node 10.0.0.7 died: its process was killed")
    """


class Cluster(Protocol):
    """Where workers live; refs are whatever it names work in progress by, and can be keys of a dict.

    Example:
        pool = Pool(cluster, patience=300)
    """

    size: int
    """workers that are wanted"""

    def start(self) -> tuple[Any, Any]:
        """A new worker, and a ref that is ready when it is."""

    def submit(self, worker: Any, task: str, work: Work, part: Sequence[Any]) -> Any:
        """A ref of the files of a chunk."""

    def wait(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """Those that are ready, empty after `seconds`."""

    def result(self, ref: Any) -> Any:
        """What a ready ref stands for; raises WorkerLostError, or what the worker raised."""

    def lost(self, worker: Any, task: str) -> None:
        """A worker is lost, with what it had in hand (""  for nothing)."""


@dataclass
class _Task:
    number: int
    part: Sequence[Any]
    tries: int = 0

    @property
    def name(self) -> str:
        return f"{self.number}/{self.tries}"


class Pool:
    """Hands out chunks to the workers of a cluster; `patience` is how many seconds it waits where it has no worker.

    Example:
        pool = Pool(cluster, patience=60)
        for number, texts in pool.map(work, enumerate([problems[:8], problems[8:]])): ...
    """

    def __init__(self, cluster: Cluster, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster, self._patience, self._clock = cluster, patience, clock
        self._idle: deque[Any] = deque()
        self._running: dict[Any, tuple[Any, _Task | None]] = {}  # by ref; no task: it starts
        self._stillborn = 0
        self.num_lost = 0
        """workers that were lost"""

    def first(self) -> Any:
        """Start all workers; what the first that is ready says of itself."""
        for _ in range(self._cluster.size):
            self._begin()
        while True:
            for ref in self._ready():
                worker, _ = self._running.pop(ref)
                try:
                    facts = self._cluster.result(ref)
                except WorkerLostError as lost:
                    if error := self._lost(worker, None, deque(), lost):
                        raise error from lost
                    continue
                self._idle.append(worker)
                return facts

    def wait_for_all(self) -> None:
        """Until all workers that are wanted are ready."""
        while any(task is None for _, task in self._running.values()):
            for ref in self._ready():
                worker, _ = self._running.pop(ref)
                self._cluster.result(ref)
                self._idle.append(worker)

    def map(self, work: Work, parts: Iterable[Part]) -> Iterator[tuple[int, Mapping[str, str]]]:
        """See `stepwise.runs.chunks.Crew`."""
        rest, again, stop = iter(parts), deque[_Task](), None
        is_over = False
        while True:
            while self._idle and stop is None and not (is_over and not again):
                try:
                    task = again.popleft() if again else _Task(*next(rest))
                except StopIteration:
                    is_over = True
                except Exception as error:
                    stop = error
                else:
                    worker = self._idle.popleft()
                    self._running[self._cluster.submit(worker, task.name, work, task.part)] = worker, task
            in_hand = any(task for _, task in self._running.values())
            if not in_hand and (stop is not None or (is_over and not again)):
                break
            for ref in self._ready():
                worker, task_of = self._running.pop(ref)
                try:
                    result = self._cluster.result(ref)
                except WorkerLostError as lost:
                    stop = self._lost(worker, task_of, again, lost) or stop
                except Exception as error:
                    stop = stop or error
                    self._idle.append(worker)
                else:
                    self._idle.append(worker)
                    if task_of is not None:
                        yield task_of.number, result
        if stop is not None:
            raise stop

    def _begin(self) -> None:
        worker, ref = self._cluster.start()
        self._running[ref] = worker, None

    def _lost(self, worker: Any, task: _Task | None, again: deque[_Task], lost: Exception) -> Exception | None:
        """Replace a worker; an error where that makes no sense."""
        self.num_lost += 1
        self._cluster.lost(worker, task.name if task else "")
        self._stillborn = 0 if task else self._stillborn + 1
        if self._stillborn >= _TRIES:
            return BackendError(f"{_TRIES} workers ended before they had loaded their models, the last time: {lost}")
        self._begin()
        if task is None:
            return None
        task.tries += 1
        if task.tries >= _TRIES:
            return BackendError(
                f"chunk {task.number} was lost with {_TRIES} workers, the last time: {lost}; it may need more "
                "memory than a node has (see the node's log); take smaller chunks or fewer sequences"
            )
        again.append(task)
        return None

    def _ready(self) -> list[Any]:
        """The refs that are ready; raises BackendError where there is no worker and none comes."""
        began, step = self._clock(), 1.0
        while True:
            ready = self._cluster.wait(list(self._running), step)
            if ready:
                return ready
            if (
                not self._idle
                and all(task is None for _, task in self._running.values())
                and self._clock() - began > self._patience
            ):
                raise BackendError(
                    f"no worker came up in {self._patience:.0f} s: see `ray status` for a node that has room, set "
                    "workers.resources or workers.actors_per_node lower, or workers.patience higher"
                )
