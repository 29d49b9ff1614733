"""Route problems through a weak and a strong model, step by step; killed at any moment, it goes on where it was.

Problems come from a JSON Lines file with the columns id, question, and optionally answer and reference, or else from
the lab.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stepwise.config import Config
from stepwise.errors import DataError
from stepwise.grading import GRADER_VERSION, check_gold
from stepwise.jsonl import read_rows
from stepwise.plan import Planned
from stepwise.report import Report, summary_table, write_report
from stepwise.routing import RoutingInterrupted, StepRouter, policy_from_config
from stepwise.routing.compare import judge, plan_routing
from stepwise.routing.metrics import usage_by_author
from stepwise.run import Run, positive, program
from stepwise.types import Problem, Trace


def arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--problems", type=Path, metavar="FILE", help="JSON Lines file of problems")
    where.add_argument("--split", default="test", help="split of the lab's problems (default: %(default)s)")
    parser.add_argument(
        "--n", type=positive, metavar="N", help="the first N problems (default: all of a file, 50 of a split)"
    )
    parser.add_argument("--show", type=int, default=0, metavar="N", help="solutions to print at the end")


def problems_of(args: argparse.Namespace) -> list[Problem]:
    """The problems that the arguments ask for; raises `DataError` for a file that is missing, empty, repeats ids or
    holds a gold answer that the grader cannot read.
    """
    if args.problems is None:
        from stepwise.lab.problems import generate

        return [made.problem for made in generate(args.split, args.n or 50)]
    if not args.problems.is_file():
        raise DataError(f"--problems {args.problems}: no such file; give a JSON Lines file of problems")
    problems = read_rows(args.problems, Problem, finished=True)[: args.n]
    if not problems:
        raise DataError(f"--problems {args.problems} holds no problems; write one JSON object per line")
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(f"--problems {args.problems}: the id {problem.id!r} occurs twice; ids must differ")
        seen.add(problem.id)
        if problem.answer is not None:
            check_gold(problem)
    return problems


def plan(config: Config, args: argparse.Namespace) -> list[Planned]:
    return plan_routing(config, [policy_from_config(config.routing)], problems_of(args))


@program(doc=__doc__, arguments=arguments, plan=plan)
def main(run: Run) -> None:
    problems = problems_of(run.args)
    before = [*run.rows("traces.jsonl", Trace), *run.rows("interrupted.jsonl", Trace)]
    with StepRouter.from_config(run.config) as router:
        for trace in before:  # caps are for the whole run, so what it spent before it was stopped counts
            for role, usage in usage_by_author(trace).items():
                router.ledger.record(role, usage)
        # What ended in an error is tried again; its first row stays in the file, and the last row of a problem counts.
        kept = [trace for trace in before if trace.finish != "error"]
        try:
            traces = router.solve_all(problems, on_trace=lambda trace: run.write("traces.jsonl", trace), resume=kept)
        except RoutingInterrupted as stop:
            for trace in stop.traces:
                if trace.finish == "interrupted" and usage_by_author(trace):
                    run.write("interrupted.jsonl", trace)
            finish(run, router, [trace for trace in stop.traces if trace.steps])
            raise
        finish(run, router, traces)


def finish(run: Run, router: StepRouter, traces: list[Trace]) -> None:
    """Print and write what the traces amount to; those that were interrupted are shown, but not counted."""
    if not traces:
        return
    done = [trace for trace in traces if trace.finish != "interrupted"]
    rows = (judge(router, done).row,) if done else ()
    views = judge(router, traces).views
    report = Report(
        title="Routed problems",
        rows=rows,
        traces=views,
        meta={
            "weak model": run.config.models.weak.model,
            "strong model": run.config.models.strong.model,
            "scorer": run.config.scorer.model,
            "configuration": run.config.hash,
        },
        lab=run.args.problems is None or run.config.models.weak.model.startswith("llamacpp/lab-"),
    )
    for view in views[: run.args.show]:
        view.trace.show()
    if rows:
        run.console.print(summary_table(report, run.console.width))
    run.say(router.ledger.summary())
    ended = {kind: sum(t.finish == kind for t in traces) for kind in dict.fromkeys(t.finish for t in traces)}
    run.say("Solutions ended: " + ", ".join(f"{kind} {count}" for kind, count in ended.items()))
    for row in rows:
        run.metrics(**vars(row), finish=ended, grader=GRADER_VERSION)
    page = write_report(run.path("report.html"), report)
    run.say(f"Look at the solutions step by step: {page.resolve().as_uri()}")


if __name__ == "__main__":
    sys.exit(main())
