"""The route program: going on after kill -9, Ctrl-C and errors, and caps that hold over all starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from programs import route
from stepwise.io import append_rows, read_rows
from stepwise.models.store import CallCache
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Trace
from tests.fakes import Line
from tests.routing.lab_world import LabWorld


def start(out: Path, *arguments: str) -> int:
    return route.main(["--out", str(out), *arguments])


def steps(out: Path) -> dict[str, list[str]]:
    return {t.problem.id: [s.text for s in t.steps] for t in read_rows(out / "traces.jsonl", Trace)}


def cut(path: Path, lines: int) -> None:
    """Leave so many whole lines and half of the next one, as a machine that crashed does."""
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:lines]) + rows[lines][: len(rows[lines]) // 2])


def test_a_killed_run_goes_on_where_it_was_and_gives_the_same_traces(world: LabWorld, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, "--n", "10") == 0
    assert start(killed, "--n", "10") == 0
    cut(killed / "traces.jsonl", 6)
    asked = len(world.weak.requests)
    assert start(killed, "--n", "10") == 0
    assert len(world.weak.requests) == asked  # every step of the open problems was kept
    assert steps(killed) == steps(whole)
    cut(killed / "traces.jsonl", 2)
    cut(killed / "answers.jsonl", 50)
    assert start(killed, "--n", "10") == 0
    assert 0 < len(world.weak.requests) - asked < asked / 2
    assert steps(killed) == steps(whole)


VICTIM = """
import sys, time
import pytest
from programs import route
from tests.routing.lab_world import LabWorld

world = LabWorld(10)
world.install(pytest.MonkeyPatch())
quick = world.weak._script
world.weak._script = lambda *asked: (time.sleep(0.02), quick(*asked))[1]
route.main(sys.argv[1:])
"""


def test_after_kill_9_no_answer_is_asked_for_again_and_the_cap_holds_over_both_starts(
    world: LabWorld, tmp_path: Path
) -> None:
    options = ["--n", "10", "--set", "routing.threshold=0.7", "--set", "sampling.max_step_tokens=32"]
    options += ["--set", "budget.strong_tokens=150", "--set", "models.weak.sequences=3", "--set"]
    options += ["models.strong.sequences=3"]
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, "--out", tmp_path, *options], stderr=subprocess.PIPE
    ) as victim:
        while lines(tmp_path / "answers.jsonl") < 60:
            assert victim.poll() is None, victim.stderr and victim.stderr.read().decode()
            time.sleep(0.01)
        os.kill(victim.pid, signal.SIGKILL)
    kept = read_rows(tmp_path / "answers.jsonl")
    assert len(read_rows(tmp_path / "traces.jsonl")) < 10
    assert start(tmp_path, *options) == 0
    rows = read_rows(tmp_path / "answers.jsonl")
    assert rows[: len(kept)] == kept
    assert len({row["key"] for row in rows}) == len(rows)
    assert len(world.weak.requests) + len(world.strong.requests) == sum(
        row["role"] != "scorer" for row in rows[len(kept) :]
    )
    assert 0 < sum(row["usage"]["generated_tokens"] for row in rows if row["role"] == "strong") <= 150
    assert len(read_rows(tmp_path / "traces.jsonl")) == 10


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_ctrl_c_leaves_a_page_of_what_was_done_and_the_same_command_goes_on(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = world.weak._script
    first = next(iter(world.made))

    def interrupted(problem: Problem, prefix: tuple[str, ...], seed: int) -> object:
        if len(prefix) == 2:
            raise KeyboardInterrupt
        return "So \\boxed{1}." if problem.id == first else step(problem, prefix, seed)

    monkeypatch.setattr(world.weak, "_script", interrupted)
    assert start(tmp_path, "--n", "10", "--set", "routing.policy=never") == 130
    assert [t.problem.id for t in read_rows(tmp_path / "traces.jsonl", Trace)] == [first]
    assert "interrupted" in (tmp_path / "report.html").read_text()
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["n"] == 1  # the open ones are shown, not counted
    monkeypatch.setattr(world.weak, "_script", step)
    assert start(tmp_path, "--n", "10", "--set", "routing.policy=never") == 0
    assert len(read_rows(tmp_path / "traces.jsonl", Trace)) == 10


def test_ctrl_c_before_any_solution_is_finished_leaves_a_page_of_the_open_ones(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = world.weak._script

    def interrupted(problem: Problem, prefix: tuple[str, ...], seed: int) -> object:
        if len(prefix) == 1:
            raise KeyboardInterrupt
        return step(problem, prefix, seed)

    monkeypatch.setattr(world.weak, "_script", interrupted)
    assert start(tmp_path, "--n", "10", "--set", "routing.policy=never") == 130
    assert next(iter(world.made)) in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_problems_that_ended_in_an_error_are_tried_again_and_no_others(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = world.weak._script
    first = next(iter(world.made))

    def failing(problem: Problem, prefix: tuple[str, ...], seed: int) -> object:
        return Line("", finish="error", error="no answer") if problem.id == first else step(problem, prefix, seed)

    monkeypatch.setattr(world.weak, "_script", failing)
    assert start(tmp_path, "--n", "10", "--set", "routing.policy=never") == 0
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["finish"] == {"error": 1, "answer": 9}
    monkeypatch.setattr(world.weak, "_script", step)
    asked = len(world.weak.requests)
    assert start(tmp_path, "--n", "10", "--set", "routing.policy=never") == 0
    assert {request.problem.id for request in world.weak.requests[asked:]} == {first}
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["finish"] == {"answer": 10}


def test_a_cap_counts_what_was_spent_before_the_interruption(world: LabWorld, tmp_path: Path) -> None:
    options = ["--n", "10", "--set", "routing.policy=always", "--set", "sampling.max_step_tokens=64"]
    cap = "budget.strong_tokens=300"
    assert start(tmp_path, *options, "--set", cap) == 0
    first = read_rows(tmp_path / "traces.jsonl", Trace)
    spent = cost_of(first).strong_tokens
    assert 300 - 64 < spent <= 300
    kept = first[:4]
    (tmp_path / "traces.jsonl").unlink()
    append_rows(tmp_path / "traces.jsonl", kept)
    assert start(tmp_path, *options, "--set", cap) == 0
    assert cost_of(read_rows(tmp_path / "traces.jsonl", Trace)).strong_tokens <= 300


def test_a_cap_counts_what_ctrl_c_left_unfinished(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = world.strong._script

    def interrupted(problem: Problem, prefix: tuple[str, ...], seed: int) -> object:
        if len(prefix) == 2:
            raise KeyboardInterrupt
        return step(problem, prefix, seed)

    caps = ["budget.strong_tokens=400", "budget.problem.strong_tokens=100"]
    options = ["--n", "6", "--set", "routing.policy=always", "--set", "sampling.max_step_tokens=64"]
    options += [word for cap in caps for word in ("--set", cap)]
    monkeypatch.setattr(world.strong, "_script", interrupted)
    assert start(tmp_path, *options) == 130
    lost = CallCache(tmp_path / "answers.jsonl")
    assert lost.spent()["strong"].generated_tokens > 0
    lost.close()
    monkeypatch.setattr(world.strong, "_script", step)
    assert start(tmp_path, *options) == 0
    done = read_rows(tmp_path / "traces.jsonl", Trace)
    assert len(done) == 6
    with CallCache(tmp_path / "answers.jsonl") as everything:
        assert everything.spent()["strong"].generated_tokens == cost_of(done).strong_tokens <= 400
    assert max(cost_of([trace]).strong_tokens for trace in done) <= 100
