from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.errors import DataError
from stepwise.io import append_rows, read_rows
from stepwise.types import Problem, Step, Trace


def test_rows_of_the_library_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "traces.jsonl"
    traces = [
        Trace(Problem("a", "How many?\r\n\u2028 \x85"), (Step("4.", "weak", 0.5),), "answer"),
        Trace(Problem("b", "é")),
    ]
    append_rows(path, traces[:1])
    append_rows(path, traces[1:])
    assert read_rows(path, Trace) == traces
    assert read_rows(path)[0]["problem"]["id"] == "a"


def test_a_file_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_torn_last_line_is_left_out_and_cut_before_the_next_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"n": 1}, {"n": 2}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 3')
    assert read_rows(path) == [{"n": 1}, {"n": 2}]
    append_rows(path, [{"n": 4}])
    assert path.read_bytes() == whole + b'{"n": 4}\n'


@given(st.data())
def test_a_file_cut_anywhere_keeps_its_whole_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    rows = [{"text": text} for text in data.draw(st.lists(st.text(max_size=30), min_size=1, max_size=5))]
    append_rows(path, rows)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert read_rows(path) == rows[:kept]
    append_rows(path, [{"last": True}])
    assert read_rows(path) == [*rows[:kept], {"last": True}]


def test_a_file_that_a_person_made_keeps_its_last_line_without_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "question": "?"}\r\n\r\n{"id": "b", "question": "!"}')
    assert read_rows(path, Problem, finished=True) == [Problem("a", "?"), Problem("b", "!")]
    assert [row["id"] for row in read_rows(path, finished=True)] == ["a", "b"]
    path.write_bytes(path.read_bytes() + b"\nnot JSON")
    with pytest.raises(DataError, match="line 4"):
        read_rows(path, Problem, finished=True)


def test_a_torn_line_longer_than_a_block_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"n": 1}])
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    assert read_rows(path) == [{"n": 1}]


@pytest.mark.parametrize("line", ["not json", '{"id": 3}'])
def test_a_wrong_row_in_the_middle_is_an_error_with_its_line_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "question": "?"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2"):
        read_rows(path, Problem)


def test_a_row_that_does_not_fit_says_which_field_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "1", "question": "q", "answer": 391}\n')
    with pytest.raises(DataError, match=r"line 1: not a valid row \(answer: Input should be a valid string, not 391\)"):
        read_rows(tmp_path / "p.jsonl", Problem)
