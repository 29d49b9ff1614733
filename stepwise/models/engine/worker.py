"""Who lets an engine take its turns: a thread of its own, or a driver that has adopted it.

Callers queue their jobs from any number of threads and event loops. By itself the thread runs turns while there are
jobs. A driver (`stepwise.models.driver`) in exact mode adopts the engine for a run: then only the driver takes turns,
one at a time, when every coroutine of the run waits, so that batches follow from the inputs and not from the clock.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from stepwise.errors import BackendError
from stepwise.models.engine.context import wait_for_end
from stepwise.models.engine.jobs import Call, Unit
from stepwise.models.engine.scheduler import Scheduler


class _Owner(Protocol):
    """A driver, as far as a worker knows it."""

    def in_loop(self) -> bool:
        """Whether the caller is on the driver's own thread."""

    def in_worker_thread(self) -> bool:
        """Whether the caller is on a thread that a coroutine of the driver waits for."""

    def wake(self) -> None:
        """Have the driver look at its engines again; from any thread."""

    def begin_wait(self, call: Call) -> None:
        """A counted thread begins to wait for `call`: it counts as running again as soon as the call has ended."""


class Control(Call):
    """Something to do between two turns once all jobs before it are done.

    Example:
        control = Control(scheduler.reset)
        worker.do(control, control)
    """

    def __init__(self, action: Callable[[], None]):
        super().__init__(1)
        self.action = action


class Worker:
    """Runs the scheduler's turns while there are jobs; jobs that arrive meanwhile join the running batch.

    Example:
        worker = Worker(Scheduler(context, vocabulary, cache))
        results = worker.do(units, call)
    """

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._inbox: deque[Control | list[Unit]] = deque()
        self._wake = threading.Condition()
        self._turn = threading.Lock()  # held by whoever moves the scheduler
        self._owner: _Owner | None = None
        self._uncounted = 0  # items queued by threads that the owner does not count
        self._stopping = False
        self._error: Exception | None = None
        self._process = os.getpid()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stepwise-engine", daemon=True)
        self._thread.start()

    # ----- callers

    def do(self, item: Control | list[Unit], call: Call) -> list[Any]:
        """Queue `item` and block until `call` is complete; interrupted, its jobs are dropped and the engine goes on.

        Raises BackendError after `stop`, on the thread of the driver that takes this engine's turns (it would wait for
        itself), and what made the whole call fail.
        """
        self.check_usable()
        if not item:
            return call.results
        owner = self._owner
        if owner is not None and owner.in_loop():
            raise BackendError("this would wait for its own thread; await the model's coroutine here instead")
        if owner is not None and owner.in_worker_thread():
            owner.begin_wait(call)
        self.submit(item)
        try:
            call.done.wait()
        except BaseException:
            self.cancel(call)
            raise
        return call.outcome()

    async def wait(self, units: list[Unit], call: Call) -> list[Any]:
        """`do` for the running event loop, which a driver may own; cancelled, the jobs are dropped."""
        self.check_usable()
        if not units:
            return call.results
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        ended: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            if not ended.done():
                ended.set_result(None)

        def on_end() -> None:
            if threading.get_ident() == thread:
                resolve()
            else:
                with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
                    loop.call_soon_threadsafe(resolve)

        call.on_end = on_end
        self.submit(units)
        try:
            await ended
        except asyncio.CancelledError:
            self.cancel(call)
            raise
        return call.outcome()

    def submit(self, item: Control | list[Unit]) -> None:
        """Queue `item` and return at once. Raises BackendError after `stop`, and in a forked child, which has no such
        thread.
        """
        self.check_usable()  # a forked child must not touch the lock
        with self._wake:
            self.check_usable()
            self._inbox.append(item)
            owner = self._owner
            if owner is None:
                self._wake.notify()
            elif owner.in_loop():
                owner = None  # it will look by itself
            else:
                self._uncounted += not owner.in_worker_thread()
        if owner is not None:
            owner.wake()

    @property
    def forked(self) -> bool:
        """Whether this is a forked child: it has no such thread, and a lock may be held there for ever."""
        return os.getpid() != self._process

    def check_usable(self) -> None:
        """Raise BackendError where it takes no calls any more: closed, broken, or in a forked child."""
        if self.forked:
            raise BackendError("the engine was loaded before this process was forked; load it in the child")
        if self._error is not None:
            raise BackendError(f"the engine stopped at an error ({self._error}); load it again") from self._error
        if self._stopping:
            raise BackendError("the engine is closed; load it again")

    def cancel(self, call: Call) -> None:
        """Drop what is left of the jobs of `call`."""
        call.cancelled = True
        self._scheduler.interrupted = True

    def stop(self) -> None:
        """End the thread; what has not finished fails with BackendError. Twice, or in a forked child, does nothing."""
        if self.forked:
            return
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            wait_for_end(self._ended)

    # ----- the driver that takes the turns

    def adopt(self, owner: _Owner) -> bool:
        """Leave the turns to `owner`; False where another driver has them, and in a forked child."""
        if self.forked:
            return False
        with self._wake:
            if self._owner is not None or self._stopping:
                return False
            self._owner = owner
        return True

    def release(self) -> None:
        """Take the turns back."""
        with self._wake:
            self._owner, self._uncounted = None, 0
            self._wake.notify()

    @property
    def waiting(self) -> bool:
        """Whether a turn has something to do."""
        return bool(self._inbox or self._scheduler.busy)

    @property
    def uncounted(self) -> bool:
        """Whether somebody waits whom the driver does not count, and who may be what a counted thread waits for."""
        return self._uncounted > 0 and self.waiting

    def step(self) -> None:
        """One turn, for the driver: what has arrived is taken in the order of the coroutines that asked for it."""
        with self._turn:
            try:
                if not self._step(in_order=True) and not self._inbox:
                    self._uncounted = 0
            except Exception as error:
                self._error = error
                self._abandon(error)

    # ----- the thread

    def _run(self) -> None:
        error: Exception = BackendError("the engine was closed while the call was in progress; load it again")
        try:
            while self._may_turn():
                with self._turn:
                    if self._owner is None:
                        self._step()
        except Exception as caught:
            error = self._error = caught
        finally:  # a caller must never wait for a thread that has ended
            self._abandon(error)
            self._ended.set()

    def _may_turn(self) -> bool:
        """Block while there is nothing to do, or somebody else does it; False when it is time to stop."""
        with self._wake:
            while not self._stopping:
                if self._owner is None and self.waiting:
                    return True
                self._wake.wait()
        return False

    def _step(self, in_order: bool = False) -> bool:
        """Hand on what has arrived, up to a control that must wait for the jobs before it, and take a turn; False where
        there was nothing to do in it.
        """
        units: list[Unit] = []
        while True:
            with self._wake:  # not held while a control acts: whoever queues something must not wait for it
                if not self._inbox or (isinstance(self._inbox[0], Control) and (units or self._scheduler.busy)):
                    break
                item = self._inbox.popleft()
            if not isinstance(item, Control):
                units += [unit for unit in item if not unit.call.cancelled]
                continue
            try:
                item.action()
            except Exception as error:
                item.fail(error)
            else:
                item.put(0, None)
        if in_order:  # the sort is stable: equal orders stay as they came
            units.sort(key=lambda unit: unit.call.order)
        self._scheduler.add(units)
        if busy := self._scheduler.busy:
            self._scheduler.turn()
        return busy

    def _abandon(self, error: Exception) -> None:
        with self._wake:
            self._stopping = True
            left, self._inbox = list(self._inbox), deque()
            self._wake.notify()
        self._scheduler.abandon(error)
        for item in left:
            for call in [item] if isinstance(item, Control) else [unit.call for unit in item]:
                call.fail(error)
