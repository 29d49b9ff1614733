"""What the pages share: the frame with style and script, how a file is written, and which items a page has room for.

A page is one HTML file that loads nothing. A content security policy allows its one script, by its hash, and no other
source of anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stepwise.errors import redact
from stepwise.io import write_text
from stepwise.report.model import LAB_NOTICE

T = TypeVar("T")


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Templates of this package with autoescape on for every file; an unknown name in a template is an error."""
    loader = PackageLoader("stepwise.report", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Coordinates: with one digit behind the point and none where it is 0, inside a path with one, and a line of places.
    made.filters |= {"px": lambda x: f"{x:.1f}".removesuffix(".0"), "fixed": "{:.1f}".format, "joined": _joined}
    return made


def _joined(points: Iterable[tuple[float, float]]) -> str:
    """The places of a line in a path, without the `M` before the first."""
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def draw(figure: str, /, **values: Any) -> Markup:
    """The drawing of that name in figures.svg.jinja."""
    return Markup(getattr(environment().get_template("figures.svg.jinja").module, figure)(**values))  # noqa: S704


def resource(name: str) -> str:
    """Text of a file that ships beside the templates (CSS or JavaScript)."""
    return files("stepwise.report").joinpath("templates", name).read_text(encoding="utf-8")


def render(
    template: str,
    *,
    title: str,
    subtitle: str = "",
    meta: Mapping[str, Any],
    notes: Sequence[str] = (),
    lab: bool = False,
    scripts: Sequence[str],
    styles: Sequence[str] = ("page.css",),
    **values: Any,
) -> str:
    """The text of a page: `template` extends base.html.jinja; the files `scripts` become one script in one scope.

    Facts in `meta` that are None or empty are left out. `lab` says that the figures come from the embedded test bed;
    the page then says so.
    """
    script = '"use strict";\n(() => {\n' + "\n".join(resource(name) for name in scripts) + "})();\n"
    return (
        environment()
        .get_template(template)
        .render(
            title=title,
            subtitle=subtitle,
            meta={name: redact(str(value)) for name, value in meta.items() if value not in (None, "")},
            notes=[redact(note) for note in notes],
            lab_notice=LAB_NOTICE if lab else "",
            css=Markup("".join(resource(name) for name in styles)),  # noqa: S704
            script=Markup(script),  # noqa: S704
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **values,
        )
    )


def write_page(path: str | Path, text: str) -> Path:
    """Write a page to `path` and return the path; missing folders are made. The file appears whole or not at all."""
    target = Path(path)
    write_text(target, text)
    return target


def first_of_each(items: Sequence[T], most: int, kind: Callable[[T], object]) -> list[T]:
    """At most `most` items in their order: the first few of every kind, so that each kind can be looked at."""
    if len(items) <= most:
        return list(items)
    ranks: dict[object, int] = {}
    order = []
    for position, item in enumerate(items):
        ranks[kind(item)] = ranks.get(kind(item), 0) + 1
        order.append((ranks[kind(item)], position))
    kept = sorted(position for _, position in sorted(order)[:most])
    return [items[position] for position in kept]


def island(data: Any) -> Markup:
    """Data as JSON that is safe inside a script element: ASCII only, with `<`, `>` and `&` written as escapes."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704


def of_the_lab(run: Mapping[str, Any], *roles: str) -> bool:
    """Whether the configuration in a run's card names one of the lab's models for one of these roles."""
    models = run.get("config", {}).get("models", {})
    return any(str(models.get(role, {}).get("model", "")).startswith("llamacpp/lab-") for role in roles)
