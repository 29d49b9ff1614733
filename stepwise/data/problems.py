"""Problems: one reader for every program and every function that takes problems.

What the columns of a row mean is in `columns`.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stepwise.data.columns import RowReader, check_is_no_prose, columns_of
from stepwise.data.tables import SUFFIXES, file_of_split, parse_table, read_hub, read_table
from stepwise.errors import DataError, MissingDependencyError
from stepwise.grading import check_gold
from stepwise.lab.problems import LabProblem, generate
from stepwise.types import Problem, as_problem


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

_HUB = re.compile(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.-]+))?")
_NAME = re.compile(r"([\w-]+)(?::(\w+))?")
_FILE = re.compile(r"[~\w./\\-]*[\w)]\.[A-Za-z]{2,7}")
_log = logging.getLogger(__package__)


def load_problems(
    source: Any, *, split: str = "", n: int | None = None, columns: str | Mapping[str, str] | None = None
) -> list[Problem]:
    r"""The problems of `source`, the first `n` where that is given.

    `source` is a file (JSON Lines, JSON, CSV, parquet), a directory with a file for each split, a named set of `SETS`
    ("gsm8k", "gsm8k:train", "math500"; a local file where there is one, see `PLACES`, else the hub), a data set of the
    hub ("ORG/NAME", "ORG/NAME/CONFIG:SPLIT"), a `datasets` object or data frame, one problem as a `Problem`, a mapping,
    a `dspy.Example` or the text of a question, or an iterable of such problems (or the lab's), in which a text is
    always a question. `split` is what is taken of several where the name does not say. `columns` are names of columns
    that are not known, {"question": "QUERY", "answer": "RESULT"} or "question=QUERY,answer=RESULT". One line of the log
    (a warning, so that it is seen) says which columns were read as what, where they have other names than ours, and
    where there are no answers.

    Raises DataError, with place, row and field, for a source that is missing, empty or not UTF-8, a row without a
    question or with two columns for one field, a column of `columns` that is not there, a gold answer that is prose,
    and an id that occurs twice; MissingDependencyError where a format needs a package that is not installed.

    >>> load_problems("What is 2 + 3?")[0].question
    'What is 2 + 3?'
    >>> row = {"problem": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5 in all.\n#### 5", "level": 1}
    >>> problem = load_problems([row])[0]
    >>> problem.answer, problem.reference, problem.metadata
    ('5', '2 + 3 = 5 in all.', {'level': 1})
    """
    if n is not None and (not isinstance(n, int) or n < 0):
        raise DataError(f"n is {n!r}; give how many problems to read, or None for all")
    reader, is_file = RowReader(columns_of(columns)), isinstance(source, str | Path)
    if isinstance(source, str):
        text = source.strip()
        if (opened := _open_name(text, split)) is None:
            return load_problems([as_problem(text)], n=n)
        rows, where, name = opened
    elif isinstance(source, Problem) or (isinstance(row := _mapping(source), Mapping) and reader.is_row(row)):
        rows, where, name = [source], "the row", ""
    elif isinstance(row, Mapping) and (columns_of_rows := reader.as_rows(row)) is not None:
        rows, where, name = columns_of_rows, "the dataset", ""
    else:
        (rows, where), name = read_table(source, prefer=split), ""
    if not rows and is_file:
        raise DataError(f"{where} has no rows; give at least one problem, one JSON object per line")
    problems, places = list[Problem](), dict[str, str]()
    for number, row in enumerate(rows[:n], 1):
        place = f"{where}, row {number}"
        row = row.problem if isinstance(row, LabProblem) else _mapping(row)
        if isinstance(row, Path):
            problems += load_problems(row, split=split, columns=columns)
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
            check_is_no_prose(problem.answer, f"{place} ({problem.id!r})")
        else:
            raise DataError(f"{place} is {row!r:.60}; it must be an object with question and answer, or a question")
        problems.append(problem)
    reader.check(where)
    if words := reader.summary(is_file=is_file):
        _log.warning("%s: %s problems; %s", where, f"{len(problems):,}", words)
    return problems


def named_problems(
    source: str | None, split: str, n: int | None, lab: int | None = None, *, columns: str | None = None
) -> list[Problem]:
    """What a program takes: the first `n` problems of `source` ("-" is standard input), or of `lab` of a lab split.

    Raises DataError where it is missing, empty, repeats ids or holds a gold answer that cannot be graded.

    >>> len(named_problems(None, "test", None, 3))
    3
    """
    if source is None:
        return [made.problem for made in generate(split, lab or n or 50)[:n]]
    try:
        rows = _piped(sys.stdin.buffer.read()) if source == "-" else source
        problems = load_problems(rows, split="train" if split == "val" else split, n=n, columns=columns)
        for problem in problems:
            if problem.answer is not None:
                check_gold(problem)
    except DataError as error:
        raise error if source in str(error) else DataError(f"--problems {source}: {error}") from None
    if not problems:
        raise DataError(f"--problems {source} holds no problems; write one JSON object per line")
    return problems


def _piped(data: bytes) -> list[Any]:
    """Rows, or the one question that the text is."""
    text = data.decode("utf-8-sig", "replace").strip()
    if text.startswith(("{", "[")):
        return parse_table(data, "standard input")
    return [text] if text else []


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

    def __str__(self) -> str:
        return self.summary()

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
    on_hub, is_file = _HUB.fullmatch(text), _FILE.fullmatch(text)
    if is_file and (not on_hub or Path(text).parent.is_dir() or difflib.get_close_matches(Path(text).suffix, SUFFIXES)):
        raise DataError(f"{text}: no such file; give {SOURCES.partition(': ')[2]}")
    if on_hub:
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
