"""The page of a run: one HTML file that needs no network, with the plot, the table and the traces.

The traces lie in the file once, as JSON, and the page's script writes them with `textContent`; nothing in them is ever
parsed as HTML. A content security policy allows that one script, by its hash, and no other source of anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stepwise.errors import DataError
from stepwise.redact import redact
from stepwise.report.html import view_html
from stepwise.report.model import (
    FINISH_WORDS,
    LAB_NOTICE,
    Report,
    TraceView,
    author_kind,
    author_letter,
    verdict_word,
)
from stepwise.report.plot import COSTS, NARROW, WIDE, legend, plot_svg
from stepwise.report.table import COLUMNS, caption, quantity
from stepwise.report.templates import environment, resource
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Step

MAX_TRACES = 500
STATIC_TRACES = 3


def write_report(path: str | Path, report: Report, max_traces: int = MAX_TRACES) -> Path:
    """Write `report` to `path` as one HTML file and return the path; missing folders are made.

    At most `max_traces` traces are put in the page, the first few of every policy, and the page says how many of how
    many it shows. The same report gives the same bytes. The file appears whole or not at all. Raises `DataError` when
    `max_traces` is negative.
    """
    target = Path(path)
    text = page_html(report, max_traces)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def page_html(report: Report, max_traces: int = MAX_TRACES) -> str:
    """The text of the page that `write_report` writes."""
    if max_traces < 0:
        raise DataError(f"max_traces is {max_traces}; it must be 0 or more")
    shown = pick(report.traces, max_traces)
    script = resource("page.js")
    plots = [(cost, [plot_svg(report.rows, cost, canvas) for canvas in (WIDE, NARROW)]) for cost in COSTS]
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            meta={name: redact(value) for name, value in report.meta.items()},
            notes=[redact(note) for note in report.notes],
            lab_notice=LAB_NOTICE if report.lab else "",
            css=Markup(resource("page.css")),  # noqa: S704
            script=Markup(script),  # noqa: S704
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            plots=plots,
            legend=legend(report.rows),
            columns=COLUMNS,
            caption=caption(report.rows),
            shown=len(shown),
            total=len(report.traces),
            static=[view_html(view, style=i == 0) for i, view in enumerate(shown[:STATIC_TRACES])],
            island=island(shown),
        )
    )


def pick(traces: Sequence[TraceView], most: int) -> list[TraceView]:
    """At most `most` traces in their order: the first few of every policy, so that each policy can be looked at."""
    if len(traces) <= most:
        return list(traces)
    ranks: dict[str, int] = {}
    order = []
    for position, view in enumerate(traces):
        ranks[view.policy] = ranks.get(view.policy, 0) + 1
        order.append((ranks[view.policy], position))
    kept = sorted(position for _, position in sorted(order)[:most])
    return [traces[position] for position in kept]


def island(views: Sequence[TraceView]) -> Markup:
    """The traces as JSON that is safe inside a script element: ASCII only, with `<`, `>` and `&` written as escapes."""
    problems: dict[Problem, int] = {}
    traces = [_trace(view, problems.setdefault(view.trace.problem, len(problems))) for view in views]
    data = {"problems": [_problem(problem) for problem in problems], "traces": traces}
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704


def _problem(problem: Problem) -> dict[str, Any]:
    fields = {"id": problem.id, "question": problem.question, "answer": problem.answer}
    return _filled({**fields, "reference": problem.reference, "source": problem.source})


def _trace(view: TraceView, problem: int) -> dict[str, Any]:
    trace, cost = view.trace, cost_of([view.trace])
    costs = {"strong tokens": cost.strong_tokens, "all tokens": cost.all_tokens, "calls": cost.calls}
    written = {name: f"{value:,}" for name, value in costs.items()}
    if trace.scorer_usage.evaluated_tokens:
        written["tokens scored"] = f"{trace.scorer_usage.evaluated_tokens:,}"
    if view.parameter_tokens is not None:
        written["parameter-tokens"] = quantity(view.parameter_tokens)
    return _filled(
        {
            "problem": problem,
            "policy": view.policy,
            "verdict": verdict_word(view.verdict),
            "right": view.verdict.lower() == "correct",
            "escalated": view.escalated,
            "finish": FINISH_WORDS[trace.finish],
            "answer": trace.answer,
            "note": redact(trace.note),
            "cost": written,
            "steps": [_step(step) for step in trace.steps],
            "abandoned": [_step(draft) for draft in trace.abandoned],
        }
    )


def _step(step: Step) -> dict[str, Any]:
    """A step as the script wants it; author and model names repeat, but they are short."""
    score = None if step.score is None else round(step.score, 4)
    return _filled(
        {
            "text": step.text,
            "author": step.author,
            "kind": author_kind(step.author),
            "letter": author_letter(step.author),
            "model": step.usage.model,
            "tokens": step.usage.generated_tokens or None,
            "score": score,
            "decision": step.decision,
            "discarded": [_step(draft) for draft in step.discarded],
        }
    )


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that are empty; a score of 0 and False stay."""
    return {key: value for key, value in fields.items() if value not in (None, "", [])}
