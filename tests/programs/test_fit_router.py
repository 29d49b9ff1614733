"""The program that fits the routing model: labelled lab traces made on the spot, files of traces, wrong input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from programs import fit_router, route
from stepwise.io import append_rows, read_rows
from stepwise.routing.pomdp.fit import RouterFit
from stepwise.routing.pomdp.fit_data import from_lab_trace, from_trace
from stepwise.types import Problem, Step, Trace, Usage
from tests.routing.lab_world import LabWorld


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> LabWorld:
    made = LabWorld(150, split="train")
    made.install(monkeypatch)
    return made


@pytest.fixture(scope="module")
def lab_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run on 150 lab problems, only to be read."""
    out = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        LabWorld(150, split="train").install(patch)
        assert start(out, "--lab", 150, "--bins", 6) == 0
    return out


def start(out: Path, *arguments: object) -> int:
    return fit_router.main(["--out", str(out), *map(str, arguments)])


def fault(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_lab_traces_are_made_labelled_scored_and_fitted(lab_run: Path) -> None:
    fit = RouterFit.load(lab_run / "fit.json")
    assert 0.76 < fit.p_weak < 0.86  # three in four steps, but the last one of a solution is always right
    assert fit.p_strong == (1.0,)
    assert fit.card.intervals["p_strong"].low < 1.0
    assert (fit.card.weak, fit.card.scorer) == ("llamacpp/lab-weak", "llamacpp/lab-scorer")
    assert (fit.card.traces, fit.card.problems, fit.card.labels) == (300, 150, "lab")
    assert fit.card.held_out.log_likelihood > fit.card.held_out.without_scores
    assert fit.pomdp().solve(0.1).gap < 0.01
    svg = ElementTree.parse(lab_run / "calibration.svg").getroot()
    assert len(svg.findall(".//{http://www.w3.org/2000/svg}circle")) == len(fit.card.held_out.calibration)
    traces = read_rows(lab_run / "traces_random.jsonl", Trace)
    assert all(step.score is not None for trace in traces for step in trace.steps)


def test_problems_of_a_file_are_solved_and_scored_and_labels_may_come_later(
    world: LabWorld, tmp_path: Path, capsys
) -> None:
    append_rows(tmp_path / "problems.jsonl", world.problems)
    asked = ["--problems", tmp_path / "problems.jsonl", "--bins", 6]
    assert start(tmp_path / "fit", *asked) == 2
    assert "--problems needs --recovery" in fault(capsys)
    assert not (tmp_path / "fit" / "traces_never.jsonl").exists()
    assert start(tmp_path / "fit", *asked, "--recovery", 0.0, "--overwrite") == 2
    assert "without labels the laws of wrong steps cannot be told" in fault(capsys)
    files = [tmp_path / "fit" / f"traces_{name}.jsonl" for name in ("never", "random")]
    assert start(tmp_path / "later", "--traces", *files, "--labels", "lab", "--bins", 6) == 0
    assert RouterFit.load(tmp_path / "later" / "fit.json").card.traces == 300


def test_a_killed_collection_goes_on_and_fits_the_same(world: LabWorld, lab_run: Path, tmp_path: Path, capsys) -> None:
    killed = shutil.copytree(lab_run, tmp_path / "killed")
    rows = (killed / "traces_never.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "traces_never.jsonl").write_bytes(b"".join(rows[:140]) + rows[140][:50])
    assert start(killed, "--lab", 150, "--bins", 6) == 0
    assert len({request.problem.id for request in world.weak.requests}) == 10
    assert "chance of a right draft after right steps" in capsys.readouterr().out
    whole, again = (RouterFit.load(out / "fit.json") for out in (lab_run, killed))
    assert again.p_weak == whole.p_weak
    assert again.law == whole.law


def test_drafts_that_a_policy_threw_away_count_where_the_checker_labels_them(
    world: LabWorld, tmp_path: Path, capsys
) -> None:
    assert route.main(["--out", str(tmp_path / "run"), "--split", "train", "--n", "150"]) == 0
    traces = read_rows(tmp_path / "run" / "traces.jsonl", Trace)
    assert any(step.discarded for trace in traces for step in trace.steps)
    assert start(tmp_path / "fit", "--traces", tmp_path / "run" / "traces.jsonl", "--labels", "lab", "--bins", 4) == 2
    assert "drafts wrong earlier: " in fault(capsys)  # a threshold mends most errors, so few steps come after one
    found = [from_lab_trace(trace) for trace in traces]
    drafts = [step for trace in found for step in trace.steps if step.replaced]
    assert drafts
    assert all(step.drafted and step.score is not None and step.draft_right is not None for step in drafts)
    right = [s.draft_right for t in found for z, s in zip(t.states, t.steps, strict=True) if s.drafted and z != 1]
    assert 0.76 < sum(right) / len(right) < 0.86
    kept = [s.draft_right for t in found for z, s in zip(t.states, t.steps, strict=True) if not s.replaced and z != 1]
    assert sum(kept) / len(kept) > sum(right) / len(right) + 0.05  # why drafts thrown away must count


def rows_with_labels(n: int, *, scores: bool = True) -> list[dict]:
    rows = []
    for i in range(n):
        label = i % 5 - 1
        steps = [f"step {t}" for t in range(6)]
        values = [0.8 - 0.5 * (0 <= label <= t) + 0.1 * ((i * 7 + t * 3) % 5 - 2) / 2 for t in range(6)]
        row = {"problem": f"q{i}", "steps": steps, "label": label, "final_answer_correct": label < 0}
        rows.append({**row, "scores": {"mine": values}} if scores else row)
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_in_processbench_columns_are_fitted_with_what_they_do_not_say_given(tmp_path: Path, capsys) -> None:
    data = write(tmp_path / "rows.jsonl", rows_with_labels(150))
    known = ("--p-strong", 0.95, "--tokens-per-step", 40, "--bins", 4)
    assert start(tmp_path / "a", "--traces", data, "--labels", "column", "--prm", "mine", *known) == 0
    found = RouterFit.load(tmp_path / "a" / "fit.json")
    assert (found.p_strong, found.tokens_per_step, found.card.scorer) == ((0.95,), 40.0, "mine")
    assert "p_strong" not in found.card.intervals
    assert found.p_weak == pytest.approx((30 * 6 + 30 * (0 + 1 + 2 + 3)) / (30 * 6 + 30 * (1 + 2 + 3 + 4)))
    assert start(tmp_path / "b", "--traces", data, "--labels", "column", *known) == 2
    assert "holds those of 'mine', not of None" in fault(capsys)
    assert start(tmp_path / "c", "--traces", data, "--labels", "column", "--prm", "mine", "--p-strong", 0.9) == 2
    assert "give tokens_per_step" in fault(capsys)


def test_what_is_wrong_with_a_file_is_said_with_its_row(tmp_path: Path, capsys) -> None:
    rows = rows_with_labels(60)
    rows[3]["scores"]["mine"][2] = float("nan")
    data = write(tmp_path / "nan.jsonl", rows)
    assert start(tmp_path / "a", "--traces", data, "--labels", "column", "--prm", "mine") == 2
    assert "row 4, scores[2]: the score is nan" in fault(capsys)
    rows[3]["scores"]["mine"][2] = None
    assert start(tmp_path / "a", "--traces", write(data, rows), "--labels", "column", "--prm", "mine") == 2
    assert "row 4, scores[2]: the score is None" in fault(capsys)
    few = write(tmp_path / "few.jsonl", rows_with_labels(20))
    assert start(tmp_path / "b", "--traces", few, "--labels", "column", "--prm", "mine", "--p-strong", 0.9) == 2
    assert "drafts wrong just now: 16 of 50, 34 missing" in fault(capsys)
    bare = write(tmp_path / "bare.jsonl", rows_with_labels(20, scores=False))
    assert start(tmp_path / "c", "--traces", bare, "--labels", "column") == 2
    assert "no scores for 6 steps" in fault(capsys)
    assert start(tmp_path / "d", "--traces", tmp_path / "none.jsonl", "--labels", "column") == 2
    assert "no such file" in fault(capsys)
    assert start(tmp_path / "e", "--traces", few) == 2
    assert "--traces needs --labels" in fault(capsys)


def test_routed_traces_with_a_label_column_are_scored_where_asked(world: LabWorld, tmp_path: Path, capsys) -> None:
    constant = ("--score", "--set", "scorer.kind=constant")
    assert route.main(["--out", str(tmp_path / "run"), "--split", "train", "--n", "150", *_policy("random")]) == 0
    rows = read_rows(tmp_path / "run" / "traces.jsonl")
    for row in rows:
        texts = [step["text"] for step in row["steps"]]
        first = world.made[row["problem"]["id"]].first_error(texts)
        row["label"] = -1 if first is None else first
    data = write(tmp_path / "labelled.jsonl", rows)
    assert start(tmp_path / "a", "--traces", data, "--labels", "column", "--bins", 4) == 2
    assert "have no score" in fault(capsys)
    assert start(tmp_path / "b", "--traces", data, "--labels", "column", "--bins", 4, *constant) == 0
    found = RouterFit.load(tmp_path / "b" / "fit.json")
    assert 0.76 < found.p_weak < 0.86
    assert found.card.strong_steps > 30
    rows[0]["label"] = 99
    assert start(tmp_path / "c", "--traces", write(data, rows), "--labels", "column", *constant) == 2
    assert "row 1, field label: 99" in fault(capsys)
    assert start(tmp_path / "d", "--traces", data, "--labels", "none", *constant) == 2
    assert "give recovery" in fault(capsys)


def test_a_label_of_the_first_error_does_not_do_for_traces_with_drafts_thrown_away() -> None:
    draft = Step("bad", "weak", 0.1)
    trace = Trace(Problem("p", "q"), (Step("good", "strong", discarded=(draft,)), Step("on", "weak", 0.9)), "answer")
    with pytest.raises(ValueError, match=r"drafts thrown away.*label traces of the policies never, always or random"):
        from_trace(trace, first_error=None, labelled=True)
    assert from_trace(trace).steps[0].score == 0.1
    empty = dataclasses.replace(trace, steps=(Step("good", "strong", discarded=(Step("", "weak"),)),))
    assert from_trace(empty).steps[0].score == 0.0
    with pytest.raises(ValueError, match=r"none of the lab's own.*--labels column"):
        from_lab_trace(trace)


def test_tokens_and_ends_are_taken_from_the_traces() -> None:
    steps = (Step("a", "weak", 0.5, Usage("m", 1, 0, 0, 12)), Step("b", "strong", usage=Usage("s", 1, 0, 0, 30)))
    trace = Trace(Problem("p", "q"), steps, "length")
    found = from_trace(trace, first_error=1, labelled=True)
    assert [step.tokens for step in found.steps] == [12, 30]
    assert (found.ended, found.first_error, found.states) == (False, 1, (0, 2))
    assert from_trace(dataclasses.replace(trace, finish="answer")).ended


def test_a_dry_run_says_what_would_be_asked_of_all_three_models(tmp_path: Path, capsys) -> None:
    assert start(tmp_path, "--lab", 10, "--dry-run") == 0
    out = capsys.readouterr().out
    assert all(role in out for role in ("weak", "strong", "scorer"))


def _policy(name: str) -> tuple[str, str]:
    return "--set", f"routing.policy={name}"


def test_rows_of_the_program_are_traces_that_other_programs_read(lab_run: Path, tmp_path: Path) -> None:
    merged = tmp_path / "all.jsonl"
    for name in ("never", "random"):
        append_rows(merged, read_rows(lab_run / f"traces_{name}.jsonl", Trace))
    assert start(tmp_path / "again", "--traces", merged, "--labels", "lab", "--bins", 6) == 0
    first, second = (RouterFit.load(out / "fit.json") for out in (lab_run, tmp_path / "again"))
    assert first.p_weak == second.p_weak
