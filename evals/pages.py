"""A page of an eval: one HTML file in the style of the reports, that loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from stepwise.report.shell import resource


def page(title: str, note: str, parts: Sequence[Markup]) -> str:
    """The text of a page: a heading, a paragraph, and parts that are HTML already."""
    frame = Markup(
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>{}</title><style>{}</style><body><main><h1>{}</h1><p>{}</p>{}</main></body></html>\n"
    )
    return str(frame.format(title, Markup(resource("page.css")), title, note, Markup("").join(parts)))  # noqa: S704


def tag(name: str, /, *inner: str | Markup, **attributes: object) -> Markup:
    """An element whose attributes and text are escaped; `_` at the end of a name is dropped, inside it becomes `-`."""
    pairs = ""
    for key, value in attributes.items():
        text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
        pairs += f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"'
    return Markup(f"<{name}{pairs}>") + Markup("").join(escape(part) for part in inner) + Markup(f"</{name}>")  # noqa: S704
