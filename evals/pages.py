"""A page of an eval: one HTML file in the style of the reports, that loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from stepwise.report.templates import resource


def page(title: str, note: str, parts: Sequence[Markup]) -> str:
    """The text of a page: a heading, a paragraph, and parts that are HTML already."""
    frame = Markup(
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>{}</title><style>{}</style><body><main><h1>{}</h1><p>{}</p>{}</main></body></html>\n"
    )
    return str(frame.format(title, Markup(resource("page.css")), title, note, Markup("").join(parts)))  # noqa: S704
