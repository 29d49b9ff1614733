"""The benchmark of the grader runs on data of its own, and its made answers are what they say."""

from __future__ import annotations

import json

import pytest

from evals.grading import made_answers, main
from stepwise.grading import Verdict, grade


@pytest.mark.parametrize(
    "gold", ["18", "-3", "0", "2,125", r"\frac{11}{2}", r"6r^2-4r-24", "(-2,1)", r"\text{east}", "x=5"]
)
def test_made_answers_are_judged_as_they_were_made(gold):
    made = list(made_answers(gold))
    assert made
    for change, prediction, equal in made:
        assert grade(prediction, gold) is (Verdict.CORRECT if equal else Verdict.WRONG), (change, prediction)


def test_an_unreadable_gold_answer_makes_no_answers():
    assert list(made_answers(r"\frac{1}{")) == []


def test_the_benchmark_writes_what_both_graders_said(tmp_path):
    for name, row in (
        ("gsm8k", {"question": "Two and three?", "answer": "It is 5.\n#### 5"}),
        ("math500", {"problem": "Twice r?", "answer": r"\frac{4r}{2}"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "processbench").mkdir()
    solution = {
        "id": "a",
        "problem": "Two  and three?",
        "steps": [r"\boxed{5}"],
        "label": -1,
        "final_answer_correct": True,
    }
    (tmp_path / "processbench" / "gsm8k.json").write_text(json.dumps([solution]))
    assert main(["--data", str(tmp_path), "--repeats", "1", "--cases", "3", "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "grading.json").read_text())
    assert result["sets"]["gsm8k"]["gold_failed"] == []
    assert result["sets"]["math500"]["made"] > 3
    assert result["our_failures"] == []
    real = result["corpora"]["processbench"]
    assert (real["answers"], real["right"], real["ours"], real["plain"]) == (1, 1, 0, 0)
    assert result["corpora"]["rewritten"]["answers"] == result["corpora"]["kinds"]["answers"] == 3
    assert result["times_ms"]["exact_path"] > 0
    assert result["times_ms"]["worker_path"] > 0


def test_a_folder_without_data_is_a_clear_error(tmp_path, capsys):
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "gsm8k/test.jsonl" in capsys.readouterr().err.replace("\n", " ")
