"""Columns of a user's own: named by field, and said where there are none for the answers."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest

import stepwise as sw
from stepwise.errors import ConfigError, DataError


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


OWN = {"QUERY": "Six times seven?", "RESULT": 42, "WORKED": "6 * 7 = 42.", "level": 1}


@pytest.mark.parametrize(
    "columns",
    [
        {"question": "QUERY", "answer": "RESULT", "reference": "WORKED"},
        "question=QUERY, answer=result,reference=WORKED",
    ],
)
def test_columns_of_other_names_are_given_by_field(columns: Any, tmp_path: Path) -> None:
    as_csv(tmp_path / "mine.csv", [OWN])
    for source in ([OWN], tmp_path / "mine.csv"):
        (problem,) = sw.load_problems(source, columns=columns)
        assert (problem.question, problem.answer, problem.reference) == (OWN["QUERY"], "42", OWN["WORKED"])
        assert list(problem.metadata) == ["level"]


def test_a_given_column_stands_for_its_field_alone() -> None:
    rows = [{"question": "Six times seven?", "solution": "42", "answer": "a guess"}]
    (problem,) = sw.load_problems(rows, columns={"answer": "solution"})
    assert (problem.answer, problem.reference, problem.metadata) == ("42", None, {"answer": "a guess"})
    (problem,) = sw.load_problems(OWN, columns={"question": "QUERY"})
    assert problem.question == OWN["QUERY"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("answr=RESULT", "a field of columns is 'answr'; did you mean 'answer'"),
        ("RESULT", "a field of columns is 'RESULT'"),
        ("answer=", "columns: answer is ''; give the name of its column"),
        ({"answer": 3}, "columns: answer is 3; give the name of its column"),
        (["answer"], "columns"),
        ("question=QUERY,answer=RESULTS", "answer=RESULTS, but there is no such column; there are QUERY, RESULT"),
        ("question=QUERRY", "there is no text in the field QUERRY; its fields are QUERY, RESULT, WORKED, level"),
    ],
)
def test_names_of_columns_that_are_wrong_are_named(columns: Any, message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        sw.load_problems([OWN], columns=columns)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"question": "Six times seven?", "RESULT": 42, "level": 1}] * 2,
            "2 problems; kept beside them: RESULT, level; none has an answer; if a column holds it, name it, "
            '--columns answer=NAME (in a script columns="answer=NAME")',
        ),
        ([{"question": "1 + 1?"}, {"question": "1 + 2?"}], "2 problems; none has an answer to grade by"),
        ([{"question": "1 + 1?", "answer": ""}, {"question": "1?", "answer": 1}], "2 problems; 1 have no answer"),
        ([{"question": "1 + 1?", "answer": 2}], ""),
    ],
)
def test_a_file_without_answers_is_said_with_the_columns_that_it_has(
    rows: list[dict[str, Any]], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_jsonl(tmp_path / "p.jsonl", rows)
    with caplog.at_level(logging.WARNING, "stepwise"):
        sw.load_problems(tmp_path / "p.jsonl")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(said)
    assert said in "".join(messages)


def test_one_question_is_meant_to_have_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "stepwise"):
        sw.load_problems("What is 2 + 3?")
        sw.load_problems({"question": "What is 2 + 3?", "level": 2})
    assert not caplog.records


@pytest.mark.parametrize("mark", [";", "\t"])
def test_csv_of_a_spreadsheet_that_separates_otherwise(mark: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"question{mark}answer\nHalf of 3, as a decimal?{mark}1.5\n")
    (problem,) = sw.load_problems(tmp_path / "p.csv")
    assert (problem.question, problem.answer) == ("Half of 3, as a decimal?", "1.5")


def test_rows_under_one_key_and_columns_of_lists(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"data": [{"question": "1 + 1?", "answer": "2"}]}')
    for source in (tmp_path / "p.json", {"question": ["1 + 1?"], "answer": ["2"]}):
        (problem,) = sw.load_problems(source)
        assert (problem.question, problem.answer) == ("1 + 1?", "2")


@pytest.mark.parametrize("data", [b"PK\x03\x04", b"\x1f\x8b\x08"])
def test_a_spreadsheets_own_file_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(data)
    with pytest.raises(DataError, match="is compressed or a spreadsheet's own file; unpack it, or save it as CSV"):
        sw.load_problems(tmp_path / "p.csv")
