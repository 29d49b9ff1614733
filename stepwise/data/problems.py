r"""Problems from JSON Lines or a `datasets.Dataset`, with either common pair of column names.

Columns: `question` or `problem`; `answer`; `solution` or `reference`; `id` and `source` where there are any. GSM8K
keeps solution and answer in `answer`, with `####` between them. A `solution` without an `answer` beside it holds the
answer in its last box, or is the answer where it has no box and is one short line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwise.errors import DataError
from stepwise.grading import check_gold
from stepwise.io import read_rows
from stepwise.steps import boxed, extract_answer
from stepwise.types import Problem, as_problem

_ANSWER = 60  # characters of the longest text that counts as an answer where nothing says that it is one


@dataclass(frozen=True)
class Checked:
    """Problems that can be used, and the others with what is wrong with them, by id.

    `without_reference` lists the ids of used problems for which the critic has no reference solution: it is asked in
    its other form, without one.
    """

    problems: tuple[Problem, ...]
    excluded: dict[str, str]
    without_reference: tuple[str, ...]

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{len(self.problems)} problems"]
        if self.excluded:
            shown = "; ".join(f"{name}: {why}" for name, why in list(self.excluded.items())[:3])
            parts.append(f"{len(self.excluded)} left out ({shown}{'; ...' if len(self.excluded) > 3 else ''})")
        if self.without_reference:
            parts.append(f"{len(self.without_reference)} have no reference solution; the critic is asked without one")
        return ", ".join(parts)


def read_problems(source: str | Path | Any) -> list[Problem]:
    """Problems of a JSON Lines file, a `datasets.Dataset` or rows (mappings), as they stand; `check_problems` sorts
    them out.

    Raises DataError, with file, row and field, for a file that is missing, empty or not UTF-8, and for a row that has
    no question or both names of one column.
    """
    rows, where = rows_in(source)
    if not rows:
        raise DataError(f"{where} has no rows; give at least one problem, one JSON object per line")
    return [problem_of(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]


def problem_of(row: Mapping[str, Any], where: str = "row") -> Problem:
    """One row as a problem; DataError names `where` and the field."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {row!r:.60}; it must be an object with question and answer")
    question = _text(row, ("question", "problem"), where)
    if not question:
        raise DataError(f"{where}: there is no text in the field question (or problem)")
    answer, reference = _text(row, ("answer",), where), _text(row, ("solution", "reference"), where)
    if answer and "####" in answer and not reference:
        reference, answer = answer, answer.rpartition("####")[2].strip()
    if not answer and reference:
        bare = not boxed(reference) and len(reference) <= _ANSWER and "\n" not in reference
        answer, reference = (reference, None) if bare else (extract_answer(reference), reference)
    named = _text(row, ("id",), where) or _text(row, ("unique_id",), where) or as_problem(question).id
    return Problem(named, question, answer or None, reference or None, _text(row, ("source",), where) or "")


def check_problems(problems: Iterable[Problem]) -> Checked:
    """Sort out what cannot be graded: no gold answer, or one that does not grade as itself.

    Raises DataError for an id that occurs twice, and where no problem is left.
    """
    seen: set[str] = set()
    good, excluded = [], {}
    for problem in problems:
        if problem.id in seen:
            raise DataError(f"the problem id {problem.id!r} occurs twice; give every problem an id of its own")
        seen.add(problem.id)
        if problem.answer is None:
            excluded[problem.id] = "it has no answer to grade by"
            continue
        try:
            check_gold(problem)
        except DataError as error:
            excluded[problem.id] = str(error).partition("; ")[0]
            continue
        good.append(problem)
    if not good:
        why = "; ".join(list(excluded.values())[:3]) or "none was given"
        raise DataError(f"no problem can be used ({why}); give problems with answers that the grader reads")
    bare = tuple(p.id for p in good if p.reference is None or not p.reference.strip())
    return Checked(tuple(good), excluded, bare)


def rows_in(source: str | Path | Any) -> tuple[list[Any], str]:
    """The rows of a file or a dataset as they stand, and what to call it; DataError where there are none to read."""
    if isinstance(source, Mapping):
        splits = ", ".join(map(repr, list(source)[:5]))
        raise DataError(f"the dataset is a dictionary ({splits}); give one of its splits, or a list of rows")
    if not isinstance(source, str | Path):
        if not isinstance(source, Iterable):
            raise DataError(f"{source!r:.60} holds no rows; give a file, a datasets.Dataset or a list of mappings")
        return list(source), "the dataset"
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a JSON Lines file")
    try:
        path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None
    return read_rows(path, finished=True), str(path)


def _text(row: Mapping[str, Any], names: Sequence[str], where: str) -> str | None:
    given = [name for name in names if row.get(name) is not None]
    if len(given) > 1:
        raise DataError(f"{where}: the fields {' and '.join(given)} are both there; give one of them")
    if not given:
        return None
    value = row[given[0]]
    if isinstance(value, float) and math.isnan(value):  # how tables of numbers say that there is nothing
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}, field {given[0]}: it is {value!r:.60}; write it as a text")
    return str(value).encode("utf-8", "replace").decode().strip()  # a lone surrogate becomes "?"
