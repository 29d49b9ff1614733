"""One reader for every form that problems come in; small rows in the columns of the sets that are in use."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stepwise as sw
from stepwise.data.problems import SETS, check_problems
from stepwise.data.tables import read_hub
from stepwise.errors import DataError, MissingDependencyError
from stepwise.lab.problems import generate
from stepwise.records import from_json, to_json
from stepwise.types import Problem

GSM8K = {
    "question": "Natalia sold 48 clips in April and half as many in May. How many in all?",
    "answer": "In May she sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 72",
}
MATH500 = {
    "problem": "What is $1+1$?", "solution": "We have $\\boxed{2}$.", "answer": "2", "subject": "Algebra", "level": 2,
    "unique_id": "test/algebra/1.json",
}  # fmt: skip
AIME = {
    "id": 60,
    "problem": "Find $m+n$.",
    "solution": "It is $\\boxed{204}$.",
    "answer": "204",
    "url": "u",
}
MATHARENA = {"problem_idx": 1, "problem": "Find it.", "answer": "\\frac{1}{2}", "problem_type": ["Algebra"]}
OLYMPIAD = {
    "id": 1606, "question": "Solve it.", "solution": ["First way.", "Second way."], "final_answer": ["$2$", "$-2$"],
    "context": None, "image_1": b"png", "is_multiple_answer": True, "unit": "",
}  # fmt: skip
PROCESSBENCH = {
    "id": "gsm8k-0", "generator": "Qwen2", "problem": "How many?", "steps": ["a", "b"], "final_answer_correct": False,
    "label": 1,
}  # fmt: skip

KNOWN = ("id", "problem")


@pytest.mark.parametrize(
    ("row", "expected", "metadata"),
    [
        (
            GSM8K,
            ("72", "In May she sold 48/2 = 24 clips.\nIn all 48+24 = 72 clips."),
            {},
        ),
        (MATH500, ("2", "We have $\\boxed{2}$."), {"subject": "Algebra", "level": 2}),
        (AIME, ("204", "It is $\\boxed{204}$."), {"url": "u"}),
        (MATHARENA, ("\\frac{1}{2}", None), {"problem_type": ["Algebra"]}),
        (OLYMPIAD, ("$2$, $-2$", "First way."), {"is_multiple_answer": True}),
        (PROCESSBENCH, (None, None), {k: v for k, v in PROCESSBENCH.items() if k not in KNOWN}),
    ],
    ids=["GSM8K", "MATH-500", "AIME", "MathArena", "OlympiadBench", "ProcessBench"],
)  # fmt: skip
def test_the_columns_of_the_sets_in_use_are_known(row: dict[str, Any], expected: Any, metadata: dict[str, Any]) -> None:
    (problem,) = sw.load_problems([row])
    assert problem.question == row.get("question", row.get("problem"))
    assert (problem.answer, problem.reference) == expected
    assert problem.metadata == metadata
    names = [str(row[name]) for name in ("id", "unique_id", "problem_idx") if name in row]
    assert [problem.id] == names or problem.id.startswith("q-")


def test_the_renaming_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "stepwise"):
        sw.load_problems([MATH500])
        sw.load_problems([Problem("a", "?", "1"), "What is 2 + 3?", {"id": "b", "question": "?", "answer": "4"}])
    assert [record.getMessage() for record in caplog.records] == [
        "the dataset: 1 problems; problem read as question, solution read as reference, unique_id read as id; "
        "kept beside them: subject, level"
    ]


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def as_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("p.jsonl", as_jsonl), ("p.json", as_json), ("p.json", as_jsonl), ("p.csv", as_csv), ("p.tsv", as_csv),
        ("p.parquet", as_parquet),
    ],
)  # fmt: skip
def test_every_format_gives_the_same_problems(
    name: str, write: Callable[[Path, list[dict[str, Any]]], None], tmp_path: Path
) -> None:
    rows = [{**GSM8K, "id": "a"}, {**GSM8K, "id": "b", "question": 'Other, with a "quote"\nand a line?'}]
    write(tmp_path / name, rows)
    expected = sw.load_problems(rows)
    assert sw.load_problems(tmp_path / name) == sw.load_problems(str(tmp_path / name)) == expected
    assert sw.load_problems(tmp_path / name, n=1) == expected[:1]
    assert sw.load_problems(tmp_path) == expected  # the only file of a directory


def test_parquet_without_its_package_names_the_extra(tmp_path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        (tmp_path / "p.parquet").write_bytes(b"PAR1")
        with pytest.raises(MissingDependencyError, match=r'pip install "stepwise\[data\]"'):
            sw.load_problems(tmp_path / "p.parquet")


def test_problems_of_the_lab_are_taken_as_they_are_made() -> None:
    made = generate("test", 2)
    assert sw.load_problems(made) == [item.problem for item in made]


def test_problems_rows_texts_and_paths_are_taken_by_the_same_function(tmp_path: Path) -> None:
    problem = Problem("a", "What?", "1")
    as_jsonl(tmp_path / "p.jsonl", [GSM8K, GSM8K])
    assert sw.load_problems("What is 17 * 23?")[0].question == "What is 17 * 23?"
    assert sw.load_problems("17*23=?")[0].question == "17*23=?"
    assert sw.load_problems(problem) == sw.load_problems([problem]) == [problem]
    assert sw.load_problems({"question": "What?", "id": "a", "answer": 1}) == [problem]
    mixed = sw.load_problems([problem, "Why?", {"problem": "Who?"}, tmp_path / "p.jsonl"])
    assert [p.question for p in mixed] == ["What?", "Why?", "Who?", GSM8K["question"], GSM8K["question"]]
    assert len({p.id for p in mixed}) == 5  # the same question twice has two ids
    assert sw.load_problems(row for row in (GSM8K,))[0].answer == "72"
    assert sw.load_problems([]) == []


class Frame:
    """As a pandas data frame is: iterating gives the names of its columns."""

    def __iter__(self) -> Any:
        return iter(["question", "answer"])

    def iterrows(self) -> Any:
        return enumerate([GSM8K])

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{**GSM8K, "id": float("nan"), "level": 3.0}]


def test_a_data_frame_and_a_dictionary_of_splits(tmp_path: Path) -> None:
    (problem,) = sw.load_problems(Frame())
    assert (problem.answer, problem.metadata) == ("72", {"level": 3.0})
    assert problem.id.startswith("q-")
    splits = {"train": [MATH500], "test": [AIME]}
    assert sw.load_problems(splits, split="train")[0].answer == "2"
    assert sw.load_problems({"test": [AIME]}, split="train")[0].answer == "204"
    with pytest.raises(DataError, match=r"'train', 'test'\); give one of its splits"):
        sw.load_problems(splits)
    as_jsonl(tmp_path / "train.jsonl", [MATH500])
    as_jsonl(tmp_path / "test.jsonl", [AIME])
    assert sw.load_problems(tmp_path, split="test")[0].answer == "204"
    with pytest.raises(DataError, match="give one of its splits"):
        sw.load_problems(tmp_path)


def test_a_named_set_is_a_local_file_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    as_jsonl(tmp_path / "data" / "gsm8k" / "test.jsonl", [GSM8K])
    as_jsonl(tmp_path / "data" / "gsm8k" / "train.jsonl", [{**GSM8K, "id": "t"}])
    as_jsonl(tmp_path / "math500.jsonl", [MATH500])
    assert [p.source for p in sw.load_problems("gsm8k")] == ["gsm8k"]
    assert (
        [p.id for p in sw.load_problems("gsm8k:train")]
        == [p.id for p in sw.load_problems("gsm8k", split="train")]
        == ["t"]
    )
    assert sw.load_problems("math500", split="train")[0].id == sw.load_problems("MATH-500")[0].id  # it has one split
    with pytest.raises(DataError, match="has no split 'val'; there are test, train"):
        sw.load_problems("gsm8k:val")
    with pytest.raises(DataError, match="did you mean 'gsm8k'"):
        sw.load_problems("gsm8")


def test_a_name_of_the_hub_is_opened_with_its_configuration_and_split() -> None:
    asked = []

    def load_dataset(name: str, config: str | None, **options: str) -> Any:
        asked.append((name, config, options))
        return [MATHARENA] if options else {"train": [MATHARENA], "test": [AIME]}

    assert read_hub("openai/gsm8k", "main", split="test", load_dataset=load_dataset) == [MATHARENA]
    assert read_hub("a/b", prefer="test", load_dataset=load_dataset) == [AIME]
    with pytest.raises(DataError, match=r"a/b is a dictionary \('train', 'test'\)"):
        read_hub("a/b", load_dataset=load_dataset)
    assert asked[0] == ("openai/gsm8k", "main", {"split": "test"})
    assert {"gsm8k", "math500", "aime25", "hmmt_feb_2026"} <= SETS.keys()


def test_a_hub_that_cannot_be_reached_is_an_error_that_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route to host")

    with pytest.raises(DataError, match=r"a/b could not be read from the hub \(no route to host\); check the name"):
        read_hub("a/b", load_dataset=load_dataset)
    monkeypatch.chdir(tmp_path)
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match=r"stepwise\[data\].*math500.jsonl or data/math500/test.jsonl"):
            sw.load_problems("math500")


@pytest.mark.parametrize(
    "gold", ["It is 42", "The answer is 42.", "Natalia sold 48/2 = 24 clips in May.", "So we get 3", "word " * 13]
)
def test_a_gold_that_is_prose_is_refused_with_its_row(gold: str, tmp_path: Path) -> None:
    as_jsonl(tmp_path / "p.jsonl", [GSM8K, {"question": "?", "answer": gold}])
    with pytest.raises(DataError, match=r"p.jsonl, row 2, field answer: .* is prose; give the answer alone"):
        sw.load_problems(tmp_path / "p.jsonl")
    with pytest.raises(DataError, match="is prose"):
        check_problems([Problem("a", "?", gold)])


@pytest.mark.parametrize(
    "gold",
    ["42", "no solution", "\\text{the sum is odd}", "x = 5", "5 hours and 30 minutes", "x^5 + x^4 + x^3 + x^2 + x + 1",
     "(-\\infty, 2) \\cup (3, \\infty)", "$x$ and $y$ are in $S$"[:11], "Monday", "all real numbers"],
)  # fmt: skip
def test_an_answer_in_words_is_no_prose(gold: str) -> None:
    assert sw.load_problems([{"question": "?", "answer": gold}])[0].answer == gold


def test_prose_with_the_answer_in_a_box_or_behind_the_mark_is_read_there() -> None:
    rows = [{"question": "a", "answer": "So it is \\boxed{42}."}, {"question": "b", "answer": "It is 42.\n#### 1,234"}]
    assert [p.answer for p in sw.load_problems(rows)] == ["42", "1,234"]
    (problem,) = sw.load_problems([{"question": "?", "solution": "It is 42.\n#### 42"}])
    assert (problem.answer, problem.reference) == ("42", "It is 42.")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "a", "question": "?"}, {"id": "a", "question": "!"}], "row 2: the id 'a' occurs twice, also in"),
        ([{"question": "?", "anwser": "4"}], "field anwser: there is no such field; did you mean answer"),
        ([{"question": "?", "answer": "4", "final_answer": "5"}], "answer and final_answer are both there and differ"),
        ([" "], "row 1 is ' '; it must be an object"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sw.load_problems(rows)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "question,answer\na,b,c\n", "row 1: it has another number of fields"),
        ("p.csv", 'question,answer\n"a,b\n', "is not CSV"),
        ("p.json", '[{"question": "a"},\n', "is not JSON"),
        ("p.json", "[" * 100_000, "nested too deep"),
    ],
)
def test_files_that_are_broken_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        sw.load_problems(tmp_path / name)


def test_metadata_travels_with_a_problem_and_makes_no_difference(tmp_path: Path) -> None:
    (problem,) = sw.load_problems([MATH500])
    assert from_json(Problem, to_json(problem)).metadata == problem.metadata
    (tmp_path / "p.jsonl").write_text(to_json(problem) + "\n")
    (again,) = sw.load_problems(tmp_path / "p.jsonl")
    assert (again, again.metadata) == (problem, problem.metadata)
    assert hash(problem) == hash(
        Problem(id=problem.id, question=problem.question, answer=problem.answer, reference=problem.reference)
    )


def test_names_that_people_choose_for_question_and_answer_are_read_and_differing_ones_refused() -> None:
    (problem,) = sw.load_problems([{"prompt": "1 + 1?", "gold": "2", "solution": "It is 2."}])
    assert (problem.question, problem.answer, problem.reference) == ("1 + 1?", "2", "It is 2.")
    with pytest.raises(DataError, match="the fields answer and gold are both there and differ"):
        sw.load_problems([{"question": "1 + 1?", "answer": "2", "gold": "3"}])
    with pytest.raises(DataError, match=r"its fields are nr, text: name it, --columns question=NAME,answer=NAME"):
        sw.load_problems([{"nr": 1, "text": "1 + 1?"}])


@pytest.mark.parametrize("name", ["problems.txt", "problems.jsnl", "dup.jsn", "./a/b.jsonll", "tests/gsm8k.jsnl"])
def test_a_mistyped_path_is_no_question_and_no_data_set(name: str) -> None:
    with pytest.raises(DataError, match=r"no such file; give a file"):
        sw.load_problems(name)


@pytest.mark.parametrize("text", ["17*23=?", "What is 3.5 + 4.5?", "Is 0.5 half", "x^2=4.0"])
def test_a_question_is_one_with_points_in_it_too(text: str) -> None:
    assert [problem.question for problem in sw.load_problems(text)] == [text]
