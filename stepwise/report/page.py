"""The page of a run: one HTML file that needs no network, with the plot, the table and the traces.

The traces lie in the file once, as JSON, and the page's script writes them with `textContent`; nothing in them is ever
parsed as HTML. A content security policy allows that one script, by its hash, and no other source of anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stepwise.errors import DataError, redact
from stepwise.report.charts import COSTS, NARROW, WIDE, legend, plot_svg
from stepwise.report.notebook import view_html
from stepwise.report.shell import FINISH_WORDS, Report, badge, caption, columns_of, first_of_each, remarks, write_page
from stepwise.report.words import quantity, verdict_word
from stepwise.routing.compare import TraceView
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Step

MAX_TRACES = 500
STATIC_TRACES = 3  # shown where the browser runs no script


def write_report(path: str | Path, report: Report, max_traces: int = MAX_TRACES) -> Path:
    """Write `report` to `path` as one HTML file and return the path; missing folders are made.

    At most `max_traces` traces are put in the page, the first few of every policy, and the page says how many of how
    many it shows. The same report gives the same bytes. The file appears whole or not at all. Raises `DataError` when
    `max_traces` is negative.

    Example:
        measured = sw.compare(router, policies, problems)
        report = Report("My models", rows=tuple(m.row for m in measured), traces=measured[0].views)
        write_report("report.html", report)
    """
    if max_traces < 0:
        raise DataError(f"max_traces is {max_traces}; it must be 0 or more")
    shown = first_of_each(report.traces, max_traces, lambda view: view.policy)
    plots = [(cost, [plot_svg(report.rows, cost, canvas) for canvas in (WIDE, NARROW)]) for cost in COSTS]
    return write_page(
        path,
        "page.html.jinja",
        title=report.title,
        subtitle=report.subtitle,
        meta=report.meta,
        notes=(*report.notes, *remarks(report.traces)),
        lab=report.lab,
        scripts=("common.js", "page.js"),
        report=report,
        plots=plots,
        joined=sum(bool(row.anchor) for row in report.rows) > 1,
        legend=legend(report.rows),
        columns=columns_of(report.rows),
        caption=caption(report.rows),
        shown=len(shown),
        total=len(report.traces),
        static=[view_html(view, style=i == 0) for i, view in enumerate(shown[:STATIC_TRACES])],
        island=_island(shown),
    )


def _island(views: Sequence[TraceView]) -> Markup:
    """The traces as JSON that is safe inside a script element: ASCII only, with `<`, `>` and `&` written as escapes."""
    places: dict[Problem, int] = {}
    traces = [_trace(view, places.setdefault(view.trace.problem, len(places))) for view in views]
    names = ("id", "question", "answer", "reference", "source")
    problems = [_filled({name: getattr(problem, name) for name in names}) for problem in places]
    text = json.dumps({"problems": problems, "traces": traces}, ensure_ascii=True, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704


def _trace(view: TraceView, problem: int) -> dict[str, Any]:
    trace, cost = view.trace, cost_of([view.trace])
    costs = {
        "strong tokens": f"{cost.strong_tokens:,}",
        "all tokens": f"{cost.all_tokens:,}",
        "calls": f"{cost.calls:,}",
    }
    if trace.scorer_usage.evaluated_tokens:
        costs["tokens scored"] = f"{trace.scorer_usage.evaluated_tokens:,}"
    if view.parameter_tokens is not None:
        costs["parameter-tokens"] = quantity(view.parameter_tokens)
    return _filled(
        {
            "problem": problem,
            "policy": view.policy,
            "verdict": verdict_word(view.verdict),
            "right": view.verdict.lower() == "correct",
            "escalated": view.escalated,
            "finish": FINISH_WORDS[trace.finish],
            "answer": trace.answer,
            "read": "" if view.answer_read_from == "box" else view.answer_read_from,
            "note": redact(trace.note),
            "cost": costs,
            "steps": [_step(step) for step in trace.steps],
            "abandoned": [_step(draft) for draft in trace.abandoned],
        }
    )


def _step(step: Step) -> dict[str, Any]:
    """A step as the script wants it; author and model names repeat, but they are short."""
    kind, letter = badge(step.author)
    return _filled(
        {
            "text": step.text,
            "author": step.author,
            "kind": kind,
            "letter": letter,
            "model": step.usage.model,
            "tokens": step.usage.generated_tokens or None,
            "score": None if step.score is None else round(step.score, 4),
            "decision": step.decision,
            "discarded": [_step(draft) for draft in step.discarded],
        }
    )


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that are empty; a score of 0 and False stay."""
    return {key: value for key, value in fields.items() if value not in (None, "", [])}
