"""ProcessBench rows in and out."""

from __future__ import annotations

import json

import pytest

from stepwise.data.processbench import from_row, read_rows
from stepwise.errors import DataError
from stepwise.types import Localization, Problem

ROW = {
    "id": "gsm8k-7",
    "generator": "Qwen2-7B-Instruct",
    "problem": "How many are 2 and 3?",
    "steps": ["They are 2 + 3. ", "That is 6.", "\\boxed{6}"],
    "label": 1,
    "final_answer_correct": False,
}


def test_a_row_becomes_problem_trace_and_localization():
    problem, trace, localization, correct = from_row(ROW)
    assert problem == Problem("gsm8k-7", "How many are 2 and 3?", source="processbench")
    assert [step.text for step in trace.steps] == ROW["steps"]
    assert {step.author for step in trace.steps} == {"Qwen2-7B-Instruct"}
    assert (trace.answer, trace.finish) == ("6", "answer")
    assert localization.first_error == 1
    assert correct is False


def test_a_label_of_minus_one_is_no_error():
    assert from_row(ROW | {"label": -1}).localization == Localization(None)


def test_a_label_of_zero_is_the_first_step():
    assert from_row(ROW | {"label": 0}).localization.first_error == 0


@pytest.mark.parametrize("label", [-1, 0, 2])
def test_a_row_is_read_as_it_stands(label):
    problem, trace, localization, correct = from_row(ROW | {"label": label})
    assert (problem.id, problem.question, correct) == (ROW["id"], ROW["problem"], ROW["final_answer_correct"])
    assert [step.text for step in trace.steps] == ROW["steps"]
    assert {step.author for step in trace.steps} == {ROW["generator"]}
    assert localization.first_error == (None if label < 0 else label)


def test_what_a_row_does_not_say_stays_unsaid():
    row = {key: value for key, value in ROW.items() if key != "final_answer_correct"}
    example = from_row(row)
    assert example.final_answer_correct is None


def test_a_reference_and_the_scores_of_one_scorer_are_read_where_they_are_asked_for():
    row = ROW | {"reference": "2 + 3 = 5", "scores": {"prm": [0.9, 0.25, 1], "other": [0, 0, 0]}}
    example = from_row(row, scores="prm")
    assert example.problem.reference == "2 + 3 = 5"
    assert [step.score for step in example.trace.steps] == [0.9, 0.25, 1.0]
    assert {step.score for step in from_row(row).trace.steps} == {None}


def test_files_are_read_as_an_array_or_as_lines(tmp_path):
    rows = [ROW, ROW | {"id": "2", "label": -1, "problem": "a\u2028b"}]
    array, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    array.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    lines.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert read_rows(array) == read_rows(lines)
    assert [row.problem.question for row in read_rows(array)] == [ROW["problem"], "a\u2028b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, r"row 2, field label: 3; it must lie in -1\.\.2"),
        ({"label": -2}, "row 2, field label: -2"),
        ({"label": True}, "row 2, field label: it is True, a bool; it must be int"),
        ({"label": "1"}, "row 2, field label: it is '1'"),
        ({"label": None}, "row 2, field label: it is None"),
        ({"steps": "one"}, "row 2, field steps: it is 'one', a str; it must be list"),
        ({"steps": ["a", " "], "label": -1}, r"row 2, field steps\[1\]: ' '"),
        ({"steps": ["a", 5], "label": -1}, r"row 2, field steps\[1\]: 5"),
        ({"steps": [], "label": -1}, "row 2, field steps: it is empty"),
        ({"reference": 4}, "row 2, field reference: it is 4"),
        ({"problem": 4}, "row 2, field problem: it is 4"),
        ({"id": 4}, "row 2, field id: it is 4"),
        ({"final_answer_correct": 1}, "row 2, field final_answer_correct: it is 1"),
    ],
)
def test_a_bad_row_is_refused_with_row_field_and_value(tmp_path, change, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([ROW, ROW | change]), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_rows(path)


@pytest.mark.parametrize("name", ["problem", "steps", "label"])
def test_a_missing_column_is_named(name):
    with pytest.raises(DataError, match=f"row, field {name}: it is missing"):
        from_row({key: value for key, value in ROW.items() if key != name})


def test_what_is_no_json_or_no_object_is_refused(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROW) + "\n{oops\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: not a valid row"):
        read_rows(path)
    with pytest.raises(DataError, match="must be an object"):
        from_row([1])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_rows(path)
    path.write_text(json.dumps([ROW]), encoding="utf-8-sig")
    assert read_rows(path) == [from_row(ROW, "x")]
