"""Problems read from either columns, bad input named, and the dataset with its card."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from stepwise.data.examples import Example, Origin, read_examples, write_examples
from stepwise.data.problems import check_problems, load_problems
from stepwise.errors import DataError
from stepwise.records import to_json
from stepwise.types import Problem

CARD = {"models": {"weak": "w@1"}, "settings": {"rollouts": 4}}


def example(number: int = 0, prefix: tuple[str, ...] = ("2 + 3 = 5.",)) -> Example:
    name = f"p{number}/r0/c0"
    return Example(
        name, "Add 2 and 3, then double ½ of it.", "5", prefix, "Half of 5, doubled, is 5 again.", "intervention",
        {"problem": f"p{number}", "failure": f"p{number}/r0", "candidate": name}, {"weak": "w@1", "critic": "c@2"},
        "prompt", "config", 7, 3, 32,
    )  # fmt: skip


def row_of(row: Example) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(to_json(row))
    return plain


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": 3, "question": "q", "answer": 4}, Problem("3", "q", "4")),
        ({"id": "a", "problem": "q", "answer": "4", "solution": "s 4"}, Problem("a", "q", "4", "s 4")),
        ({"id": "a", "problem": "q", "solution": r"so \boxed{4}"}, Problem("a", "q", "4", r"so \boxed{4}")),
        ({"id": "a", "problem": "q", "solution": "4"}, Problem("a", "q", "4")),
        ({"id": "a", "question": "q", "answer": "2+2=4\n#### 4"}, Problem("a", "q", "4", "2+2=4")),
        (
            {"id": "a", "question": "q", "answer": "4", "reference": "r", "source": "x"},
            Problem("a", "q", "4", "r", "x"),
        ),
        ({"id": "a", "question": "q"}, Problem("a", "q")),
        ({"id": "a", "question": "q", "solution": "two\nlines"}, Problem("a", "q", None, "two\nlines")),
        ({"id": "a", "question": "q", "solution": "long " * 20}, Problem("a", "q", None, ("long " * 20).strip())),
        ({"unique_id": "u", "question": "q", "answer": float("nan")}, Problem("u", "q")),
    ],
)
def test_a_row_is_read_whatever_its_columns_are_called(row: dict[str, object], expected: Problem) -> None:
    assert load_problems([row]) == [expected]


def test_a_problem_without_an_id_gets_the_same_one_every_time() -> None:
    ids = [load_problems([row])[0].id for row in ({"question": "q"}, {"problem": "q"}, {"question": "r"})]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"\n \n", "has no rows"),
        (b'{"question": "q"}\n{"quest\n', "line 2"),
        (b'{"answer": "4"}\n', r"row 1: there is no text in the field question \(or problem\)"),
        (b'{"question": "q", "problem": "p"}\n', "question and problem are both there"),
        (b'{"question": ["q"]}\n', "field question: it is"),
        (b'{"question": "q", "id": {"a": 1}}\n', "field id: it is"),
        ('{"question": "ß"}\n'.encode("latin-1"), "not UTF-8"),
        ('{"question": "q"}\n'.encode("utf-16"), "not UTF-8"),
        (b"[1, 2]\n", "it must be an object"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_problems(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("read", [load_problems, read_examples])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"train": [], "test": []}, "a dictionary \\('train', 'test'\\); give one of its splits"),
        ([["q"]], r"row 1 is \['q'\]; it must be an object"),
        (7, "7 holds no rows"),
    ],
)
def test_what_holds_no_rows_is_refused(read: Any, source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(source)


def test_examples_of_a_file_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    for content, message in ((b'{"id": "\xff"}\n', "not UTF-8"), (b"[1]\n", "row 1 is"), (b'{"id"\n', "line 1")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            read_examples(path)
        assert str(path) in str(error.value)
    path.write_bytes(b"")
    assert read_examples(path) == []


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_problems(tmp_path / "none.jsonl")


def test_gold_answers_that_do_not_grade_are_listed_and_left_out() -> None:
    problems = [Problem("a", "q", "4", "r"), Problem("b", "q", "(("), Problem("c", "q"), Problem("d", "q", "1/2")]
    found = check_problems(problems)
    assert [p.id for p in found.problems] == ["a", "d"]
    assert set(found.excluded) == {"b", "c"}
    assert "grades as" in found.excluded["b"]
    assert found.without_reference == ("d",)
    assert "2 left out" in found.summary()
    assert "asked without one" in found.summary()


def test_ids_that_occur_twice_and_no_usable_problem_are_refused() -> None:
    with pytest.raises(DataError, match="'a' occurs twice"):
        check_problems([Problem("a", "q", "4"), Problem("a", "r", "5")])
    with pytest.raises(DataError, match="no problem can be used"):
        check_problems([Problem("a", "q")])


@pytest.mark.parametrize(("question", "answer"), [("question", "answer"), ("problem", "solution")])
def test_a_dataset_comes_back_as_it_was_under_either_names(tmp_path: Path, question: str, answer: str) -> None:
    rows = [example(0), example(1, prefix=())]
    path = write_examples(tmp_path / "set.jsonl", rows, card=CARD)
    assert read_examples(path) == rows
    named = {"question": question, "answer": answer}
    plain = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write(path, *({named.get(name, name): value for name, value in row.items()} for row in plain))
    assert read_examples(path) == rows


def test_the_card_has_counts_models_settings_and_the_licence(tmp_path: Path) -> None:
    path = write_examples(tmp_path / "set.jsonl", [example(0), example(1)], card=CARD, licence="cc-by-4.0")
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert 'license: "cc-by-4.0"' in text
    body = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
    assert body["counts"] == {
        "examples": 2, "problems": 2, "by origin": {"intervention": 2}, "made without a reference solution": 0,
    }  # fmt: skip
    assert body["models"] == CARD["models"]
    assert body["settings"] == CARD["settings"]


def test_a_row_that_is_no_example_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", row_of(example()), {**row_of(example(1)), "successes": -1})
    with pytest.raises(DataError, match=r"row 2: not a row of examples.*successes"):
        read_examples(path)


def test_the_target_ends_with_the_intervention() -> None:
    assert example().target == "2 + 3 = 5.\n\nHalf of 5, doubled, is 5 again."
    assert example(prefix=()).target == "Half of 5, doubled, is 5 again."


def test_a_suffix_follows_the_intervention_in_the_target() -> None:
    assert dataclasses.replace(example(prefix=()), suffix="So 5.").target.endswith("is 5 again.\n\nSo 5.")


def test_a_file_from_before_there_were_whole_solutions_and_suffixes_is_still_read(tmp_path: Path) -> None:
    row = row_of(example())
    for later in ("complete", "suffix", "variant"):
        del row[later]
    assert read_examples(write(tmp_path / "set.jsonl", row)) == [example()]


@pytest.mark.parametrize("origin", get_args(Origin))
def test_rows_of_every_origin_come_back(tmp_path: Path, origin: Origin) -> None:
    row = dataclasses.replace(example(prefix=()), origin=origin, complete=True, suffix="and so on", variant="late")
    assert read_examples(write_examples(tmp_path / "set.jsonl", [row], card=CARD)) == [row]


def test_a_datasets_dataset_of_the_rows_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = [dataclasses.replace(example(2, prefix=()), origin="strong", complete=True, parents={"problem": "p2"})]
    rows = [example(0), example(1, prefix=()), *whole]
    path = write_examples(tmp_path / "set.jsonl", rows, card=CARD)
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert read_examples(loaded) == rows
    assert [problem.question for problem in load_problems(loaded)] == [row.question for row in rows]


def test_the_directory_of_a_collection_stands_for_its_dataset_and_problems_are_no_dataset(tmp_path: Path) -> None:
    from tests.training.sft_world import row

    write_examples(tmp_path / "dataset.jsonl", [row(1)], card={})
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert read_examples(tmp_path) == [row(1)]
    with pytest.raises(DataError, match=r"a problem, not a row of examples .* no prefix .*stepwise intervene"):
        read_examples([{"id": "p", "problem": "1 + 1?", "answer": "2"}])
