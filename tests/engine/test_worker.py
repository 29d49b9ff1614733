"""The engine's thread: what was cancelled is not run, and an engine that failed says at what."""

from __future__ import annotations

import multiprocessing
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from stepwise.errors import BackendError
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.engine.jobs import Call
from stepwise.models.engine.worker import Control, Worker
from tests.engine.conftest import LoadEngine


class Scheduler:
    """Finishes one unit a turn; a unit named "bad" raises."""

    def __init__(self) -> None:
        self.units: list[Any] = []
        self.ran: list[str] = []
        self.interrupted = False

    @property
    def busy(self) -> bool:
        return bool(self.units)

    def add(self, units: list[Any]) -> None:
        self.units += units

    def turn(self) -> None:
        unit = self.units.pop(0)
        if unit.name == "bad":
            raise ValueError("no more cells")
        self.ran.append(unit.name)
        unit.call.put(0, unit.name)

    def abandon(self, error: Exception) -> None:
        for unit in self.units:
            unit.call.fail(error)


def unit(name: str) -> Any:
    return SimpleNamespace(name=name, call=Call(1))


def test_units_cancelled_while_they_wait_to_be_taken_are_not_run() -> None:
    scheduler = Scheduler()
    worker = Worker(scheduler)  # type: ignore[arg-type]
    inside, go = threading.Event(), threading.Event()

    def block() -> None:
        inside.set()
        go.wait(10)

    worker.submit(Control(block))
    assert inside.wait(10)
    dropped, kept = unit("dropped"), unit("kept")
    worker.submit([dropped])
    worker.cancel(dropped.call)
    go.set()
    assert worker.do([kept], kept.call) == ["kept"]
    assert scheduler.ran == ["kept"]
    worker.stop()


def test_an_engine_that_failed_names_the_error_to_later_callers() -> None:
    worker = Worker(Scheduler())  # type: ignore[arg-type]
    worker.submit([unit("bad")])
    worker._thread.join(10)
    later = unit("later")
    with pytest.raises(BackendError, match=r"stopped at an error \(no more cells\); load it again"):
        worker.do([later], later.call)


def test_a_closed_engine_says_so() -> None:
    worker = Worker(Scheduler())  # type: ignore[arg-type]
    worker.stop()
    with pytest.raises(BackendError, match="closed; load it again"):
        worker.do([unit("x")], Call(1))


def test_a_forked_child_is_told_that_the_engine_is_not_its_own() -> None:
    worker = Worker(Scheduler())  # type: ignore[arg-type]
    child = multiprocessing.get_context("fork").Process(target=_ask_in_child, args=(worker,))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    worker.stop()


def test_a_forked_child_is_told_so_while_a_lock_is_held_and_leaves_the_parents_engine_alone(load: LoadEngine) -> None:
    engine = load()
    with engine.worker._wake, engine.vocabulary._lock:  # as another thread may have them at the fork
        child = multiprocessing.get_context("fork").Process(target=_use_in_child, args=(engine,))
        child.start()
        child.join(20)
    assert child.exitcode == 0
    assert len(engine.generate([GenerationJob((4, 5), max_tokens=3, ignore_end=True)])[0].ids) == 3


def _use_in_child(engine: Engine) -> None:
    job = GenerationJob((4, 5), max_tokens=3)
    for use in (
        lambda: engine.generate([job]),
        lambda: engine.generate([]),
        lambda: list(engine.stream(job)),
        lambda: engine.score([[4, 5]], [[1]], [6]),
        lambda: engine.tokenize("a"),
        lambda: engine.chat_ids([{"role": "user", "content": "a"}]),
        lambda: engine.set_adapter(None),
        lambda: engine.reset_cache(),
    ):
        with pytest.raises(BackendError, match="load it in the child"):
            use()
    engine.close()


def _ask_in_child(worker: Worker) -> None:
    with pytest.raises(BackendError, match="load it in the child"):
        worker.do([unit("x")], Call(1))
