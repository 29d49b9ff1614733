"""The one template environment: every value is escaped unless it is already `Markup`."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Templates of this package with autoescape on for every file; an unknown name in a template is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("stepwise.report", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def resource(name: str) -> str:
    """Text of a file that ships beside the templates (CSS or JavaScript)."""
    return files("stepwise.report").joinpath("templates", name).read_text(encoding="utf-8")
