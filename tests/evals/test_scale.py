"""The simulation of many workers: what it says follows from a few laws."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from evals.scale import fitted, memory
from evals.scale_model import Load, saturates_at, simulate
from stepwise.config import Config

LOAD = Load(worker=2.0, books=0.01, endpoint=0.02, run=0.05, spread=0.3)


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    runs = [simulate(LOAD, workers=5, problems=400, chunk=8, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_few_workers_are_all_busy_and_twice_as_many_do_twice_as_much() -> None:
    one, two = (simulate(LOAD, workers=n, problems=4000, chunk=8) for n in (1, 2))
    alone = LOAD.worker + LOAD.books + LOAD.endpoint + LOAD.run / 8
    assert one.per_second == pytest.approx(1 / alone, rel=0.02)
    assert two.per_second == pytest.approx(2 / alone, rel=0.03)
    assert one.first == "workers"


@pytest.mark.parametrize(("server", "field"), [("books", "books"), ("strong endpoint", "endpoint"), ("run", "run")])
def test_the_server_with_the_least_time_left_is_what_limits_at_its_own_rate(server: str, field: str) -> None:
    load = dataclasses.replace(LOAD, **{field: 0.1 * (8 if field == "run" else 1)})
    many = simulate(load, workers=400, problems=20_000, chunk=8)
    assert many.first == server
    assert many.per_second == pytest.approx(10, rel=0.05)
    ends = saturates_at(load, 8)
    assert min(ends, key=lambda each: ends[each]) == server
    assert simulate(load, workers=int(ends[server] / 3), problems=5000, chunk=8).first == "workers"


def test_chunks_that_are_too_large_leave_workers_without_one() -> None:
    assert simulate(LOAD, workers=30, problems=1000, chunk=32).first == "chunk size"
    assert simulate(LOAD, workers=30, problems=1000, chunk=1).first == "workers"


def test_what_one_worker_took_is_what_the_simulation_gives_back() -> None:
    row = {"seconds": 20.0, "problems": 64, "calls": 40, "books_per_second": 2000.0, "idle": 0.04}
    again = simulate(fitted(row, 8), workers=1, problems=64, chunk=8)
    assert again.per_second == pytest.approx(64 / 20, rel=0.05)


def test_memory_does_not_grow_with_the_problems_of_a_run(tmp_path: Path) -> None:
    found = dict(memory(lambda name: tmp_path / name, Config.lab(), (200, 4000), chunk=100))
    assert found[4000] - found[200] < 4  # MiB; 3,800 rows of it have 8
