"""Find the first error of an attempt at a problem, and show what is said of each step.

[critic], [models.critic] and [scorer] of the configuration say who is asked, and how.
"""

from __future__ import annotations

import sys
from typing import Any

from rich.padding import Padding

from stepwise.config import Config
from stepwise.critics import ErrorLocalizer
from stepwise.lab.problems import is_lab_question
from stepwise.report.terminal import printable, show_localization
from stepwise.runs.plan import PlannedCalls, plan_localizing
from stepwise.runs.shell import Run, complain, program

from .attempts import FORMS, Attempt, AttemptOptions, asked, notes, plain, read_attempt


def _plan(config: Config, args: AttemptOptions) -> list[PlannedCalls]:
    return plan_localizing(config, [read_attempt(args).size])


@program(AttemptOptions, doc=f"{__doc__}\n{FORMS}", plan=_plan, resumable=False)
def main(run: Run[AttemptOptions]) -> int:
    attempt = read_attempt(run.args)
    found = localized(run.config, attempt)
    if run.args.as_json:
        run.say_json(as_row(attempt, found))
    else:
        show(run, attempt, found)
    return 0 if found.failure is None else 1


def localized(config: Config, attempt: Attempt) -> Any:
    """The prediction of the configuration's ErrorLocalizer."""
    found = asked(ErrorLocalizer.from_config(config), problem=attempt.problem, steps=attempt.steps)
    by_lab = config.scorer.model if config.critic.method == "scorer" else config.models.critic.model
    if by_lab.startswith("llamacpp/lab-") and not is_lab_question(attempt.problem.question):
        found.warnings = [*found.warnings, f"{by_lab} knows lab problems only, and this is none: set another model"]
    return found


def show(run: Run[Any], attempt: Attempt, found: Any) -> None:
    """Print problem, steps with verdicts, and what it took; what went wrong goes to standard error."""
    run.console.print(printable(attempt.problem.id, "bold"))
    run.console.print(Padding(printable(attempt.problem.question), (0, 0, 1, 2), expand=False))
    if found.failure is None:
        show_localization(attempt.steps, found, run.console)
        if attempt.label is not None:
            truth = "no error" if attempt.label < 0 else f"step {attempt.label}"
            agrees = (found.first_error if found.first_error is not None else -1) == attempt.label
            run.say(f"the row is labelled: {truth} ({'the same' if agrees else 'not the same'})")
    else:
        complain(f"no verdict: {found.failure}")
    for line in notes(attempt, found):
        run.say(line)


def as_row(attempt: Attempt, found: Any) -> dict[str, Any]:
    """The result as plain JSON; where `failure` is not null there is no verdict."""
    row: dict[str, Any] = {"id": attempt.problem.id, "steps": attempt.steps, "label": attempt.label}
    row |= {name: found.get(name) for name in ("first_error", "critical_error", "verdicts", "scores", "failure")}
    row["checks"] = [plain(check) for check in found.get("checks") or []]
    row["reason"] = found.localization.reason if found.localization else ""
    votes = found.get("votes")
    row["votes"] = votes and {"none" if first is None else str(first): n for first, n in votes.items()}
    return row | {"warnings": found.warnings, "repairs": found.repairs, "usage": plain(found.usage)}


if __name__ == "__main__":
    sys.exit(main())
