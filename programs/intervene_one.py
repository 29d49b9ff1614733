"""Find the first error of an attempt at a problem, and propose a step to put in its place (InT, arXiv 2601.14209).

[critic] and [models.critic] of the configuration say who is asked, and how.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from stepwise.config import Config
from stepwise.critics import InterventionProposer
from stepwise.errors import DataError
from stepwise.report.terminal import show_intervention
from stepwise.runs.plan import PlannedCalls, plan_localizing, plan_proposing
from stepwise.runs.shell import Run, complain, program

from .attempts import FORMS, Attempt, AttemptOptions, asked, notes, plain, read_attempt
from .localize import as_row, localized, show


class _Options(AttemptOptions):
    first_error: int | None = None
    """it is step N (from 0): do not look for it"""


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    sizes = [_read(args).size]
    return [*(plan_localizing(config, sizes) if args.first_error is None else ()), *plan_proposing(config, sizes)]


@program(_Options, doc=f"{__doc__}\n{FORMS}", plan=_plan, resumable=False)
def main(run: Run[_Options]) -> int:
    attempt, first = _read(run.args), run.args.first_error
    found = localized(run.config, attempt) if first is None else None
    if found is not None and not run.args.as_json:
        show(run, attempt, found)
    if found is not None:
        first = found.first_error
    made = None if first is None or (found is not None and found.failure) else _proposed(run.config, attempt, first)
    if run.args.as_json:
        run.say_json(_row(attempt, first, found, made))
    elif made is not None:
        _show(run, attempt, made)
    return int(any(part is not None and part.failure is not None for part in (found, made)))


def _read(args: _Options) -> Attempt:
    attempt, first = read_attempt(args), args.first_error
    if first is not None and not 0 <= first < len(attempt.steps):
        raise DataError(f"--first-error is {first}; give a step of the attempt, 0 to {len(attempt.steps) - 1}")
    return attempt


def _proposed(config: Config, attempt: Attempt, first: int) -> Any:
    proposer = InterventionProposer.from_config(config)
    return asked(proposer, problem=attempt.problem, steps=attempt.steps, first_error=first)


def _show(run: Run[_Options], attempt: Attempt, made: Any) -> None:
    if made.failure is not None:
        complain(f"no intervention: {made.failure}")
    else:
        for candidate, review in zip(made.candidates, made.reviews, strict=True):
            show_intervention(attempt.steps, candidate, review, run.console)
    for line in notes(attempt, made):
        run.say(line)


def _row(attempt: Attempt, first: int | None, found: Any, made: Any) -> dict[str, Any]:
    """The result as plain JSON; `intervention` is null where nothing is wrong, and where `failure` says why."""
    row: dict[str, Any] = {"id": attempt.problem.id, "steps": attempt.steps, "first_error": first}
    row["localization"] = found and as_row(attempt, found)
    row |= {"intervention": None, "repaired": None, "candidates": [], "failure": found and found.failure}
    row |= {"warnings": [], "repairs": [], "usage": None}
    if made is None:
        return row
    row |= {"failure": made.failure, "warnings": made.warnings, "repairs": made.repairs, "usage": plain(made.usage)}
    for candidate, review in zip(made.candidates, made.reviews, strict=True):
        row["candidates"].append({**dataclasses.asdict(candidate), "review": review and review.toDict()})
    if made.intervention is not None:
        step = made.intervention
        row["intervention"] = dataclasses.asdict(step)
        row["repaired"] = [*attempt.steps[: step.location], step.content]
    return row


if __name__ == "__main__":
    sys.exit(main())
