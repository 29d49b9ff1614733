"""The one template environment: every value is escaped unless it is already `Markup`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Templates of this package with autoescape on for every file; an unknown name in a template is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("stepwise.report", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"px": pixels, "fixed": "{:.1f}".format, "joined": _joined}
    return made


def draw(figure: str, /, **values: Any) -> Markup:
    """The drawing of that name in figures.svg.jinja."""
    return Markup(getattr(environment().get_template("figures.svg.jinja").module, figure)(**values))  # noqa: S704


def pixels(value: float) -> str:
    """A coordinate with one digit behind the point, and none where it is 0."""
    return f"{value:.1f}".removesuffix(".0")


def _joined(points: Iterable[tuple[float, float]]) -> str:
    """The places of a line in a path, without the `M` before the first."""
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def resource(name: str) -> str:
    """Text of a file that ships beside the templates (CSS or JavaScript)."""
    return files("stepwise.report").joinpath("templates", name).read_text(encoding="utf-8")
