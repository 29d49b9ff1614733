"""An attempt at a problem as `localize` and `intervene_one` take it: JSON or plain text, from a file or a pipe."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter
from pydantic import PositiveInt, ValidationError

from stepwise.critics.inputs import as_steps
from stepwise.data.tables import parse_table
from stepwise.errors import BackendError, DataError
from stepwise.runs.shell import PIPE, POSITIONAL, Options
from stepwise.steps import encodable
from stepwise.types import Problem, Trace, Usage, as_problem, from_json

FORMS = """FILE (or standard input) holds one attempt:

- JSON: an object with question (or problem), steps (a list of texts) or solution (one text), and optionally reference,
  answer and id; a row of ProcessBench, or of a traces.jsonl, is taken as it is, and of a file with several the one that
  --row names
- text: the problem, a line ---, the attempt (steps end at blank lines), and optionally a line --- and a reference"""
_FIELDS = ("id", "question", "problem", "steps", "solution", "reference", "answer", "label")


class Attempt(NamedTuple):
    """A problem, the steps of an attempt at it, and the number of the first wrong one where the row is labelled (-1:
    there is none).
    """

    problem: Problem
    steps: list[str]
    label: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Bytes of all its texts, and its number of steps."""
        texts = (self.problem.question, self.problem.reference or "", *self.steps)
        return sum(len(text.encode("utf-8", "replace")) for text in texts), len(self.steps)


class AttemptOptions(Options):
    """Which attempt, and in which form the result is printed."""

    neutral = ("as_json",)

    file: Annotated[Path | None, POSITIONAL, PIPE] = None
    """the attempt; - or nothing: standard input"""
    row: PositiveInt | None = None
    """the Nth attempt of a file with several, from 1"""
    as_json: Annotated[bool, Parameter("--json")] = False
    """print one JSON object on one line"""


def read_attempt(args: AttemptOptions) -> Attempt:
    """The attempt that the arguments name; raises DataError naming the file, the field, the value and the remedy."""
    file = None if args.file == Path("-") else args.file
    where = "standard input" if file is None else str(file)
    if file is None and sys.stdin.isatty():
        raise DataError("there is no FILE, and nothing is piped in; give a file (--help says what it holds) or a pipe")
    if file is not None and not file.is_file():
        raise DataError(f"{where}: no such file; give a file with one attempt (--help says how it looks)")
    data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error}); save it as UTF-8") from None
    parts = re.split(r"^---[ \t]*$", text, flags=re.MULTILINE)
    if len(parts) > 1 or not text.lstrip().startswith(("{", "[")):
        return _plain(parts, where)
    try:
        rows = parse_table(data, where)
    except DataError as error:
        raise DataError(f"{error}, or write plain text, a line --- between problem and attempt") from None
    if args.row is None and len(rows) > 1 and isinstance(rows[0], Mapping):
        raise DataError(f"{where} holds {len(rows)} attempts; choose one with --row, 1 to {len(rows)}")
    place = args.row or 1
    if place > len(rows):
        raise DataError(f"--row is {place}, but {where} holds {len(rows)} attempts; give a smaller number")
    return _from_row(rows[place - 1], where if len(rows) == 1 else f"{where}, row {place}")


def asked(module: Any, **item: Any) -> Any:
    """What `module` says; raises BackendError where its language model cannot be reached or refuses."""
    from dspy.utils.exceptions import LMError

    try:
        return module(**item)
    except LMError as error:
        raise BackendError(f"models.critic was asked and failed: {str(error).strip().splitlines()[0]}") from error


def notes(attempt: Attempt, found: Any) -> list[str]:
    """What is to be known beside a result: warnings, repairs, cost."""
    lines = [f"warning: {warning}" for warning in found.warnings]
    lines += [f"a reply could not be read and was asked for again: {reason}" for reason in found.repairs]
    if found.usage.calls:
        used = found.usage
        lines.append(f"calls: {used.calls}, tokens read: {used.prompt_tokens}, written: {used.generated_tokens}")
    return lines


def plain(value: Any) -> Any:
    """`value` as JSON takes it."""
    if isinstance(value, Usage):
        return dataclasses.asdict(value)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _plain(parts: list[str], where: str) -> Attempt:
    if not 2 <= len(parts) <= 3:
        raise DataError(
            f"{where} has {len(parts) - 1} lines ---; it needs one between problem and attempt, and one more before a "
            "reference (or write JSON)"
        )
    for name, text in zip(("problem", "attempt", "reference"), parts, strict=False):
        if not text.strip():
            raise DataError(f"{where}: the {name} is empty; write it, or leave out the line --- of a reference")
    problem = as_problem(parts[0].strip())
    reference = parts[2].strip() if len(parts) == 3 else None
    return Attempt(Problem(problem.id, problem.question, reference=reference), as_steps(parts[1]))


def _from_row(row: Any, where: str) -> Attempt:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {str(row)[:80]!r}; it must be an object with question and steps")
    if isinstance(row.get("problem"), Mapping):
        try:
            trace = from_json(Trace, json.dumps(row))
        except ValidationError as error:
            detail = error.errors()[0]
            field = ".".join(map(str, detail["loc"]))
            raise DataError(f"{where}, field {field}: {detail['msg']}; give a row as traces.jsonl has it") from None
        return Attempt(trace.problem, as_steps(trace))
    for name in row:
        close = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.8)
        if name not in _FIELDS and close and close[0] not in row:
            raise DataError(f"{where}, field {name}: there is no such field; did you mean {close[0]}?")
    question = _one_of(row, ("question", "problem"), where)
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}, field question: it is {question!r}; give the text of a problem")
    question, texts = encodable(question), {}
    for name in ("id", "reference", "answer"):
        value = row.get(name)
        if not isinstance(value, str | None):
            raise DataError(f"{where}, field {name}: it is {value!r}; write it as a text, in quotes")
        texts[name] = value and encodable(value)
    steps, label = as_steps(_one_of(row, ("steps", "solution"), where)), row.get("label")
    if label is not None and (type(label) is not int or not -1 <= label < len(steps)):
        raise DataError(f"{where}, field label: it is {label!r}; give a step's number, or -1 for no error")
    named = texts["id"] or as_problem(question).id
    return Attempt(Problem(named, question, texts["answer"], texts["reference"]), steps, label)


def _one_of(row: Mapping[str, Any], names: tuple[str, str], where: str) -> Any:
    given = [name for name in names if row.get(name) is not None]
    if len(given) != 1:
        what = "are both there" if given else "are both missing"
        raise DataError(f"{where}: the fields {names[0]} and {names[1]} {what}; give one of them")
    return row[given[0]]
