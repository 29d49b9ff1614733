r"""Problems: one reader for every program and every function that takes problems.

Columns are known by any of the names that they have in GSM8K, MATH-500, AIME, OlympiadBench, ProcessBench and
MathArena's sets (`COLUMNS`), in whatever case; other columns stay in `Problem.metadata`. GSM8K keeps solution and
answer in `answer`, with `####` between them and the calculator's notes `<<48/2=24>>` in it: answer and reference are
taken apart, and the notes out. A `solution` without an `answer` beside it holds the answer in its last box, or is the
answer where it has no box and is one short line.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stepwise.data.tables import SUFFIXES, file_of_split, read_hub, read_table
from stepwise.errors import DataError, MissingDependencyError
from stepwise.grading import check_gold
from stepwise.lab.problems import LabProblem
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


class _Set(NamedTuple):
    hub: str
    splits: tuple[str, ...]  # the first is what the name alone stands for
    config: str | None = None


SETS = {
    "gsm8k": _Set("openai/gsm8k", ("test", "train"), "main"),
    "math500": _Set("HuggingFaceH4/MATH-500", ("test",)),
    "aime24": _Set("HuggingFaceH4/aime_2024", ("train",)),
    "aime25": _Set("math-ai/aime25", ("test",)),
    "aime26": _Set("MathArena/aime_2026", ("train",)),
    "hmmt_feb_2025": _Set("MathArena/hmmt_feb_2025", ("train",)),
    "hmmt_nov_2025": _Set("MathArena/hmmt_nov_2025", ("train",)),
    "hmmt_feb_2026": _Set("MathArena/hmmt_feb_2026", ("train",)),
    "olympiadbench": _Set("Hothan/OlympiadBench", ("train",), "OE_TO_maths_en_COMP"),
    "processbench": _Set("Qwen/ProcessBench", ("gsm8k", "math", "olympiadbench", "omnimath")),
}
"""Data sets that have a short name. NAME:SPLIT is another split than the first."""
PLACES = "STEPWISE_DATA"
"""The environment variable with a directory in which named sets are looked for, beside . and ./data."""
SOURCES = "problems: a file (JSON Lines, JSON, CSV, parquet), a named set such as gsm8k, or ORG/NAME on the hub"
"""What programs say of an option that `load_problems` reads."""

_ANSWER = 60  # characters of the longest text that counts as an answer where nothing says that it is one
_NOTE = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")  # of GSM8K's calculator
_MARK = re.compile(r"\s*^####\s*(\S[^\n]*)\s*\Z", re.MULTILINE)
_HUB = re.compile(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.-]+))?")
_NAME = re.compile(r"([\w-]+)(?::(\w+))?")
# A gold that says something about its answer: a verb between words and a value, or far more words than an answer has.
_PROSE = re.compile(r"(?:^|\s)(?:is|are|was|were|equals?|so|therefore|thus|hence|because|answer)\b", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm)\s*\{[^{}]*\}|\$[^$]*\$")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_MOST_WORDS = 12
_log = logging.getLogger(__package__)


def load_problems(source: Any, *, split: str = "", n: int | None = None) -> list[Problem]:
    r"""The problems of `source`, the first `n` where that is given.

    `source` is a file (JSON Lines, JSON, CSV, parquet), a directory with a file for each split, a named set of `SETS`
    ("gsm8k", "gsm8k:train", "math500"; a local file where there is one, see `PLACES`, else the hub), a data set of the
    hub ("ORG/NAME", "ORG/NAME/CONFIG:SPLIT"), a `datasets` object or data frame, one problem as a `Problem`, a mapping,
    a `dspy.Example` or the text of a question, or an iterable of such problems (or the lab's), in which a text is
    always a question. `split` is what is taken of several where the name does not say. One line of the log (a warning,
    so that it is seen) says which columns were read as what, where they have other names than ours.

    Raises DataError, with place, row and field, for a source that is missing, empty or not UTF-8, a row without a
    question or with two columns for one field, a gold answer that is prose, and an id that occurs twice;
    MissingDependencyError where a format needs a package that is not installed.

    >>> load_problems("What is 2 + 3?")[0].question
    'What is 2 + 3?'
    >>> row = {"problem": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5 in all.\n#### 5", "level": 1}
    >>> problem = load_problems([row])[0]
    >>> problem.answer, problem.reference, problem.metadata
    ('5', '2 + 3 = 5 in all.', {'level': 1})
    """
    if n is not None and (not isinstance(n, int) or n < 0):
        raise DataError(f"n is {n!r}; give how many problems to read, or None for all")
    if isinstance(source, str):
        text = source.strip()
        if (opened := _open_name(text, split)) is None:
            return load_problems([as_problem(text)], n=n)
        rows, where, name = opened
    elif isinstance(source, Problem) or (isinstance(row := _mapping(source), Mapping) and _is_row(row)):
        rows, where, name = [source], "the row", ""
    else:
        (rows, where), name = read_table(source, prefer=split), ""
    if not rows and isinstance(source, str | Path):
        raise DataError(f"{where} has no rows; give at least one problem, one JSON object per line")
    reader, problems, places = _RowReader(), list[Problem](), dict[str, str]()
    for number, row in enumerate(rows[:n], 1):
        place = f"{where}, row {number}"
        row = row.problem if isinstance(row, LabProblem) else _mapping(row)
        if isinstance(row, Path):
            problems += load_problems(row, split=split)
            continue
        if isinstance(row, Mapping):
            problem, has_id = reader.read(row, place, name)
            if problem.id in places and not has_id:  # the same question again
                problem = dataclasses.replace(problem, id=f"{problem.id}-{number}")
            if problem.id in places:
                raise DataError(
                    f"{place}: the id {problem.id!r} occurs twice, also in {places[problem.id]}; ids must differ"
                )
            places[problem.id] = place
        elif isinstance(row, Problem | str) and (not isinstance(row, str) or row.strip()):
            problem = as_problem(row)
            _check_is_no_prose(problem.answer, f"{place} ({problem.id!r})")
        else:
            raise DataError(f"{place} is {row!r:.60}; it must be an object with question and answer, or a question")
        problems.append(problem)
    if reader.renamed:
        _log.warning("%s: %s problems; %s", where, f"{len(problems):,}", reader.summary())
    return problems


class _RowReader:
    """Reads rows, and remembers which columns stood for what."""

    def __init__(self) -> None:
        self.renamed: dict[str, str] = {}  # column to field
        self._others: dict[str, None] = {}

    def read(self, row: Mapping[str, Any], where: str, source: str) -> tuple[Problem, bool]:
        """One row as a problem, and whether the row has an id; DataError names `where` and the field."""
        by_name = {str(column).strip().lower(): column for column in row}
        columns = {  # field to the columns that it may be read from, in order
            field: [by_name[name] for name in names if name in by_name and not _is_missing(row[by_name[name]])]
            for field, names in COLUMNS.items()
        }
        for field in ("question", "answer", "reference"):
            if len({str(row[column]).strip() for column in columns[field]}) > 1:
                both = " and ".join(columns[field])
                raise DataError(f"{where}: the fields {both} are both there and differ; give one of them")
        for field in ("question", "answer"):
            close = difflib.get_close_matches(field, by_name, n=1, cutoff=0.8)
            if close and not columns[field] and close[0] not in COLUMNS[field]:
                raise DataError(f"{where}, field {by_name[close[0]]}: there is no such field; did you mean {field}?")
        texts = {field: _text(row[found[0]], where, found[0]) for field, found in columns.items() if found}
        used = {found[0]: field for field, found in columns.items() if found}
        self.renamed |= {column: field for column, field in used.items() if column != field}
        question, answer, reference = (texts.get(field, "") for field in ("question", "answer", "reference"))
        if not question:
            raise DataError(
                f"{where}: there is no text in the field question (or problem); its fields are {', '.join(row)}: "
                "rename yours to question, answer, reference and id"
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
        _check_is_no_prose(answer, f"{where}, field {(columns['answer'] or columns['reference'] or ['answer'])[0]}")
        known = {column for field in ("question", "answer", "reference") for column in columns[field]} | used.keys()
        others = {column: _plain(value) for column, value in row.items() if column not in known}
        metadata = {str(column): value for column, value in others.items() if value is not None}
        metadata |= metadata.pop("metadata", None) or {}  # of a problem that `to_json` wrote
        self._others |= dict.fromkeys(metadata)
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

    def summary(self) -> str:
        """What was read as what, on one line."""
        line = ", ".join(f"{column} read as {field}" for column, field in self.renamed.items())
        return line + (f"; kept beside them: {', '.join(self._others)}" if self._others else "")


def _check_is_no_prose(gold: str | None, where: str) -> None:
    """Raise DataError where a gold answer is a sentence about its answer, which no prediction would equal."""
    text = _TEXT.sub(" ", gold or "")
    max_words = 3 if "=" in text and text.rstrip().endswith(".") else _MOST_WORDS
    if gold and not boxed(gold) and (_PROSE.search(text) or len(_WORD.findall(text)) > max_words):
        raise DataError(f"{where}: {gold!r:.80} is prose; give the answer alone, in a box, or behind ####")


@dataclasses.dataclass(frozen=True)
class CheckedProblems:
    """Problems that can be used, and the others with what is wrong with them, by id.

    `without_reference` lists the ids of used problems for which the critic has no reference solution: it is asked in
    its other form, without one.

    >>> CheckedProblems((Problem("p", "1 + 1?", "2"),), {"q": "it has no answer"}, ("p",)).summary()
    '1 problems, 1 left out (q: it has no answer), 1 have no reference solution; the critic is asked without one'
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


def check_problems(source: Any) -> CheckedProblems:
    """Sort out what cannot be graded: no gold answer, or one that does not grade as itself.

    `source` is whatever `load_problems` takes. Raises DataError as it does, and for an id that occurs twice, and where
    no problem is left.

    >>> check_problems([Problem("a", "What is 2 + 3?", "5"), Problem("b", "Why?")]).excluded
    {'b': 'it has no answer to grade by'}
    """
    seen: set[str] = set()
    good, excluded = [], {}
    for problem in load_problems(source):
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
    return CheckedProblems(tuple(good), excluded, bare)


def _open_name(text: str, split: str) -> tuple[list[Any], str, str] | None:
    """Rows, place and name of a file, a named set or a data set of the hub; None for a text that is a question."""
    if Path(text).expanduser().exists() or text.endswith(SUFFIXES):
        return (*read_table(text, prefer=split), "")
    named = _NAME.fullmatch(text)
    by_letters = {name.replace("_", ""): name for name in SETS}  # "MATH-500" is math500
    if named and (name := by_letters.get(re.sub("[-_]", "", named[1].lower()))):
        return _open_set(name, named[2] or "", split)
    if on_hub := _HUB.fullmatch(text):
        name, config, part = on_hub.groups()
        return read_hub(name, config, split=part or "", prefer=split), text, ""
    if named:
        close = difflib.get_close_matches(text, SETS, n=1)
        meant = f"did you mean {close[0]!r}?" if close else f"named sets are {', '.join(SETS)}"
        raise DataError(f"{text!r} is no file, no named set and no question; {meant}")
    return None


def _open_set(name: str, split: str, prefer: str) -> tuple[list[Any], str, str]:
    """The rows of a named set: of a local file, else of the hub."""
    known = SETS[name]
    chosen = split or (prefer if prefer in known.splits else known.splits[0])
    if chosen not in known.splits:
        raise DataError(f"{name} has no split {chosen!r}; there are {', '.join(known.splits)}")
    for folder in (Path(), Path("data"), *(Path(place) for place in [os.environ.get(PLACES)] if place)):
        if (folder / name).is_dir():
            rows, where = read_table(file_of_split(folder / name, "", chosen))
            return rows, where, name
        names = [f"{name}_{chosen}", *([name] if chosen == known.splits[0] else [])]
        for file in (folder / (stem + suffix) for stem in names for suffix in SUFFIXES):
            if file.is_file():
                return (*read_table(file), name)
    try:
        return read_hub(known.hub, known.config, split=chosen), f"{known.hub} ({chosen})", name
    except (DataError, MissingDependencyError) as error:
        raise type(error)(f"{error}, such as {name}.jsonl or data/{name}/{chosen}.jsonl (or set {PLACES})") from None


def _mapping(row: Any) -> Any:
    """A dspy.Example as a mapping, anything else as it is."""
    return row.toDict() if hasattr(row, "toDict") else row


def _is_row(source: Mapping[str, Any]) -> bool:
    return any(str(name).strip().lower() in COLUMNS["question"] and isinstance(source[name], str) for name in source)


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
