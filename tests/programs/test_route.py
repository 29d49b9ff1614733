"""The route program: problem files, pipes, saved policies, dry run."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest

from programs import route
from stepwise.io import append_rows, read_rows
from stepwise.routing import Never, Random, Threshold
from stepwise.routing.metrics import cost_of
from stepwise.routing.names import ModelNames
from stepwise.routing.saved import load_policy, save_policy
from stepwise.types import Problem, Trace
from tests.fakes import Line
from tests.routing.lab_world import LabWorld
from tests.scorers.stand_in import Answer, serving


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


def test_what_a_cap_kept_from_the_strong_model_is_said(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caps = ["--set", "budget.strong_tokens=30", "--set", "routing.threshold=0.6"]
    assert start(tmp_path, "--n", "10", *caps) == 0
    traces = read_rows(tmp_path / "traces.jsonl", Trace)
    assert 0 < cost_of(traces).strong_tokens <= 30
    kept = [trace for trace in traces if "kept weak" in trace.note]
    out = " ".join(capsys.readouterr().out.split())
    assert kept
    assert all(trace.finish == "capped" or trace.answer is None for trace in kept)
    assert f"Threshold 0.60: {len(kept)} of 10 solutions have met a cap, such as: kept weak at step" in out
    assert "have met a cap, such as: kept weak at step" in (tmp_path / "report.html").read_text()
    assert "requests refused by budget.strong_tokens:" in out


def test_lab_says_how_many_as_in_the_other_programs_and_n_takes_the_first(world: LabWorld, tmp_path: Path) -> None:
    for number, options in enumerate((["--lab", "3"], ["--n", "3"], ["--lab", "5", "--n", "3"])):
        assert start(tmp_path / f"{number}", *options) == 0
        assert len(read_rows(tmp_path / f"{number}" / "traces.jsonl")) == 3
    assert start(tmp_path / "both", "--lab", "3", "--problems", "x.jsonl") != 0


def test_problems_come_from_a_file(world: LabWorld, tmp_path: Path) -> None:
    append_rows(tmp_path / "mine.jsonl", world.problems[:3])
    without_line_end = (tmp_path / "mine.jsonl").read_bytes().rstrip()
    (tmp_path / "mine.jsonl").write_bytes(without_line_end)
    assert start(tmp_path / "out", "--problems", str(tmp_path / "mine.jsonl"), "--n", "3") == 0
    assert len(read_rows(tmp_path / "out" / "traces.jsonl")) == 3


def test_a_gold_answer_that_cannot_be_graded_is_refused_before_anything_is_spent(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append_rows(tmp_path / "mine.jsonl", [Problem("bad", "What is it?", "\\frac{1}{")])
    assert start(tmp_path / "out", "--problems", str(tmp_path / "mine.jsonl")) == 2
    assert "bad" in capsys.readouterr().err
    assert world.weak.requests == []


@pytest.mark.parametrize("n", ["0", "-3", "many"])
def test_the_number_of_problems_must_be_at_least_one(n: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert route.main(["--n", n]) == 2
    assert f"--n is {n}: it should be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "no such file"),
        ([], "has no rows"),
        ([Problem("a", "?"), Problem("a", "!")], "occurs twice"),
        ([{"id": "a", "question": "?", "anwser": "4"}], "did you mean answer?"),
        ([{"id": "a", "question": "?", "answer": "It is 42"}], "row 1, field answer: 'It is 42' is prose"),
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


def test_a_saved_policy_is_used_at_its_operating_point_or_another(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "p.json", Threshold(0.6))
    assert start(tmp_path / "a", "--n", "2", "--policy", str(tmp_path / "p.json")) == 0
    assert start(tmp_path / "b", "--n", "2", "--policy", str(tmp_path / "p.json"), "--at", "0.3") == 0
    assert "p.json does not say which scorer its policy was set for" in capsys.readouterr().err
    ignored = ("--policy", str(tmp_path / "p.json"), "--set", "routing.threshold=0.2")
    assert start(tmp_path / "c", "--n", "2", *ignored) == 2
    assert "--set routing.threshold=0.2 would do nothing" in capsys.readouterr().err
    assert [load_policy(tmp_path / out / "policy.json").policy for out in "ab"] == [Threshold(0.6), Threshold(0.3)]
    assert read_rows(tmp_path / "b" / "metrics.jsonl")[-1]["policy"] == "Threshold 0.30"


def test_a_policy_that_was_set_for_another_pair_is_refused_unless_forced(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "out", tmp_path / "p.json"
    save_policy(path, Random(0.5), ModelNames("scripted-weak", "another", prompt="0"))
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


def test_a_run_does_not_go_on_with_edited_code_of_a_saved_policy(
    world: LabWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    out, named = tmp_path / "out", ["--policy", str(tmp_path / "p.json"), "--allow-import", "kept_of_mine"]
    (tmp_path / "p.json").write_text(json.dumps({"policy": "kept_of_mine:Kept"}))
    for reason, code in (("a", 0), ("a", 0), ("bc", 2)):
        body = f"def decide(self, view):\n        return sw.Keep({reason!r})"
        (tmp_path / "kept_of_mine.py").write_text(f"import stepwise as sw\nclass Kept(sw.Policy):\n    {body}\n")
        monkeypatch.delitem(sys.modules, "kept_of_mine", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        assert start(out, "--n", "2", *named) == code
    assert "the run began with another code of the policy" in capsys.readouterr().err


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
    assert "the policy is for the strong model 'another'" in capsys.readouterr().err


def test_a_run_in_which_every_problem_failed_is_no_success(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.weak._script = lambda *_: Line(finish="error", error="too long for this model")
    assert start(tmp_path, "--n", "3") == 1
    said = capsys.readouterr()
    assert "all 3 problems failed, for example: " in said.err
    assert "too long for this model" in said.err
    assert "error 3" in said.out
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"


def test_a_key_that_is_refused_stops_the_run_at_its_first_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOOR", "a-secret-for-the-door")

    def refuse(path: str, body: object) -> Answer:
        return Answer({"error": {"message": "bad key a-secret-for-the-door"}}, 401)

    with serving(refuse) as server:
        model = (
            f'{{model = "openai/m", api_base = "{server.url}/v1", api_key_env = "DOOR", '
            'continuation = "prefill", sequences = 2}'
        )
        settings = ["--set", f"models.weak={model}", "--set", "routing.policy=never"]
        assert start(tmp_path, "--n", "40", *settings) == 1
    said = capsys.readouterr()
    assert "401" in said.err
    assert len(server.requests) <= 4, "two in flight, and none after the first was refused"
    bars = ("loading ", "routing: ", "stepwise route: at work for ")  # more of them the slower the machine is
    lines = [line for line in said.err.splitlines() if not line.startswith(bars)]
    assert len(lines) <= 3, said.err
    for text in (said.out, said.err, *(file.read_text() for file in tmp_path.rglob("*") if file.is_file())):
        assert "a-secret-for" not in text


def test_a_terminal_without_unicode_loses_neither_table_nor_page(
    tmp_path: Path, world: LabWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert route.main(["--n", "3", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    buffer = ascii_only.buffer
    assert isinstance(buffer, io.BytesIO)
    assert b"report.html" in buffer.getvalue()
