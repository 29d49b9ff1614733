"""What is said of labelled attempts, kept as it comes, so that none is asked about twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

from stepwise.data.localization import Outcome
from stepwise.data.processbench import ProcessBenchRow
from stepwise.records import record


@record(extra="forbid")
class AskedRow:
    """What a scorer (`scores`, one per step) or a module said of the attempt with this `attempt_key`.

    >>> AskedRow("a1b2", Outcome(2)).outcome.first_error
    2
    """

    key: str
    outcome: Outcome
    scores: tuple[float, ...] = ()


Ask = Callable[[dict[str, ProcessBenchRow], Callable[[AskedRow], None]], object]
"""Asks about attempts, by key, and hands on what is said of each as it comes."""


def attempt_key(row: ProcessBenchRow) -> str:
    """The same for rows that are the same to whoever reads them: question, reference and steps.

    Example:
        asked = {attempt_key(row): row for row in read_rows("gsm8k.json")}
    """
    texts = (row.problem.question, repr(row.problem.reference), *(step.text for step in row.trace.steps))
    return hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()[:32]


def remembered(
    before: Iterable[AskedRow], rows: Sequence[ProcessBenchRow], keep: Callable[[AskedRow], None], ask: Ask
) -> dict[str, AskedRow]:
    """What is said of every attempt, by key: of those that an earlier start asked about, what it kept (`before`); each
    new one is handed to `keep` as it comes. A failure is asked about again.

    Example:
        said = remembered(run.rows("asked.jsonl", AskedRow), rows, partial(run.write, "asked.jsonl"), ask)
    """
    wanted = {attempt_key(row): row for row in rows}
    known = {row.key: row for row in before if row.key in wanted and not row.outcome.error}
    lock = Lock()

    def hear(row: AskedRow) -> None:
        with lock:
            keep(row)
            known[row.key] = row

    if todo := {key: row for key, row in wanted.items() if key not in known}:
        ask(todo, hear)
    return known


def localizing(module: Any, concurrency: int) -> Ask:
    """Asks `module(problem=, steps=)`, and not DSPy's cache, so that usage is what the work costs.

    Example:
        said = remembered([], rows, print, localizing(sw.ErrorLocalizer.from_config(config), 4))
    """
    from stepwise.critics.module import run_all  # DSPy is heavy, and programs import this file

    for predictor in getattr(module, "predictors", list)():
        predictor.lm = predictor.lm and predictor.lm.copy(cache=False)

    def ask(todo: dict[str, ProcessBenchRow], keep: Callable[[AskedRow], None]) -> None:
        keys = list(todo)

        def on_result(index: int, made: Any) -> None:
            error = " ".join((made.failure or "").split())
            first = None if error else made.first_error
            keep(AskedRow(keys[index], Outcome(first, error, len(made.repairs), made.usage)))

        items = [{"problem": row.problem, "steps": [step.text for step in row.trace.steps]} for row in todo.values()]
        run_all(module, items, concurrency=concurrency, progress="localizing", on_result=on_result)

    return ask
