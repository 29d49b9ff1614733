"""The route program: problem files, going on after a kill, caps over starts, dry run."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from programs import route
from stepwise.call_cache import CallCache
from stepwise.jsonl import append_rows, read_rows
from stepwise.routing import Never, Random, Threshold
from stepwise.routing.metrics import cost_of
from stepwise.routing.saved import PolicyCard, load_policy, save_policy
from stepwise.types import Problem, Trace
from tests.fakes import Line
from tests.routing.lab_world import LabWorld


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> LabWorld:
    made = LabWorld(10)
    made.install(monkeypatch)
    return made


def start(out: Path, *arguments: str) -> int:
    return route.main(["--out", str(out), *arguments])


def test_a_split_is_routed_counted_and_shown(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "--n", "10", "--show", "1", "--set", "routing.threshold=0.6") == 0
    traces = read_rows(tmp_path / "traces.jsonl", Trace)
    assert {t.problem.id for t in traces} == set(world.made)
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["policy"] == "Threshold 0.60"
    assert row["strong_tokens"] == cost_of(traces).strong_tokens
    assert row["finish"] == {"answer": 10}
    out = capsys.readouterr().out
    assert "Threshold 0.60" in out
    assert "strong (scripted-strong)" in out
    assert (tmp_path / "report.html").exists()


def test_problems_come_from_a_file(world: LabWorld, tmp_path: Path) -> None:
    append_rows(tmp_path / "mine.jsonl", world.problems[:3])
    without_line_end = (tmp_path / "mine.jsonl").read_bytes().rstrip()
    (tmp_path / "mine.jsonl").write_bytes(without_line_end)
    assert start(tmp_path / "out", "--problems", str(tmp_path / "mine.jsonl"), "--n", "3") == 0
    assert len(read_rows(tmp_path / "out" / "traces.jsonl")) == 3


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


def test_a_gold_answer_that_cannot_be_graded_is_refused_before_anything_is_spent(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append_rows(tmp_path / "mine.jsonl", [Problem("bad", "What is it?", "\\frac{1}{")])
    assert start(tmp_path / "out", "--problems", str(tmp_path / "mine.jsonl")) == 2
    assert "bad" in capsys.readouterr().err
    assert world.weak.requests == []


@pytest.mark.parametrize("n", ["0", "-3", "many"])
def test_the_number_of_problems_must_be_at_least_one(n: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        route.main(["--n", n])
    assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "no such file"),
        ([], "holds no problems"),
        ([Problem("a", "?"), Problem("a", "!")], "occurs twice"),
        ([{"id": "a", "question": "?", "anwser": "4"}], "line 1"),
    ],
)
def test_a_wrong_problem_file_is_one_line_that_says_why(
    rows: list[object] | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    if rows is not None:
        path.touch()
        append_rows(path, rows)
    assert start(tmp_path / "out", "--problems", str(path)) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_says_what_it_would_spend_and_asks_no_model(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path / "out", "--n", "7", "--dry-run", "--set", "routing.policy=always") == 0
    out = capsys.readouterr().out
    assert "strong" in out
    assert f"{7 * 30:,}" in out
    assert world.strong.requests == []


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_problems_come_from_a_pipe_and_json_goes_to_one(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "\n".join(json.dumps(dataclasses.asdict(problem)) for problem in world.problems[:3])
    for _ in range(2):  # the second start tells what the first one did
        piped(monkeypatch, rows)
        assert start(tmp_path, "--problems", "-", "--json", "--set", "routing.threshold=0.7") == 0
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {row["id"] for row in said[:-1]} == {problem.id for problem in world.problems[:3]}
        assert {step["author"] for row in said[:-1] for step in row["steps"]} == {"weak", "strong"}
        totals = said[-1]["totals"]
        assert totals["n"] == 3
        assert totals["strong_tokens"] == sum(row["strong_tokens"] for row in said[:-1])
        assert totals["estimated_savings"]["strong_only_tokens"] > totals["strong_tokens"]
    piped(monkeypatch, "")
    assert start(tmp_path / "none", "--problems", "-") == 2


def test_a_question_as_plain_text_is_a_problem(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(world.weak, "_script", lambda *_: "It is \\boxed{7}.")
    piped(monkeypatch, "How many apples\nare 3 + 4?\n")
    assert start(tmp_path, "--problems", "-", "--json", "--set", "routing.policy=never") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["answer"] == "7"
    (trace,) = read_rows(tmp_path / "traces.jsonl", Trace)
    assert trace.problem.question == "How many apples\nare 3 + 4?"


def test_streaming_shows_who_writes_each_step_before_the_next_problem_is_begun(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    step = world.weak._script

    def watching(problem: Problem, prefix: tuple[str, ...], seed: int) -> object:
        seen.append(capsys.readouterr().out)
        assert not prefix or prefix[-1].split()[0] in seen[-1]  # the step before is on the screen
        return step(problem, prefix, seed)

    monkeypatch.setattr(world.weak, "_script", watching)
    assert start(tmp_path, "--n", "3", "--stream", "--set", "routing.threshold=0.7") == 0
    out = "".join(seen) + capsys.readouterr().out
    places = [out.index(problem.id) for problem in world.problems[:3]]
    assert places == sorted(places)
    traces = read_rows(tmp_path / "traces.jsonl", Trace)
    assert out.count(" S  strong  step ") == sum(s.author == "strong" for t in traces for s in t.steps) > 0
    assert out.count(" W  weak  step ") == sum(s.author == "weak" for t in traces for s in t.steps)
    assert out.count("finish: answer") == 3


def test_a_saved_policy_is_used_at_its_operating_point_or_another(world: LabWorld, tmp_path: Path) -> None:
    save_policy(tmp_path / "p.json", Threshold(0.6))
    assert start(tmp_path / "a", "--n", "2", "--policy", str(tmp_path / "p.json")) == 0
    assert start(tmp_path / "b", "--n", "2", "--policy", str(tmp_path / "p.json"), "--at", "0.3") == 0
    assert [load_policy(tmp_path / out / "policy.json").policy for out in "ab"] == [Threshold(0.6), Threshold(0.3)]
    assert read_rows(tmp_path / "b" / "metrics.jsonl")[-1]["policy"] == "Threshold 0.30"


def test_a_policy_that_was_set_for_another_pair_is_refused_unless_forced(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "out", tmp_path / "p.json"
    save_policy(path, Random(0.5), PolicyCard("scripted-weak", "another", None, "0"))
    assert start(out, "--n", "2", "--policy", str(path)) == 2
    assert "another" in capsys.readouterr().err
    assert world.weak.requests == []
    assert not out.exists()
    assert start(out, "--n", "2", "--policy", str(path), "--force") == 0


def test_a_run_does_not_go_on_with_another_policy_than_it_began_with(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "out", tmp_path / "p.json"
    save_policy(path, Threshold(0.5))
    assert start(out, "--n", "2", "--policy", str(path)) == 0
    save_policy(path, Threshold(0.6))
    assert start(out, "--n", "2", "--policy", str(path)) == 2
    assert "another policy" in capsys.readouterr().err
    assert start(out, "--n", "2", "--policy", str(path), "--overwrite") == 0


@pytest.mark.parametrize(("policy", "at"), [(Never(), "0.5"), (Random(0.2), "1.5")])
def test_an_operating_point_that_there_is_not_is_refused(
    policy: object, at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "p.json", policy)  # type: ignore[arg-type]
    assert start(tmp_path / "out", "--policy", str(tmp_path / "p.json"), "--at", at) == 2
    assert f"--at is {at}" in capsys.readouterr().err


def test_the_plan_of_a_fit_is_used_and_refused_for_other_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from programs import fit_router

    LabWorld(60, split="train").install(monkeypatch)
    assert fit_router.main(["--out", str(tmp_path / "fit"), "--lab", "60", "--bins", "4"]) == 0
    path = tmp_path / "fit" / "fit.json"
    options = ["--split", "train", "--n", "4", "--policy", str(path), "--at", "0.1"]
    assert start(tmp_path / "out", *options) == 0
    assert load_policy(tmp_path / "out" / "policy.json").policy.point == 0.1
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "card": {**row["card"], "strong": "another"}}))
    assert start(tmp_path / "other", *options) == 2
    assert "the fit is for the strong model 'another'" in capsys.readouterr().err
