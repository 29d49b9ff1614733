"""Chunks handed to workers that die: each once, in whatever order; no Ray here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from stepwise.errors import BackendError, BudgetExceededError
from stepwise.runs.pool import Pool, WorkerLostError


class Script:
    """A cluster whose workers answer one after the other; `fates` say what becomes of the submissions, by task."""

    def __init__(self, size: int, fates: dict[str, Exception] | None = None, room: int = 99) -> None:
        self.size, self.fates, self.room = size, fates or {}, room
        self.started, self.num_lost = 0, list[str]()
        self.work_of: dict[str, Any] = {}
        self.most_in_hand = 0
        self._open: list[str] = []

    def start(self) -> tuple[str, str]:
        self.started += 1
        ref = f"start {self.started}"
        if self.started <= self.room:
            self._open.append(ref)
        return f"worker {self.started}", ref

    def submit(self, worker: str, task: str, work: Any, part: Sequence[int]) -> str:
        self.work_of[task] = (work, part)
        self._open.append(task)
        self.most_in_hand = max(self.most_in_hand, sum(not ref.startswith("start") for ref in self._open))
        return task

    def wait(self, refs: Sequence[str], seconds: float) -> list[str]:
        assert set(self._open) <= set(refs)
        if not self._open:
            return []
        ref = next((ref for ref in self._open if ref.startswith("start")), self._open[-1])
        self._open.remove(ref)
        return [ref]  # of chunks the last one: results come in another order

    def result(self, ref: str) -> Any:
        if ref in self.fates:
            raise self.fates[ref]
        if ref.startswith("start"):
            return "facts"
        work, part = self.work_of[ref]
        return work(None, part)

    def lost(self, worker: str, task: str) -> None:
        self.num_lost.append(task)


def doubled(models: None, part: Sequence[int]) -> dict[str, Any]:
    return {"rows": [2 * n for n in part]}


def pool_of(cluster: Script) -> Pool:
    clock = iter(range(10**9))
    pool = Pool(cluster, patience=5, clock=lambda: float(next(clock)))
    assert pool.first() == "facts"
    return pool


def parts(num: int) -> Iterator[tuple[int, list[int]]]:
    return ((n, [n]) for n in range(num))


def until(cluster: Script, given: Iterator[Any], error: type[Exception], words: str) -> list[int]:
    """The chunks that were handed over before `error` came."""
    done = list[int]()

    def collect() -> None:
        for number, _ in pool_of(cluster).map(doubled, given):
            done.append(number)

    with pytest.raises(error, match=words):
        collect()
    return done


def test_every_chunk_is_done_once_and_a_worker_has_one_at_a_time() -> None:
    cluster = Script(3)
    results = dict(pool_of(cluster).map(doubled, parts(50)))
    assert results == {n: {"rows": [2 * n]} for n in range(50)}
    assert cluster.most_in_hand == 3


def test_a_part_is_taken_only_when_somebody_is_free() -> None:
    taken = list[int]()

    def lazily() -> Iterator[tuple[int, list[int]]]:
        for number, part in parts(10**9):
            taken.append(number)
            yield number, part

    results = pool_of(Script(2)).map(doubled, lazily())
    for _ in range(20):
        next(results)
    assert len(taken) <= 22


def test_a_lost_worker_is_replaced_and_its_chunk_is_done_by_another() -> None:
    cluster = Script(2, {"1/0": WorkerLostError("killed"), "3/0": WorkerLostError("its node died")})
    pool = pool_of(cluster)
    assert sorted(number for number, _ in pool.map(doubled, parts(6))) == list(range(6))
    assert sorted(cluster.num_lost) == ["1/0", "3/0"]
    assert (pool.num_lost, cluster.started) == (2, 4)
    assert {"1/1", "3/1"} <= set(cluster.work_of)


def test_a_chunk_that_costs_three_workers_stops_the_run_and_the_others_are_handed_over() -> None:
    cluster = Script(2, {f"1/{n}": WorkerLostError("out of memory") for n in range(3)})
    done = until(cluster, parts(3), BackendError, r"chunk 1 was lost with 3 workers.*out of memory.*smaller chunks")
    assert 0 in done


@pytest.mark.parametrize("error", [BackendError("the model is gone"), ZeroDivisionError("a mistake")])
def test_what_others_have_in_hand_is_finished_before_an_error_goes_on(error: Exception) -> None:
    done = until(Script(2, {"1/0": error}), parts(9), type(error), str(error))
    assert 0 in done
    assert len(done) < 9


def test_a_cap_that_ends_the_handing_out_ends_it_after_what_is_in_hand() -> None:
    def capped() -> Iterator[tuple[int, list[int]]]:
        yield from parts(3)
        raise BudgetExceededError("budget.calls = 3", cap="budget.calls")

    assert sorted(until(Script(2), capped(), BudgetExceededError, r"budget\.calls")) == [0, 1, 2]


def test_where_no_node_has_room_the_run_says_so_and_does_not_wait_for_ever() -> None:
    pool = Pool(Script(2, room=0), patience=0.0)
    with pytest.raises(BackendError, match=r"no worker came up.*workers\.resources"):
        pool.first()


def test_workers_that_never_come_up_are_not_replaced_for_ever() -> None:
    pool = Pool(Script(1, {f"start {n}": WorkerLostError("no module named x") for n in range(9)}), patience=5)
    with pytest.raises(BackendError, match=r"3 workers ended before they had loaded.*no module named x"):
        pool.first()
