"""A pool of worker processes that can be killed.

Workers are plain child processes spoken to over pipes: no multiprocessing (which would import the caller's main module
again), no pickle, no signals and no watchdog threads. The caller that waits for an answer is also the one that kills.
Runs on Linux and macOS.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from typing import Any

from stepwise.errors import GradingError

START_SECONDS = 120.0
GRACE_SECONDS = 5.0  # after its timeout a worker whose parent is gone is ended by an alarm of its own


class WorkerTimeout(Exception):
    """The worker was killed because the time was up.

    Example:
        try:
            reply = shared_pool().ask(request, timeout=5.0)
        except WorkerTimeout:
            verdict = Verdict.TIMEOUT
    """


class WorkerDied(Exception):
    """The worker ended by itself, or was killed by somebody else, while it worked.

    Example:
        try:
            reply = shared_pool().ask(request, timeout=5.0)
        except WorkerDied:
            verdict = Verdict.ERROR
    """


class _Worker:
    """One child process. Not shared between threads: the pool lends it to one caller at a time."""

    def __init__(self, grace: float = GRACE_SECONDS) -> None:
        if not sys.executable:
            raise GradingError("sys.executable is empty, so no worker can be started; use an ordinary interpreter")
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        # -P keeps the working directory off the path, and a new session keeps Ctrl-C with the caller.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "stepwise.grading.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self.count = 0
        self.grace = grace
        self._rest = b""
        try:
            self._read(START_SECONDS)
        except (WorkerTimeout, WorkerDied) as error:
            self.kill()
            raise GradingError(
                f"a grading worker could not be started ({type(error).__name__}); to see why, run "
                "`python -P -m stepwise.grading.worker` (it should print a line with its process id)"
            ) from None

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The reply to one request. Raises WorkerTimeout or WorkerDied; the worker must then be killed."""
        assert self.process.stdin is not None
        self.count += 1
        line = json.dumps(request | {"id": self.count, "alarm": timeout + self.grace}) + "\n"
        try:
            self.process.stdin.write(line.encode("ascii"))
        except OSError as error:
            raise WorkerDied(str(error)) from error
        return self._read(timeout)

    def _read(self, timeout: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise WorkerTimeout
                block = os.read(self.process.stdout.fileno(), 65536)
                if not block:
                    raise WorkerDied("its pipe closed")
                self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def kill(self) -> None:
        """End the process and free its pipes."""
        self.process.kill()
        self.process.wait()
        self.forget()

    def forget(self) -> None:
        """Close this process's ends of the pipes; the worker ends once nobody holds its stdin."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class _Pool:
    """At most `size` workers, started when they are first needed. Safe to use from many threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that exist now."""
        with self._lock:
            return [worker.process.pid for worker in self._all]

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Have a free worker answer; waiting for one does not count towards `timeout`.

        A worker that was killed from outside is replaced and the request asked once more. Raises WorkerTimeout and
        (the second time) WorkerDied for this request, GradingError when no worker can be started.
        """
        with self._free:
            for last in (False, True):
                worker = self._take()
                try:
                    reply = worker.ask(request, timeout)
                except BaseException as error:
                    with self._lock:
                        closed = worker not in self._all  # by `close`, so that nobody asks any more
                    # Also on KeyboardInterrupt: a worker in the middle of a job must not serve the next one.
                    self._drop(worker)
                    if last or closed or not isinstance(error, WorkerDied):
                        raise
                else:
                    break
            with self._lock:
                self._idle.append(worker)
            return reply

    def close(self) -> None:
        """Kill every worker; the next `ask` starts fresh ones."""
        with self._lock:
            workers, idle, self._all, self._idle = self._all, self._idle, set(), []
        for worker in idle:
            worker.kill()
        for worker in workers.difference(idle):
            worker.process.kill()  # whoever waits at its pipes sees them end, and closes them

    def _take(self) -> _Worker:
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                break
            if worker.process.poll() is None:
                return worker
            self._drop(worker)
        worker = _Worker()
        with self._lock:
            self._all.add(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.kill()

    def abandon(self) -> None:
        """In a forked child: the workers belong to the parent, so close the pipes and leave the processes alone."""
        for worker in self._all:
            worker.forget()
            worker.process.returncode = 0  # keeps Popen from waiting for, or signalling, somebody else's child
        self._all.clear()


_shared: _Pool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> _Pool:
    """The one pool of this process, with as many workers as there are usable cores (8 at most).

    >>> shared_pool() is shared_pool()  # workers start with the first question
    True
    """
    global _shared
    with _shared_lock:
        if _shared is None:
            usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            _shared = _Pool(min(8, max(2, usable)))
            atexit.register(_shared.close)
        return _shared


def _after_fork() -> None:
    global _shared, _shared_lock
    if _shared is not None:
        _shared.abandon()
    _shared, _shared_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
