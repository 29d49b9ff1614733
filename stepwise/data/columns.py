r"""What the columns of a row of problems mean: the names that are known, and those that a user gives.

Columns are known by any of the names that they have in GSM8K, MATH-500, AIME, OlympiadBench, ProcessBench and
MathArena's sets (`COLUMNS`), in whatever case; other columns stay in `Problem.metadata`. GSM8K keeps solution and
answer in `answer`, with `####` between them and the calculator's notes `<<48/2=24>>` in it: answer and reference are
taken apart, and the notes out. A `solution` without an `answer` beside it holds the answer in its last box, or is the
answer where it has no box and is one short line.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from stepwise.errors import ConfigError, DataError, wrong_type
from stepwise.plugins import check_choice
from stepwise.steps import boxed, encodable, extract_answer
from stepwise.types import Problem, as_problem

COLUMNS = {
    "question": ("question", "problem", "prompt"),
    "answer": ("answer", "final_answer", "expected_answer", "gold", "gold_answer"),
    "reference": ("reference", "solution"),
    "id": ("id", "unique_id", "problem_id", "problem_idx", "idx"),
    "source": ("source",),
}
"""The fields of a problem, with the names that their columns may have."""

_ANSWER = 60  # characters of the longest text that counts as an answer where nothing says that it is one
_NOTE = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")  # of GSM8K's calculator
_MARK = re.compile(r"\s*^####\s*(\S[^\n]*)\s*\Z", re.MULTILINE)
# A gold that says something about its answer: a verb between words and a value, or far more words than an answer has.
_PROSE = re.compile(r"(?:^|\s)(?:is|are|was|were|equals?|so|therefore|thus|hence|because|answer)\b", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm)\s*\{[^{}]*\}|\$[^$]*\$")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_MOST_WORDS = 12
_NAME_THEM = 'name it, --columns {0} (in a script columns="{0}")'


def columns_of(given: str | Mapping[str, str] | None) -> dict[str, str]:
    """A user's own names of columns, by field, of a mapping or of "field=COLUMN,...".

    Raises ConfigError for a field that problems do not have, and for what is no such text.

    >>> columns_of("question=QUERY, answer=RESULT")
    {'question': 'QUERY', 'answer': 'RESULT'}
    """
    if isinstance(given, str):
        pairs = [part.partition("=") for part in given.split(",")]
        given = {field.strip(): column.strip() for field, _, column in pairs}
    if not isinstance(given, Mapping | None):
        raise ConfigError(wrong_type("columns", given, 'give {"answer": "RESULT"}, or the text "answer=RESULT"'))
    for field, column in (given or {}).items():
        check_choice("a field of columns", field, COLUMNS)
        if not isinstance(column, str) or not column.strip():
            raise ConfigError(f"columns: {field} is {column!r}; give the name of its column, such as {field}=RESULT")
    return dict(given or {})


class RowReader:
    """Reads rows, and remembers which columns stood for what; `given` are names of columns by field.

    Example:
        reader = RowReader({"answer": "RESULT"})
        problem, has_id = reader.read({"question": "1 + 1?", "RESULT": 2}, "row 1", "")
    """

    def __init__(self, given: Mapping[str, str]) -> None:
        own = {field: column.strip().lower() for field, column in given.items()}
        self._names = {
            field: (own[field],) if field in own else tuple(name for name in names if name not in own.values())
            for field, names in COLUMNS.items()
        }
        self._given = dict(given)
        self.renamed: dict[str, str] = {}  # column to field
        self.num_rows = self.without_answer = 0
        self._others: dict[str, None] = {}
        self._columns: dict[str, str] = {}  # all that there are, by their names in lower case

    def is_row(self, source: Mapping[str, Any]) -> bool:
        """Whether a mapping is one problem, not several by name."""
        names = self._names["question"]
        return any(str(name).strip().lower() in names and isinstance(source[name], str) for name in source)

    def as_rows(self, source: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The rows of a mapping of columns, each a list; None for another mapping."""
        names = [name for name in source if str(name).strip().lower() in self._names["question"]]
        if not names or not all(isinstance(column, list | tuple) for column in source.values()):
            return None
        lengths = {str(name): len(column) for name, column in source.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns have different lengths ({lengths}); give each problem a value in each")
        return [dict(zip(source, values, strict=True)) for values in zip(*source.values(), strict=True)]

    def read(self, row: Mapping[str, Any], where: str, source: str) -> tuple[Problem, bool]:
        """One row as a problem, and whether the row has an id; DataError names `where` and the field."""
        by_name = {str(column).strip().lower(): column for column in row}
        self._columns |= by_name
        columns = {  # field to the columns that it may be read from, in order
            field: [by_name[name] for name in names if name in by_name and not _is_missing(row[by_name[name]])]
            for field, names in self._names.items()
        }
        for field in ("question", "answer", "reference"):
            if len({str(row[column]).strip() for column in columns[field]}) > 1:
                both = " and ".join(columns[field])
                raise DataError(f"{where}: the fields {both} are both there and differ; give one of them")
        for field in ("question", "answer"):
            close = difflib.get_close_matches(field, by_name, n=1, cutoff=0.8)
            if close and not columns[field] and field not in self._given and close[0] not in COLUMNS[field]:
                raise DataError(f"{where}, field {by_name[close[0]]}: there is no such field; did you mean {field}?")
        texts = {field: _text(row[found[0]], where, found[0]) for field, found in columns.items() if found}
        used = {found[0]: field for field, found in columns.items() if found}
        self.renamed |= {column: field for column, field in used.items() if column != field}
        question, answer, reference = (texts.get(field, "") for field in ("question", "answer", "reference"))
        if not question:
            expected = self._given.get("question", "question (or problem)")
            raise DataError(
                f"{where}: there is no text in the field {expected}; its fields are {', '.join(map(str, row))}: "
                f"{_NAME_THEM.format('question=NAME,answer=NAME')}"
            )
        if "####" in answer and not reference:
            self.renamed[f"{columns['answer'][0]} before ####"] = "reference"
            reference, answer = answer, answer.rpartition("####")[2].strip()
        if marked := _MARK.search(reference):
            answer, reference = answer or marked[1].strip(), reference[: marked.start()]
        reference = _NOTE.sub("", reference)
        if not answer and reference:
            bare = not boxed(reference) and len(reference) <= _ANSWER and "\n" not in reference
            answer, reference = (reference, "") if bare else (extract_answer(reference) or "", reference)
        elif boxed(answer):
            answer = extract_answer(answer) or answer
        check_is_no_prose(answer, f"{where}, field {(columns['answer'] or columns['reference'] or ['answer'])[0]}")
        known = {column for field in ("question", "answer", "reference") for column in columns[field]} | used.keys()
        others = {column: _plain(value) for column, value in row.items() if column not in known}
        metadata = {str(column): value for column, value in others.items() if value is not None}
        metadata |= metadata.pop("metadata", None) or {}  # of a problem that `to_json` wrote
        self._others |= dict.fromkeys(metadata)
        self.num_rows, self.without_answer = self.num_rows + 1, self.without_answer + (not answer)
        name = texts.get("id") or as_problem(question).id
        where_from = texts.get("source") or source
        return Problem(
            id=name,
            question=question,
            answer=answer or None,
            reference=reference or None,
            source=where_from,
            metadata=metadata,
        ), "id" in texts

    def check(self, where: str) -> None:
        """Raise DataError for a column that was given and is in no row."""
        for field, column in self._given.items():
            if self.num_rows and column.strip().lower() not in self._columns:
                there = ", ".join(map(str, self._columns.values()))
                raise DataError(
                    f"{where}: columns says {field}={column}, but there is no such column; there are {there}"
                )

    def summary(self, *, is_file: bool) -> str:
        """What was read as what, and how many have no answer, on one line; "" where there is nothing to say."""
        total = self.num_rows
        missing = self.without_answer if is_file or total > 1 else 0  # one question is meant to have none
        parts = [", ".join(f"{column} read as {field}" for column, field in self.renamed.items())]
        if self._others and (self.renamed or missing == total > 0):
            parts.append(f"kept beside them: {', '.join(self._others)}")
        if missing and missing == total and self._others:
            parts.append(f"none has an answer; if a column holds it, {_NAME_THEM.format('answer=NAME')}")
        elif missing and (missing < total or is_file):
            parts.append(f"{'none has an' if missing == total else f'{missing:,} have no'} answer to grade by")
        return "; ".join(filter(None, parts))


def check_is_no_prose(gold: str | None, where: str) -> None:
    """Raise DataError where a gold answer is a sentence about its answer, which no prediction would equal.

    >>> check_is_no_prose("12 apples", "row 1")
    """
    text = _TEXT.sub(" ", gold or "")
    max_words = 3 if "=" in text and text.rstrip().endswith(".") else _MOST_WORDS
    if gold and not boxed(gold) and (_PROSE.search(text) or len(_WORD.findall(text)) > max_words):
        raise DataError(f"{where}: {gold!r:.80} is prose; give the answer alone, in a box, or behind ####")


def _is_missing(value: Any) -> bool:
    """Whether there is nothing: None, an empty list, a blank text, and NaN, as tables of numbers have it."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)


def _text(value: Any, where: str, column: str) -> str:
    """A cell as a text. Of a list (OlympiadBench has them) of answers all of them, of solutions the first."""
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's
    if isinstance(value, list | tuple) and column.lower() in (*COLUMNS["answer"], *COLUMNS["reference"]):
        several = [_text(part, where, "") for part in value]
        return ", ".join(several) if column.lower() in COLUMNS["answer"] else several[0]
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers in which one is missing
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}, field {column}: it is {value!r:.60}; write it as a text")
    return encodable(str(value)).strip()


def _plain(value: Any) -> Any:
    """A value as JSON gives it back; None where there is none, as for images and for what is missing."""
    value = value.tolist() if hasattr(value, "tolist") else value
    try:
        return None if _is_missing(value) else json.loads(encodable(json.dumps(value)))
    except (TypeError, ValueError):
        return None
