"""The checks of candidates that need no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stepwise.interventions.checks.leaks import LeakVerdict, answer_due, check_leak
from stepwise.interventions.checks.sums import false_equations
from stepwise.interventions.rows import Candidate, first_of_each

if TYPE_CHECKING:
    from stepwise.interventions.pipeline import Attempts, Chunk


def check_candidates(candidates: Sequence[Candidate], attempts: Attempts, chunk: Chunk) -> list[Candidate]:
    """The same candidates with what the checks say that need no model; those that failed stay without.

    Example:
        kept = survivors(check_candidates(candidates, attempts, chunk))
    """
    rows = []
    for row in candidates:
        if not row.failed:
            attempt, problem = attempts[row.failure], chunk.problems[row.problem]
            due = answer_due(attempt.trace(problem), row.location)
            prefix = attempt.steps[: row.location]
            leak = check_leak(
                row.content, problem.answer or "", problem=problem.question, prefix=prefix, answer_due=due
            )
            row = dataclasses.replace(row, leak=leak.verdict, leak_reason=leak.reason, leak_text=leak.matched)
        rows.append(row)
    return check_sums(rows) if chunk.settings.check_sums else rows


def check_sums(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates with the first equation in them that is false, where there is one.

    >>> from stepwise.interventions.rows import Made
    >>> row = Candidate("p/r0/c0", "p", "p/r0", 1, "So 10 / 2 = 30.", Made("critic", "", "", 0))
    >>> check_sums([row])[0].unsound
    '10 / 2 = 30'
    """
    false = [[] if row.failed else false_equations(row.content) for row in candidates]
    return [
        dataclasses.replace(row, unsound=equations[0].text) if equations else row
        for row, equations in zip(candidates, false, strict=True)
    ]


def survivors(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates in a solver's form that give nothing away and hold no false equation, the same step at the same place
    of an attempt once.

    >>> from stepwise.interventions.rows import Made
    >>> row = Candidate("p/r0/c0", "p", "p/r0", 1, "So 10 / 2 = 5.", Made("critic", "", "", 0), leak=LeakVerdict.CLEAN)
    >>> [kept.id for kept in survivors([row, row])]
    ['p/r0/c0']
    """
    clean = (row for row in candidates if row.leak is LeakVerdict.CLEAN and not row.unsound and not row.form)
    return first_of_each(clean, lambda row: (row.failure, row.location, row.content))
