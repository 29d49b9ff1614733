"""The shapes that the plot is drawn with, as escaped SVG elements."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from stepwise.report.templates import pixels

SHAPES = 6


def tag(name: str, /, *inner: str | Markup, **attributes: object) -> Markup:
    """An element whose attributes and text are escaped; `_` at the end of a name is dropped, inside it becomes `-`."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(pixels(value) if isinstance(value, float) else value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{pairs}>") + Markup("").join(escape(part) for part in inner) + Markup(f"</{name}>")  # noqa: S704


def marker(style: str, x: float, y: float, size: float = 5.0) -> Markup:
    """The shape of a family (told apart without colour), or the lettered disc of a single model."""
    if style in ("weak", "strong"):
        letter = tag("text", style[0].upper(), x=x, y=y + 4, text_anchor="middle", class_="letter")
        return tag("g", tag("circle", cx=x, cy=y, r=size + 4.5), letter, class_=f"mark {style}")
    shape, s = int(style[1]), size
    if shape == 0:
        return tag("circle", cx=x, cy=y, r=s, class_=f"mark {style}")
    corners: Sequence[Sequence[tuple[float, float]]] = (
        [(-s, -s), (s, -s), (s, s), (-s, s)],
        [(0, -s - 2), (s + 2, 0), (0, s + 2), (-s - 2, 0)],
        [(0, -s - 2), (s + 1.5, s), (-s - 1.5, s)],
        [(0, s + 2), (s + 1.5, -s), (-s - 1.5, -s)],
        [(-s, -2), (s, -2), (s, 2), (-s, 2)],
    )
    outline = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[shape - 1])
    return tag("polygon", points=outline, class_=f"mark {style}")


def family_style(number: int) -> str:
    """CSS classes of the family with this number: six colours and shapes, filled the first time round, then hollow."""
    return f"f{number % SHAPES}" + (" hollow" if number >= SHAPES else "")
