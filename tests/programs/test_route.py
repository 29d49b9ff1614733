"""The route program: problem files, going on after a kill, caps over starts, dry run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from programs import route
from stepwise.jsonl import append_rows, read_rows
from stepwise.routing.metrics import cost_of
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


def test_a_killed_run_goes_on_where_it_was_and_gives_the_same_traces(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, "--n", "10") == 0
    assert start(killed, "--n", "10") == 0
    lines = (killed / "traces.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "traces.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][: len(lines[6]) // 2])  # as kill -9 leaves it
    asked = len(world.weak.requests)
    assert start(killed, "--n", "10") == 0
    fresh = {request.problem.id for request in world.weak.requests[asked:]}
    assert fresh == {json.loads(line)["problem"]["id"] for line in lines[6:]}

    def steps(out: Path) -> dict[str, list[str]]:
        return {t.problem.id: [s.text for s in t.steps] for t in read_rows(out / "traces.jsonl", Trace)}

    assert steps(killed) == steps(whole)


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
    lost = read_rows(tmp_path / "interrupted.jsonl", Trace)
    assert cost_of(lost).strong_tokens > 0
    monkeypatch.setattr(world.strong, "_script", step)
    assert start(tmp_path, *options) == 0
    done = read_rows(tmp_path / "traces.jsonl", Trace)
    assert len(done) == 6
    assert cost_of([*done, *lost]).strong_tokens <= 400
    for trace in done:
        assert cost_of([t for t in [*done, *lost] if t.problem == trace.problem]).strong_tokens <= 100


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
