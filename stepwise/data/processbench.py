"""Rows in the columns of ProcessBench (arXiv 2412.06559), read and written at the boundary.

A row has `id`, `generator`, `problem`, `steps`, `final_answer_correct` and `label`: the 0-based index of the earliest
wrong step, -1 where there is none. Files are one JSON array or JSON Lines. Two columns more are read where they are
there: `reference`, a solution of the problem, and `scores`, which maps names of scorers to one score per step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stepwise.data.tables import read_table
from stepwise.errors import DataError
from stepwise.models.scorers.base import scores_fault
from stepwise.types import Localization, Problem, Step, Trace


class ProcessBenchRow(NamedTuple):
    """One annotated solution. `final_answer_correct` is None where the row does not say.

    >>> row = from_row({"id": "1", "problem": "1 + 1?", "steps": ["1 + 1 = 3."], "label": 0}, "row 1")
    >>> row.localization.first_error
    0
    """

    problem: Problem
    trace: Trace
    localization: Localization
    final_answer_correct: bool | None = None


def from_row(row: Mapping[str, Any], where: str = "row", *, scores: str | None = None) -> ProcessBenchRow:
    """One row as library types; step texts are kept to the letter. Raises DataError naming `where`, field and value.

    The generator becomes the author of every step. A label of -1 becomes `first_error=None`. `scores` names the scorer
    whose published scores become those of the steps.

    >>> row = {"problem": "What is 2 + 3?", "steps": ["2 + 3 = 6.", "So it is 6."], "label": 0}
    >>> from_row(row).localization.first_error
    0
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {row!r}; it must be an object with problem, steps and label")
    steps = _field(row, "steps", list, where)
    if not steps:
        raise DataError(f"{where}, field steps: it is empty; an attempt has at least one step")
    for i, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise DataError(f"{where}, field steps[{i}]: {step!r} is no step; it must be a text, and not blank")
    label = _field(row, "label", int, where)
    if not -1 <= label < len(steps):
        raise DataError(f"{where}, field label: {label!r}; it must lie in -1..{len(steps) - 1} (-1: no wrong step)")
    correct = _field(row, "final_answer_correct", bool, where, optional=True)
    problem = Problem(
        id=_field(row, "id", str, where, optional=True) or where,
        question=_field(row, "problem", str, where),
        reference=_field(row, "reference", str, where, optional=True),
        source="processbench",
    )
    author = _field(row, "generator", str, where, optional=True) or "unknown"
    values = [None] * len(steps) if scores is None else _scores(row, scores, len(steps), where)
    written = (Step(step, author, score) for step, score in zip(steps, values, strict=True))
    trace = Trace(problem, tuple(written), "eos")
    if trace.answer is not None:
        trace = Trace(problem, trace.steps, "answer")
    return ProcessBenchRow(problem, trace, Localization(None if label < 0 else label), correct)


def read_rows(path: str | Path, *, scores: str | None = None) -> list[ProcessBenchRow]:
    """All rows of a file, as `from_row` reads them. Raises DataError naming file, row (counted from 1) and field.

    Example:
        rows = read_rows("processbench/gsm8k.json")
        print(sum(row.localization.first_error is None for row in rows))  # solutions without an error
    """
    rows, where = read_table(path)
    return [from_row(row, f"{where}, row {i}", scores=scores) for i, row in enumerate(rows, 1)]


def _scores(row: Mapping[str, Any], name: str, steps: int, where: str) -> list[float]:
    """The published scores of one scorer: one per step, each in [0, 1]."""
    published = _field(row, "scores", dict, where)
    if name not in published:
        raise DataError(f"{where}, field scores: there is no {name!r}; there are {', '.join(published) or 'none'}")
    values = published[name]
    fault = scores_fault(values, steps) if isinstance(values, list) else f"{values!r} is no list"
    if fault:
        raise DataError(f"{where}, field scores.{name}: {fault}")
    return [float(value) for value in values]


def _field(row: Mapping[str, Any], name: str, kind: type, where: str, *, optional: bool = False) -> Any:
    """The value of one column, of exactly that type (True is not a label)."""
    value = row.get(name)
    if value is None and optional:
        return None
    if type(value) is not kind:
        problem = "is missing" if name not in row else f"is {value!r}, a {type(value).__name__}"
        raise DataError(f"{where}, field {name}: it {problem}; it must be {kind.__name__}")
    return value
