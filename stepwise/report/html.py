"""One trace as an HTML fragment, for notebooks and for readers of the page without JavaScript."""

from __future__ import annotations

from markupsafe import Markup

from stepwise.errors import redact
from stepwise.report.model import FINISH_WORDS, author_kind, author_letter, verdict_word
from stepwise.report.shell import environment, resource
from stepwise.routing.compare import TraceView
from stepwise.routing.metrics import cost_of
from stepwise.types import Trace


def trace_html(trace: Trace) -> str:
    """A self-contained fragment (its own scoped style, no script) that shows a trace on a light or a dark ground.

    Text takes the colour of the notebook; every rule of the style starts with `.stepwise-trace`.
    """
    return str(view_html(TraceView(trace)))  # a plain string: Markup would escape what a caller adds to it


def view_html(view: TraceView, style: bool = True) -> Markup:
    """The same with policy and verdict; `style=False` leaves the style out, since one copy serves many fragments."""
    template = environment().get_template("trace.html.jinja")
    text = template.render(
        view=view,
        trace=view.trace,
        note=redact(view.trace.note),
        cost=cost_of([view.trace]),
        finish=FINISH_WORDS[view.trace.finish],
        verdict=verdict_word(view.verdict) if view.verdict else "",
        kind=author_kind,
        letter=author_letter,
        css=Markup(resource("trace.css")) if style else "",  # noqa: S704
    )
    return Markup(text)  # noqa: S704
