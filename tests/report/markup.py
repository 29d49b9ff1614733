"""Reading HTML in tests, and the strings that a careless page would let through."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

from stepwise.report.shell import Report
from stepwise.routing.compare import PolicyRow, TraceView
from stepwise.types import Problem, Step, Trace, Usage

HOSTILE = (
    "</script><script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "<!--<script>",
    "line\u2028separator\u2029end",
    "{{ 7 * 7 }}{% raw %}&lt;b&gt;",
    "</style></div></noscript><svg onload=alert(1)>",
    "\u202eright to left\u0000nul",
)


class Elements(HTMLParser):
    """Every element of a page as (tag, attributes), and the text of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.lasttag == "script" and data.strip() else self.words).append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def text(self) -> str:
        return "".join(self.words)


def data_of(page: str) -> dict[str, Any]:
    """The traces in a page, read the way its script reads them."""
    start = page.index('<script type="application/json" id="data">')
    return json.loads(page[page.index(">", start) + 1 : page.index("</script>", start)])


def hostile_report() -> Report:
    """A report in which every string is one that tries to break out, all of them in every place."""
    views = []
    for bad in HOSTILE:
        draft = Step(text=bad, author=bad, score=0.0, usage=Usage(bad, 1, 5, 5, 5), discarded=(), decision=bad)
        step = Step(text=bad, author=bad, score=None, usage=Usage(bad, 1, 5, 5, 5), discarded=(draft,), decision=bad)
        trace = Trace(
            Problem(id=bad, question=bad, answer=bad, reference=bad, source=bad),
            (step, step),
            "answer",
            Usage(),
            bad,
            (draft,),
        )
        views.append(TraceView(trace, bad, bad))
    rows = tuple(PolicyRow(bad, bad, 0.5, 0.5, 0.4, 0.6, 0.5, 10, 20, 3.0, 4, 5.0, 6) for bad in HOSTILE)
    everything = "".join(HOSTILE)
    return Report(everything, everything, rows, tuple(views), {everything: everything}, HOSTILE, lab=True)
