"""Watch the lab's weak model solve problems with the strong one called in only where it is needed.

Routes held-out lab problems under ten policies, prints what each cost and solved, and writes a page to look at.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from pydantic import PositiveInt

from stepwise import routing
from stepwise.config import Config
from stepwise.grading import GRADER_VERSION
from stepwise.io import write_text
from stepwise.lab.problems import generate
from stepwise.report import Report, TraceView, summary_table, write_report
from stepwise.routing import Always, Never, Policy, Random, Threshold
from stepwise.routing.compare import Measured, compare, in_words
from stepwise.routing.estimates import by_family
from stepwise.routing.planning import plan_routing
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Problem

POLICIES: tuple[Policy, ...] = (
    Never(),
    Always(),
    *(Random(p) for p in (0.2, 0.5)),
    *(Threshold(t) for t in (0.1, 0.5, 0.9, 0.95, 0.97, 0.98)),
)
MOST_SHOWN = 2
MOST_FIRST = 20


class _Options(Options):
    problems: PositiveInt = 200
    """problems to route"""
    show: int = MOST_SHOWN
    """repaired solutions to print"""


def _problems_of(args: _Options) -> list[Problem]:
    return [made.problem for made in generate("test", args.problems)]


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    return plan_routing(config, POLICIES, _problems_of(args))


def _repaired(measured: list[Measured]) -> list[TraceView]:
    """Solutions that the weak model gets wrong alone and gets right with the fewest escalated steps."""
    alone = next(m for m in measured if m.family == "never")
    routed = [m for m in measured if m.family == "threshold"]
    found: dict[str, tuple[int, TraceView]] = {}
    for m in routed:
        for view, right, was_right in zip(m.views, m.correct, alone.correct, strict=True):
            strong = sum(step.author == "strong" for step in view.trace.steps)
            if right and not was_right and strong < found.get(view.trace.problem.id, (99, None))[0]:
                found[view.trace.problem.id] = (strong, view)
    return [view for _, view in sorted(found.values(), key=lambda pair: pair[0])]


def _first_repairs(measured: list[Measured]) -> list[TraceView]:
    """Every trace, those first in which few strong steps made the difference."""
    repairs = _repaired(measured)[:MOST_FIRST] if any(m.family == "never" for m in measured) else []
    first = {id(view) for view in repairs}
    return [*repairs, *(view for m in reversed(measured) for view in m.views if id(view) not in first)]


def _save(run: Run[_Options], measured: list[Measured]) -> Report:
    """Write the figures and the page; also of a part, after Ctrl-C."""
    report = Report(
        title="Routing lab problems step by step",
        subtitle="A small model that slips, a larger one that repairs single steps, and what each policy saves.",
        rows=tuple(m.row for m in measured),
        traces=tuple(_first_repairs(measured)),
        meta={
            "weak model": run.config.models.weak.model,
            "strong model": run.config.models.strong.model,
            "scorer": run.config.scorer.title,
            "configuration": run.config.hash,
            "seed": str(run.config.seed),
        },
        notes=tuple(in_words(measured)),
        lab=True,
    )
    metrics = {
        "policies": [vars(m.row) for m in measured],
        "in_words": in_words(measured),
        "figures": {f: {c: one and asdict(one) for c, one in row.items()} for f, row in by_family(measured).items()},
        "config": run.config.hash,
        "grader": GRADER_VERSION,
    }
    write_text(run.path("metrics.json"), json.dumps(metrics, indent=1) + "\n")
    run.page("report.html", lambda path: write_report(path, report), "the solutions step by step")
    return report


@program(_Options, doc=__doc__, plan=_plan, resumable=False)
def main(run: Run[_Options]) -> None:
    problems = _problems_of(run.args)
    run.say(f"Routing {len(problems)} held-out lab problems under {len(POLICIES)} policies.")
    measured: list[Measured] = []

    def told(done: Measured) -> None:
        measured.append(done)
        run.write("traces.jsonl", *done.views)

    try:
        with routing.StepRouter.from_config(run.config) as router:
            compare(router, POLICIES, problems, on_measured=told)
    except KeyboardInterrupt:
        if measured:
            _save(run, measured)
        raise
    report = _save(run, measured)
    traces = [view.trace for m in measured for view in m.views]
    run.refuse_failure([trace.note for trace in traces if trace.finish == "error"], len(traces), "solutions")
    for view in _repaired(measured)[: run.args.show]:
        run.say(f"\nSolved with {view.policy}; the weak model alone gets it wrong:")
        view.trace.show()
    run.console.print(summary_table(report, run.console.width))
    for line in in_words(measured):
        run.say(line)


if __name__ == "__main__":
    sys.exit(main())
