"""The worker processes: killed, replaced, shared, and gone when their parent is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stepwise.errors import GradingError
from stepwise.grading import Verdict, grade
from stepwise.grading.pool import WorkerDied, WorkerTimeout, _Pool, shared_pool
from stepwise.grading.worker import _answer

HANG = {"prediction": r"\int_0^1 \frac{\sin(x^x)}{\ln(1+x^3)} dx", "gold": r"\sqrt{2}", "shortcut": True}
EASY = {"prediction": "x+x", "gold": "2x", "shortcut": True}
PATIENCE = 120.0

SCRIPT = r"""
import os, sys, threading, time
from stepwise.grading import grade
from stepwise.grading.pool import shared_pool
print(grade("x+x", "2x"), *shared_pool().pids, flush=True)
"""


@pytest.fixture(scope="module")
def pool_of_the_file():
    pool = _Pool(2)
    yield pool
    pool.close()


@pytest.fixture
def pool(pool_of_the_file):
    """A pool of two with one worker, which is idle: starting one takes a second."""
    if len(pool_of_the_file.pids) != 1:
        pool_of_the_file.close()
    pool_of_the_file.ask(EASY, 60)
    return pool_of_the_file


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie (an orphan may wait for an init process that never reaps)."""
    status = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return status.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def start_script(code: str, path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Run `code` as a script without a main guard; its first line is a verdict and the workers' process ids."""
    path.write_text(SCRIPT + code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
    verdict, *pids = process.stdout.readline().split()
    assert verdict == "CORRECT"
    assert pids
    return process, [int(pid) for pid in pids]


def test_a_worker_answers_many_requests(pool):
    assert [pool.ask(EASY, 60)["equal"] for _ in range(5)] == [True] * 5
    assert len(pool.pids) == 1


def test_a_worker_that_takes_too_long_is_killed_at_once_and_replaced(pool):
    pool.ask(EASY, 60)
    (pid,) = pool.pids
    with pytest.raises(WorkerTimeout):
        pool.ask(HANG, 0.5)
    assert not runs(pid)
    assert pool.ask(EASY, 60)["equal"]
    assert pool.pids != [pid]


def test_a_request_whose_workers_are_killed_twice_fails_alone(pool):
    failures = []

    def ask():
        try:
            pool.ask(HANG, PATIENCE)
        except WorkerDied as error:
            failures.append(error)

    def kill_what_works() -> bool:
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        thread.join(0.2)
        return not thread.is_alive()

    thread = threading.Thread(target=ask)
    thread.start()
    assert wait_until(kill_what_works)
    assert len(failures) == 1
    assert pool.ask(EASY, 60)["equal"]


def test_a_worker_that_is_killed_once_while_it_works_costs_nothing(pool):
    replies = []
    slow = {"prediction": r"(x+1)^{12}", "gold": r"(x+1)^{12}+0*x", "shortcut": False}
    pool.ask(EASY, 60)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)  # so that it is at work when it dies
    thread = threading.Thread(target=lambda: replies.append(pool.ask(slow, PATIENCE)))
    thread.start()
    assert wait_until(lambda: not pool._idle)
    os.kill(pid, signal.SIGKILL)
    thread.join(PATIENCE)
    assert [reply["equal"] for reply in replies] == [True]
    assert pid not in pool.pids


def test_a_worker_that_was_killed_while_it_was_idle_costs_nothing(pool):
    pool.ask(EASY, 60)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not runs(pid))
    assert pool.ask(EASY, 60)["equal"]
    assert len(pool.pids) == 1


def test_the_verdict_of_a_worker_that_dies_is_error():
    grade("x+x+x", "3x")
    verdicts = []
    busy = threading.Thread(target=lambda: verdicts.append(grade(HANG["prediction"], "z", timeout=PATIENCE)))
    busy.start()
    shared = shared_pool()

    def kill_the_busy_one() -> bool:
        idle = {worker.process.pid for worker in shared._idle}
        for pid in set(shared.pids) - idle:
            os.kill(pid, signal.SIGKILL)
        busy.join(0.2)
        return not busy.is_alive()

    assert wait_until(kill_the_busy_one)
    assert verdicts == [Verdict.ERROR]
    assert grade("x+x+x+x", "4x") is Verdict.CORRECT


def test_concurrent_callers_each_get_a_free_worker_and_one_that_hangs_holds_up_nobody(pool):
    with ThreadPoolExecutor(9) as threads:
        hanging = threads.submit(pool.ask, HANG, PATIENCE)
        replies = list(threads.map(lambda _: pool.ask(EASY, 60)["equal"], range(8)))
        assert replies == [True] * 8
        assert not hanging.done()
        assert wait_until(lambda: len(pool.pids) == len(pool._idle) + 1)  # the one that hangs may come late
        pool.close()
        assert isinstance(hanging.exception(PATIENCE), WorkerDied)


def test_a_closed_pool_has_no_processes_and_starts_again_when_needed(pool):
    pool.ask(EASY, 60)
    (pid,) = pool.pids
    pool.close()
    assert not runs(pid)
    assert pool.pids == []
    assert pool.ask(EASY, 60)["equal"]


def test_an_interrupted_caller_does_not_leave_a_busy_worker_behind(pool, monkeypatch):
    pool.ask(EASY, 60)
    (pid,) = pool.pids
    worker = pool._idle[0]

    def interrupted(timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.ask(HANG, 60)
    assert not runs(pid)
    assert pool.ask(EASY, 60)["equal"]


def test_a_worker_that_cannot_start_is_an_error_that_says_what_to_try(pool, monkeypatch):
    pool.close()
    monkeypatch.setattr(sys, "executable", "/bin/false" if os.path.exists("/bin/false") else "/usr/bin/false")
    with pytest.raises(GradingError, match=r"stepwise\.grading\.worker"):
        pool.ask(EASY, 60)
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(GradingError, match=r"sys\.executable is empty"):
        pool.ask(EASY, 60)


def test_a_script_without_a_main_guard_works_and_leaves_no_worker_behind(tmp_path):
    process, pids = start_script("", tmp_path / "script.py")
    assert process.wait(PATIENCE) == 0
    assert process.stdout.read() == ""
    assert wait_until(lambda: not any(runs(pid) for pid in pids))


def test_a_file_in_the_working_directory_cannot_stand_in_for_a_package(tmp_path):
    (tmp_path / "sympy.py").write_text("raise RuntimeError")
    (tmp_path / "json.py").write_text("raise RuntimeError")
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "script.py"
    path.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.startswith("CORRECT"), result.stderr


def test_workers_end_when_their_parent_is_killed(tmp_path):
    process, pids = start_script("time.sleep(600)", tmp_path / "script.py")
    process.kill()
    process.wait()
    assert wait_until(lambda: not any(runs(pid) for pid in pids))


def test_a_busy_worker_ends_soon_after_its_parent_was_killed(tmp_path):
    code = f"""
from stepwise.grading.pool import _Worker
worker = _Worker(grace=0.5)
threading.Thread(target=lambda: worker.ask({HANG!r}, 1.5)).start()
time.sleep(0.2)
print(worker.process.pid, flush=True)
time.sleep(600)
"""
    process, pids = start_script(code, tmp_path / "script.py")
    busy = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert wait_until(lambda: not any(runs(pid) for pid in [busy, *pids]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_parent_and_forked_child_both_grade_with_workers_of_their_own(tmp_path):
    code = r"""
child = os.fork()
verdicts = [grade(f"x+{n}x", f"{n + 1}x") for n in range(2, 12)]
mine = shared_pool().pids
if child == 0:
    print("child", set(verdicts) == {"CORRECT"}, *mine, flush=True)
    sys.exit(0)
os.waitpid(child, 0)
again = grade("y+y", "2y")
print("parent", set([*verdicts, again]) == {"CORRECT"}, *mine, flush=True)
"""
    process, _ = start_script(code, tmp_path / "script.py")
    lines = [process.stdout.readline().split() for _ in range(2)]
    assert process.wait(PATIENCE) == 0
    workers = {name: set(pids) for name, _, *pids in lines}
    assert [line[:2] for line in lines] == [["child", "True"], ["parent", "True"]]
    assert workers["child"]
    assert not workers["child"] & workers["parent"]


def test_it_grades_in_the_threads_of_dspy_evaluate():
    dspy = pytest.importorskip("dspy")

    class Doubler(dspy.Module):
        def forward(self, x):
            return dspy.Prediction(answer=f"{x}+{x}")

    examples = [dspy.Example(x=f"{n}z", gold=f"{2 * n}z").with_inputs("x") for n in range(1, 13)]

    def metric(example, prediction, trace=None):
        assert threading.current_thread() is not threading.main_thread()
        return grade(prediction.answer, example.gold) is Verdict.CORRECT

    result = dspy.Evaluate(devset=examples, metric=metric, num_threads=4, display_progress=False)(Doubler())
    assert result.score == 100.0


def test_what_math_verify_raises_past_except_exception_is_still_a_reply():
    from math_verify.errors import TimeoutException

    assert not issubclass(TimeoutException, Exception)

    def late(prediction, gold):
        raise TimeoutException("Operation timed out!")

    def broken(prediction, gold):
        raise ZeroDivisionError("deep inside")

    assert _answer(EASY, late) == {"timeout": "Operation timed out!"}
    assert _answer(EASY, broken) == {"error": "ZeroDivisionError: deep inside"}
