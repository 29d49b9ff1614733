"""The driver: runs one coroutine per problem, and lets the engines move when every coroutine waits.

A method is a coroutine for one problem; how requests become batches is decided here and in the engines.
1. `run` gives the coroutines an event loop on a thread of its own, so that it works inside notebooks and servers, and
   in the caller's context (`dspy.context`, trackers).
2. In exact mode it adopts the engines: they take their turns on this thread, in a fixed order, each time nothing else
   is left to do. That is known, not guessed: the loop asks its selector to wait only when no callback is ready, and
   what waits for a thread, a server or the grader is counted (`outside`, and every job of the loop's executors). So
   batches follow from the inputs, and a second run is equal to the first, to the byte.
3. A counted thread that itself waits for an adopted engine (a synchronous door, LiteLLM's handler) counts as waiting.
   Threads that nobody counts (another router, a program's own) are served too, between the turns.
4. Without exact mode the engines keep their own threads, and requests to servers hold up nobody but their problem.
5. `Batcher` makes a coroutine of what only knows batches: it takes everything that waits when it is free.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from stepwise.errors import BackendError
from stepwise.models.engine.context import no_interrupt
from stepwise.models.engine.jobs import ORDER, Call
from stepwise.models.engine.worker import Worker

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
_thread = threading.local()  # .driver: the driver that counts this thread


class Driver:
    """Runs coroutines to their end; one `run` at a time.

    `engines` are what `exact` mode adopts, in the order in which they take turns: objects with a `worker`. An engine
    that another driver has adopted is used as it is, and then nothing is exact.

    Example:
        completions = Driver(weak.engines).run([weak.generate(request) for request in requests], window=32)
    """

    def __init__(self, engines: Iterable[Any] = (), *, exact: bool = True):
        self._engines = list(dict.fromkeys(engine.worker for engine in engines)) if exact else []
        self._exact = exact
        self._adopted: list[Worker] = []
        self._queues: list[_Queue[Any, Any]] = []
        self._outside = 0  # coroutines that wait for something that moves by itself
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._ident = 0
        self.stopped_by: BaseException | None = None
        """What a coroutine raised: nothing more is asked of any model"""
        self.flights: set[asyncio.Future[Any]] = set()
        """requests to servers, of which the answers are kept before the run ends"""

    def run(self, coroutines: Sequence[Coroutine[Any, Any, T]], *, window: int | None = None) -> list[T]:
        """The results, in order; at most `window` coroutines are open at once (None: all).

        The first exception that one of them raises cancels the others and is raised here, and so does Ctrl-C; what had
        been sent to servers by then is answered and kept first (not on Ctrl-C). Raises BackendError on a driver's own
        thread, which would wait for itself.
        """
        if getattr(_thread, "loop_of", None) is not None:
            for coroutine in coroutines:
                coroutine.close()
            raise BackendError("a synchronous call inside a coroutine would wait for itself; await its coroutine")
        context = contextvars.copy_context()
        outcome: Future[list[T]] = Future()
        main = self._main(coroutines, window)
        started, ended = threading.Event(), threading.Event()
        stop: list[Callable[[], object]] = []

        def work() -> None:
            loop = self._loop = _Loop(self)
            self._ident, _thread.loop_of = threading.get_ident(), self
            try:
                asyncio.set_event_loop(loop)
                task = loop.create_task(main, context=context)
                stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
                started.set()
                self._adopted = [worker for worker in self._engines if worker.adopt(self)]
                outcome.set_result(loop.run_until_complete(task))
            except BaseException as error:
                outcome.set_exception(error)
            finally:
                started.set()
                for worker in self._adopted:
                    worker.release()
                self._adopted = []
                try:
                    _close(loop)
                finally:
                    ended.set()

        try:
            with no_interrupt():
                threading.Thread(target=work, name="stepwise-driver", daemon=True).start()
            ended.wait()  # no `join`: one that Ctrl-C breaks off makes the next return at once (before Python 3.13)
        except BaseException:  # Ctrl-C: what was begun is cancelled before the caller goes on, and frees the engines
            with no_interrupt():
                started.wait()
                with suppress(RuntimeError, IndexError):
                    stop[0]()
                ended.wait()
            raise
        return outcome.result()

    async def _main(self, coroutines: Sequence[Coroutine[Any, Any, T]], window: int | None) -> list[T]:
        results: list[Any] = [None] * len(coroutines)
        waiting = deque(enumerate(coroutines))
        failures: list[BaseException] = []

        async def work() -> None:
            while waiting and not failures:
                place, coroutine = waiting.popleft()
                ORDER.set((place,))
                try:
                    results[place] = await coroutine
                except BaseException as error:  # also KeyboardInterrupt, which would end the loop's thread
                    failures.append(error)
                    self.stopped_by = error
                    raise asyncio.CancelledError from None

        lanes = [asyncio.ensure_future(work()) for _ in range(min(window or len(coroutines), len(coroutines)))]
        try:
            while pending := [lane for lane in lanes if not lane.done()]:
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if failures:
                    break
            while self.flights:  # paid for: kept before those who asked are cancelled
                await asyncio.wait(self.flights)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
            for _, coroutine in waiting:
                coroutine.close()
        if failures:
            raise failures[0]
        return results

    # ----- what the loop asks

    def advance(self) -> bool:
        """Nothing is ready to run: let batchers and engines move; False where there is nothing to move."""
        with self._lock:
            outside = self._outside
        moved = False
        for queue in () if outside and self._exact else self._queues:
            moved |= queue.flush()
        if moved:
            return True
        for worker in self._adopted:
            if worker.waiting and (not outside or worker.uncounted):
                worker.step()
                moved = True
        return moved

    def count(self, change: int) -> None:
        """Note that something begins (1) or ends (-1) to move outside."""
        with self._lock:
            self._outside += change

    def register(self, queue: _Queue[Any, Any]) -> None:
        """Flush `queue` when nothing else is ready."""
        self._queues.append(queue)

    # ----- what a worker asks (`worker.Owner`)

    def in_loop(self) -> bool:
        """Whether the caller is on this driver's thread."""
        return threading.get_ident() == self._ident

    def in_worker_thread(self) -> bool:
        """Whether a coroutine of this driver waits for the caller's thread."""
        return getattr(_thread, "driver", None) is self

    def wake(self) -> None:
        """Have the loop look again."""
        if self._loop is not None:
            with suppress(RuntimeError):  # closed meanwhile
                self._loop.call_soon_threadsafe(lambda: None)

    def begin_wait(self, call: Call) -> None:
        """The calling thread, which is counted, waits for `call` until it ends."""
        before = call.on_end

        def end() -> None:
            self.count(1)  # at once: no turn before the thread has gone on
            if before is not None:
                before()

        call.on_end = end
        self.count(-1)


def driver() -> Driver | None:
    """The driver of the running event loop, None in a loop of somebody else's. Example: see `outside`, which asks."""
    loop = asyncio.get_running_loop()
    return loop.driver if isinstance(loop, _Loop) else None


async def outside(awaitable: Awaitable[T]) -> T:
    """Await what moves by itself (a server, a process), counted, so that no engine moves meanwhile in exact mode.

    Example:
        reply = await outside(asyncio.to_thread(server.post, "/score", body))
    """
    mine = driver()
    if mine is None:
        return await awaitable
    mine.count(1)
    try:
        return await awaitable
    finally:
        mine.count(-1)


class Batcher(Generic[A, B]):
    """A coroutine in front of `work`, a function of a batch: it takes everything that waits when it is free.

    `work` runs in a thread, in the context of whoever asked first, and returns a result for each item; each driver has
    a queue of its own. In somebody else's event loop each item is a batch of its own.

    Example:
        score = await Batcher(classifier).ask("So 3.")  # one call of `classifier` for all that wait
    """

    def __init__(self, work: Callable[[list[A]], Sequence[B]]):
        self._work = work
        self._queues: WeakKeyDictionary[Driver, _Queue[A, B]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    async def ask(self, item: A) -> B:
        """The result of one item; raises what `work` raises."""
        mine = driver()
        if mine is None:
            return (await asyncio.to_thread(self._work, [item]))[0]
        with self._lock:
            queue = self._queues.get(mine)
            if queue is None:
                queue = self._queues[mine] = _Queue(self._work)
                mine.register(queue)
        return await queue.ask(item)


class _Queue(Generic[A, B]):
    """What waits for a `Batcher` on one driver's loop."""

    def __init__(self, work: Callable[[list[A]], Sequence[B]]):
        self._work = work
        self._waiting: list[tuple[tuple[int, ...], A, asyncio.Future[B], contextvars.Context]] = []
        self._running = False

    async def ask(self, item: A) -> B:
        """The result of one item."""
        result: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((ORDER.get(), item, result, contextvars.copy_context()))
        return await result

    def flush(self) -> bool:
        """Start on all that waits, if nothing is running; whether it did."""
        if self._running or not self._waiting:
            return False
        batch, self._waiting = sorted(self._waiting, key=lambda entry: entry[0]), []
        batch = [entry for entry in batch if not entry[2].done()]
        if not batch:
            return False
        self._running = True
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(None, batch[0][3].run, self._work, [item for _, item, _, _ in batch])
        future.add_done_callback(lambda done: self._finish(batch, done))
        return True

    def _finish(self, batch: Sequence[Any], done: asyncio.Future[Sequence[B]]) -> None:
        self._running = False
        error = BackendError("the call was broken off") if done.cancelled() else done.exception()
        for place, (_, _, result, _) in enumerate(batch):
            if result.done():
                continue
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(done.result()[place])


class _Selector(selectors.DefaultSelector):
    """Lets the driver move the engines in place of a wait."""

    driver: Driver

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        # The loop has no callback that is ready: it would wait.
        return super().select(0) or ([] if self.driver.advance() else super().select(timeout))


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that knows when every coroutine waits, and what for."""

    def __init__(self, mine: Driver):
        selector = _Selector()
        selector.driver = self.driver = mine
        super().__init__(selector)
        self.threads = ThreadPoolExecutor(64, thread_name_prefix="stepwise-outside")
        self.set_default_executor(self.threads)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        mine = self.driver

        def counted() -> Any:
            _thread.driver = mine
            try:
                return func(*args)
            finally:
                _thread.driver = None

        mine.count(1)
        try:
            future = super().run_in_executor(executor, counted)
        except BaseException:
            mine.count(-1)
            raise
        future.add_done_callback(lambda _: mine.count(-1))
        return future


def _close(loop: _Loop) -> None:
    """Cancel what a library left running on the loop, and close it."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.threads.shutdown(wait=False, cancel_futures=True)  # a request that hangs is not waited for
    asyncio.set_event_loop(None)
    loop.close()
