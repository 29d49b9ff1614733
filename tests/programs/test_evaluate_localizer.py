"""The benchmark on small made files: what it chooses, refuses, counts and takes up again; and on published scores."""

from __future__ import annotations

import json
import random
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from programs.evaluate_localizer import main
from stepwise.critics.asked import attempt_key
from stepwise.data.processbench import from_row
from stepwise.types import Usage
from tests.fakes import ScriptedScorer
from tests.published import write_scores


def row(name: str, label: int, scores=(0.9, 0.9, 0.9), **columns) -> dict:
    steps = [f"Step {i + 1}: {name} is {i}" for i in range(len(scores))]
    own = {"prm": list(scores)}
    return {"id": name, "problem": f"What is {name}?", "steps": steps, "label": label, "scores": own, **columns}


@pytest.fixture
def files(tmp_path):
    """In tune.json 0.35 is the best threshold; at it, test.json has 3 of 4 errors and 2 of 3 right attempts right."""
    tune = [row("t0", 1, (0.9, 0.3, 0.8)), row("t1", 0, (0.3, 0.9, 0.9)), row("t2", -1, (0.4, 0.9, 0.9))]
    test = [
        row("a", 0, (0.1, 0.9, 0.9)),
        row("b", 2, (0.9, 0.9, 0.2)),
        row("c", 1, (0.9, 0.2, 0.1)),
        row("d", 1, (0.2, 0.2, 0.1), final_answer_correct=True),
        row("e", -1),
        row("f", -1),
        row("g", -1, (0.9, 0.9, 0.3)),
    ]
    for name, rows in (("tune", tune), ("test", test)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def measured(folder: Path, *args: str, out: str = "out", **given) -> dict:
    assert main([*args, "--out", str(folder / out)], **given) == 0
    return json.loads((folder / out / "localization.json").read_text())


def refused(capsys, *args: str) -> str:
    assert main([*map(str, args)]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_threshold_is_chosen_on_one_file_and_measured_on_another(files, capsys):
    args = [
        "--data",
        str(files / "test.json"),
        "--tune",
        str(files / "tune.json"),
        "--localizer",
        "scores:prm",
    ]
    (scores,) = measured(files, *args)["rows"]
    assert scores["chosen"] == pytest.approx(0.35)
    assert (scores["wrong"], scores["right"]) == (4, 3)
    assert (scores["acc_err"], scores["acc_cor"]) == (75.0, pytest.approx(100 * 2 / 3))
    assert scores["f1"] == pytest.approx(2 * 75 * (200 / 3) / (75 + 200 / 3))
    assert scores["f1_low"] < scores["f1"] < scores["f1_high"]
    text = capsys.readouterr().out
    assert "scores:prm, threshold 0.350" in text
    assert "50.0 % of the first errors are at step 1 (prior)" in " ".join(text.split())


def test_several_files_are_subsets_with_a_mean(files):
    (files / "other.jsonl").write_text("\n".join(json.dumps(row(f"o{i}", i - 1)) for i in range(4)))
    data = ["--data", str(files / "test.json"), str(files / "other.jsonl"), "--tune", str(files / "tune.json")]
    result = measured(files, *data, "--localizer", "scores:prm")
    assert [r["subset"] for r in result["rows"]] == ["test", "other", "mean"]
    assert result["rows"][2]["f1"] == pytest.approx((result["rows"][0]["f1"] + result["rows"][1]["f1"]) / 2)
    assert result["prior"]["other"]["shares"] == pytest.approx([100 / 3] * 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--localizer", "scores:prm"], "give other rows with --tune FILE"),
        (["--localizer", "oracle"], "there is no such localizer"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_what_cannot_be_done_is_said(files, capsys, more, message):
    assert message in refused(capsys, "--data", files / "test.json", *more, "--out", files / "out")


def test_rows_that_something_was_chosen_on_are_not_measured_on(files, capsys):
    args = ("--localizer", "scores:prm", "--out", files / "out")
    said = refused(capsys, "--data", files / "test.json", "--tune", files / "test.json", *args)
    assert "7 of 7 attempts of test (the first is 'a') are in the tuning split too" in said
    twins = [row("x", 0), *json.loads((files / "test.json").read_text())[:1]]
    (files / "twins.json").write_text(json.dumps(twins))
    assert "1 of 7 attempts" in refused(capsys, "--data", files / "test.json", "--tune", files / "twins.json", *args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "row 2, field label: it is None"),
        ({"label": 3}, "row 2, field label: 3; it must lie in -1..2"),
        ({"steps": [], "label": -1}, "row 2, field steps: it is empty"),
        ({"scores": {"prm": [0.5]}}, "row 2, field scores.prm: 1 scores for 3 steps"),
        ({"scores": {"prm": [0.5, 0.5, 1.5]}}, "row 2, field scores.prm: step 2: the score is 1.5"),
        ({"scores": {"other": []}}, "row 2, field scores: there is no 'prm'; there are other"),
        ({"scores": None}, "row 2, field scores: it is None"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(files, capsys, change, message):
    (files / "bad.json").write_text(json.dumps([row("x", -1), row("y", 1) | change]))
    args = ("--tune", files / "tune.json", "--localizer", "scores:prm", "--out", files / "out")
    assert message in refused(capsys, "--data", files / "bad.json", *args)


def test_files_that_are_not_there_or_are_empty_are_named(files, capsys):
    out = ("--out", files / "out")
    assert "none.json: no such file" in refused(capsys, "--data", files / "none.json", *out)
    (files / "empty.json").write_text("[]")
    assert "holds no rows" in refused(capsys, "--data", files / "empty.json", *out)


def test_a_scorer_is_asked_once_and_what_failed_is_a_counted_miss_that_is_tried_again(files):
    scorer = ScriptedScorer({"Step 1: a is 0": 0.1, "Step 2: t0 is 1": 0.1, "Step 1: t1 is 0": 0.1})
    args = ["--data", str(files / "test.json"), "--tune", str(files / "tune.json"), "--localizer", "scorer"]
    (one,) = measured(files, *args, scorer=lambda _: scorer)["rows"]
    assert (one["acc_err"], one["acc_cor"], one["failed"], one["calls"]) == (25.0, 100.0, 0, 7)
    assert one["prompt_tokens"] > 0
    assert len(scorer.batches) == 1
    path = files / "out" / "scores.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 10
    (failing,) = [line for line in lines if line["key"] == attempt_key(from_row(row("e", -1)))]
    failing |= {"scores": [], "outcome": failing["outcome"] | {"error": "too long"}}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = measured(files, *args, scorer=lambda _: scorer)["rows"][0]
    assert [problem.id for batch in scorer.batches[1:] for problem, _ in batch] == ["e"]
    assert (again["acc_err"], again["acc_cor"]) == (25.0, 100.0)


class Module:
    """Stands in for a module: says of each problem what it is told to, or raises it; stopped at its n-th call."""

    def __init__(self, said: dict, stop: int = 0):
        self.said, self.stop, self.calls = said, stop, []
        self.heard = threading.Event()

    def hear(self, *_):
        """Takes Ctrl-C in the main thread, as Python does where nobody else takes it."""
        self.heard.set()
        raise KeyboardInterrupt

    def __call__(self, problem, steps):
        self.calls.append(problem.id)
        if len(self.calls) == self.stop:
            signal.pthread_kill(
                threading.main_thread().ident, signal.SIGINT
            )  # as Ctrl-C does: it waits for this thread
            assert self.heard.wait(60)
        assert steps[1] == f"Step 2: {problem.id} is 1"
        said = self.said.get(problem.id)
        if isinstance(said, Exception):
            raise said
        failure = said if isinstance(said, str) else None
        repairs = ["unreadable"] if failure else []
        used = Usage("critic", 1 + len(repairs), 10, 10, 5)
        return SimpleNamespace(first_error=None if failure else said, failure=failure, repairs=repairs, usage=used)


def test_a_modules_failures_repairs_calls_and_tokens_are_counted(files, capsys):
    module = Module({"a": 0, "b": "no JSON\n in it", "c": 1, "d": ValueError("too long"), "e": None, "f": 2, "g": "x"})
    args = ["--data", str(files / "test.json"), "--localizer", "module", "--threads", "3"]
    (one,) = measured(files, *args, module=lambda _: module)["rows"]
    assert (one["acc_err"], one["acc_cor"]) == (50.0, pytest.approx(100 / 3))
    assert (one["failed"], one["repairs"], one["calls"]) == (3, 2, 8)
    assert (one["prompt_tokens"], one["generated_tokens"]) == (60, 30)
    assert one["errors"] == {"no JSON in it": 1, "ValueError: too long": 1, "x": 1}
    assert "2 replies could not be read and were asked for again" in " ".join(capsys.readouterr().out.split())


def test_a_module_that_was_stopped_goes_on_and_is_asked_again_only_for_what_failed(files, request):
    args = ["--data", str(files / "test.json"), "--localizer", "module", "--threads", "1", "--out", str(files / "out")]
    stopped = Module({"b": "no JSON"}, stop=4)
    before = signal.signal(signal.SIGINT, stopped.hear)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    assert main(args, module=lambda _: stopped) == 130
    assert stopped.calls[:4] == ["a", "b", "c", "d"]  # another may have begun by then
    rows = [json.loads(line) for line in (files / "out" / "outcomes.jsonl").read_text().splitlines()]
    kept = {row["key"] for row in rows if not row["outcome"]["error"]}
    names = {attempt_key(from_row(line)): line["id"] for line in json.loads((files / "test.json").read_text())}
    assert {"a", "c"} <= {names[key] for key in kept}
    resumed = Module({"b": 2})
    (one,) = measured(files, *args[:-2], module=lambda _: resumed)["rows"]
    assert resumed.calls == [name for key, name in names.items() if key not in kept]
    assert "b" in resumed.calls
    assert (one["acc_err"], one["acc_cor"], one["failed"], one["calls"]) == (25.0, 100.0, 0, 7)


def test_the_module_of_the_configuration_is_what_runs(files):
    pytest.importorskip("dspy")
    sets = [f"--set={pair}" for pair in ("critic.method=scorer", "scorer.kind=constant", "scorer.value=0.2")]
    (one,) = measured(files, "--data", str(files / "test.json"), "--localizer", "module", *sets)["rows"]
    assert (one["acc_err"], one["acc_cor"], one["failed"]) == (25.0, 0.0, 0)  # every first step is under one half


def test_a_dry_run_says_what_scorer_and_module_would_be_asked_and_asks_nothing(files, capsys):
    args = ["--data", str(files / "test.json"), "--tune", str(files / "tune.json"), "--out", str(files / "out")]
    args += ["--localizer", "scorer", "module", "--set=critic.method=vote", "--dry-run"]
    assert "scorer: llamacpp/lab-scorer is of the lab and knows nothing but lab problems, and 10 of 10" in refused(
        capsys, *args
    )
    assert main([*args, "--set=allow_lab=true"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if len(line.split()) > 5}
    assert " 10 " in rows["scorer"]
    assert " 70 " in rows["critic"]  # 7 attempts, 5 votes, each read twice at most
    assert not (files / "out").exists()


def test_math_shepherds_published_scores_give_the_known_f1(tmp_path):
    lines = write_scores(tmp_path).read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    for name, part in (("tune", lines[:200]), ("rest", lines[200:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    args = ["--data", str(tmp_path / "rest.jsonl"), "--tune", str(tmp_path / "tune.jsonl")]
    (one,) = measured(tmp_path, *args, "--localizer", "scores:math-shepherd_mistral-7b")["rows"]
    assert one["f1"] == pytest.approx(64, abs=4)
