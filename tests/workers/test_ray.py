"""Runs on a Ray cluster of two nodes give the files of one process, also where workers and a node are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from programs import intervene, label_steps, route
from stepwise.io import read_rows

pytestmark = pytest.mark.slow
LAB = ["--lab", "24", "--chunk", "4"]


def on(cluster: Any, *more: str) -> list[str]:
    settings = ["backend=ray", f"address={cluster.address}", *more]
    return [word for setting in settings for word in ("--set", f"workers.{setting}")]


def chunks(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.glob("chunks/*/*.jsonl"))}


def spent(out: Path) -> list[str]:
    return sorted(str(row) for row in read_rows(out / "spent.jsonl"))


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def meanwhile(act: Callable[[], None], when: Callable[[], bool]) -> threading.Thread:
    def wait() -> None:
        until(when)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def sealed(out: Path) -> int:
    return sum(1 for folder in out.glob("chunks/*") if folder.suffix != ".open")


def worker_pids(class_name: str = "_WorkerActor") -> list[int]:
    """Processes of actors, of whichever node: Ray names them so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(f"ray::{class_name}".encode()):
            found.append(int(folder.name))
    return found


def test_two_workers_write_the_files_of_one_process(cluster: Any, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert route.main([*LAB, "--out", str(one)]) == 0
    assert route.main([*LAB, "--out", str(two), *on(cluster)]) == 0
    assert chunks(one) == chunks(two)
    assert (one / "traces.jsonl").read_bytes() == (two / "traces.jsonl").read_bytes()
    assert spent(one) == spent(two)
    assert {file.name for file in one.iterdir()} <= {file.name for file in two.iterdir()}


def test_a_worker_and_then_a_node_killed_cost_requests_and_no_result(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, many = tmp_path / "one", tmp_path / "two", ["--lab", "120", "--chunk", "4"]
    assert route.main([*many, "--out", str(one)]) == 0

    def two_at_work(but: int = 0) -> list[int]:
        pids = list[int]()
        while len(pids) < 2:
            time.sleep(0.02)
            pids = [pid for pid in worker_pids("_WorkerActor.do") if pid != but]
        return pids

    def kill_both() -> None:
        victim = two_at_work()[0]
        os.kill(victim, signal.SIGKILL)
        two_at_work(but=victim)  # another one has come in its place
        cluster.remove_node(cluster.second, allow_graceful=False)

    killing = meanwhile(kill_both, lambda: sealed(two) >= 1)
    assert route.main([*many, "--out", str(two), *on(cluster)]) == 0
    assert not killing.is_alive(), "the run ended before its node was killed"
    assert capsys.readouterr().err.count("a worker was lost with chunk") == 2
    assert chunks(one) == chunks(two)
    before, after = spent(one), spent(two)
    assert len(after) >= len(before)  # at least once, and counted
    assert set(before) <= set(after)


def test_a_cap_holds_over_all_workers_and_the_books_killed_in_between(cluster: Any, tmp_path: Path) -> None:
    capped = ["--set", "budget.total_tokens=1200"]
    killing = meanwhile(
        lambda: os.kill(worker_pids("_BooksActor")[0], signal.SIGKILL), lambda: sealed(tmp_path / "o") >= 1
    )
    code = route.main([*LAB, *capped, "--out", str(tmp_path / "o"), *on(cluster)])
    killing.join(60)
    tokens = sum(row["usage"].get("generated_tokens", 0) for row in read_rows(tmp_path / "o" / "spent.jsonl"))
    assert 600 < tokens <= 1200
    assert code == 1
    assert sealed(tmp_path / "o") >= 1


def test_labels_and_interventions_are_those_of_one_process(cluster: Any, tmp_path: Path) -> None:
    few = ["--lab", "4", "--chunk", "2"]
    for program, more in (
        (label_steps, ["--attempts", "2"]),
        (intervene, ["--accept", "success", "--rollouts", "2", "--guided", "4"]),
    ):
        one, two = (tmp_path / f"{program.__name__} {name}" for name in ("one", "two"))
        code = program.main([*few, *more, "--out", str(one)])  # of so few no example may come out
        assert program.main([*few, *more, "--out", str(two), *on(cluster)]) == code
        assert chunks(one)
        assert chunks(one) == chunks(two)
        for file in one.glob("*.jsonl"):
            if file.name != "spent.jsonl":
                assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_a_run_that_was_interrupted_goes_on_without_workers(cluster: Any, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert route.main([*LAB, "--out", str(one)]) == 0
    command = [sys.executable, "-m", "stepwise.cli", "route", *LAB, "--out", str(two)]
    with subprocess.Popen(
        [*command, *on(cluster)], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    ) as run:  # fmt: skip
        while sealed(two) < 2:
            assert run.poll() is None, run.stderr and run.stderr.read()
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=120)
    assert run.returncode == 130
    assert "the same command goes on from there" in said
    assert 2 <= sealed(two) < 6
    assert subprocess.run(command, check=False).returncode == 0
    assert chunks(one) == chunks(two)
    assert (one / "traces.jsonl").read_bytes() == (two / "traces.jsonl").read_bytes()
