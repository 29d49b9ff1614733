"""The one thread that touches a context: callers queue their jobs and wait, from any number of threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from stepwise.errors import BackendError
from stepwise.models.engine.jobs import Call, Unit
from stepwise.models.engine.scheduler import Scheduler


class Control(Call):
    """Something to do on the engine's thread once all jobs before it are done."""

    def __init__(self, action: Callable[[], None]):
        super().__init__(1)
        self.action = action


class Worker:
    """Runs the scheduler's turns while there are jobs; jobs that arrive meanwhile join the running batch."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._inbox: deque[Control | list[Unit]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="stepwise-engine", daemon=True)
        self._thread.start()

    def do(self, item: Control | list[Unit], call: Call) -> list[Any]:
        """Queue `item` and block until `call` is complete; interrupted, its jobs are dropped and the engine goes on.

        Raises BackendError after `stop`, and what made the whole call fail.
        """
        self.submit(item)
        try:
            call.done.wait()
        except BaseException:
            self.cancel(call)
            raise
        if call.failure is not None:
            raise call.failure
        return call.results

    def submit(self, item: Control | list[Unit]) -> None:
        """Queue `item` and return at once. Raises BackendError after `stop`."""
        with self._wake:
            if self._error is not None:
                raise BackendError(f"the engine stopped at an error ({self._error}); load it again") from self._error
            if self._stopping:
                raise BackendError("the engine is closed; load it again")
            self._inbox.append(item)
            self._wake.notify()

    def cancel(self, call: Call) -> None:
        """Drop what is left of the jobs of `call`."""
        call.cancelled = True
        self._scheduler.interrupted = True

    def stop(self) -> None:
        """End the thread; what has not finished fails with BackendError. Calling it twice does nothing."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        error: Exception = BackendError("the engine was closed while the call was in progress; load it again")
        try:
            while self._take():
                self._scheduler.turn()
        except Exception as caught:
            error = self._error = caught
        finally:  # a caller must never wait for a thread that has ended
            self._abandon(error)

    def _take(self) -> bool:
        """Hand on what has arrived, blocking while there is nothing to do; False when it is time to stop."""
        scheduler = self._scheduler
        with self._wake:
            while not self._stopping:
                while self._inbox and not (isinstance(self._inbox[0], Control) and scheduler.busy):
                    item = self._inbox.popleft()
                    if isinstance(item, Control):
                        _act(item)
                    else:
                        scheduler.add([unit for unit in item if not unit.call.cancelled])
                if scheduler.busy:
                    return True
                self._wake.wait()
        return False

    def _abandon(self, error: Exception) -> None:
        with self._wake:
            self._stopping = True
            left, self._inbox = list(self._inbox), deque()
        self._scheduler.abandon(error)
        for item in left:
            for call in [item] if isinstance(item, Control) else [unit.call for unit in item]:
                call.fail(error)


def _act(control: Control) -> None:
    try:
        control.action()
    except Exception as error:
        control.fail(error)
    else:
        control.put(0, None)
