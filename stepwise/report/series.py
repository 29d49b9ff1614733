"""Drawings of counts and of values over steps, as inline SVG: bars, curves, a stage of a funnel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from stepwise.report.charts import ticks
from stepwise.report.shell import draw
from stepwise.report.words import quantity

_HOVER = 200  # points up to which each has a place to hover over


class Bar(NamedTuple):
    """One bar: the mark below it, its height (a count), and what hovering over it says.

    >>> Bar("step 2", 14, title="14 first errors at step 2").value
    14
    """

    label: str
    value: int
    title: str


class Line(NamedTuple):
    """One curve: its name, and (step, value) in order; None is a gap.

    >>> Line("accuracy", [(0, 0.41), (10, None), (20, 0.55)]).points[-1]
    (20, 0.55)
    """

    name: str
    points: Sequence[tuple[float, float | None]]


def bars_svg(bars: Sequence[Bar], axis: str, summary: str, style: str = "f0") -> Markup:
    """Counts as bars from left to right; `axis` names what the bars stand for, `summary` says it in a sentence.

    >>> "<svg" in bars_svg([Bar("0", 3, "3 at step 0"), Bar("1", 5, "5 at step 1")], "step", "first errors by step")
    True
    """
    tallest = max((bar.value for bar in bars), default=0) or 1
    marks = [t for t in ticks(0, tallest, 4) if t == int(t)]
    scale, slot = 180 / max(marks[-1], tallest), 374 / max(len(bars), 1)
    return draw(
        "bars", bars=bars, marks=[(190 - scale * t, quantity(t)) for t in marks], slot=slot, scale=scale,
        each=math.ceil(30 / slot), axis=axis, summary=summary, style=style,
    )  # fmt: skip


def curves_svg(lines: Sequence[Line], summary: str, span: tuple[float, float] | None = None) -> Markup:
    """Curves over steps, each in a colour and dashes of its own; None leaves a gap, a value between gaps is a dot.

    `span` are the ends of the axis of values; where it is not given, they follow from the values.

    >>> "<svg" in curves_svg([Line("accuracy", [(0, 0.41), (20, 0.55)])], "accuracy rises to 0.55", (0.0, 1.0))
    True
    """
    known = [y for line in lines for _, y in line.points if y is not None]
    if not known:
        return draw("nothing", words="No value is known.")
    low, high = span or (min(known), max(known))
    if low == high:  # equal values get room on both sides, but none below zero
        room = abs(high) / 2 or 1.0
        low, high = (low - room, high + room) if low else (0.0, room)
    xs = [x for line in lines for x, _ in line.points]
    first, last, marks = min(xs), max(xs), ticks(low, high, 4)

    def across(x: float) -> float:
        return 56 + 254 * ((x - first) / (last - first) if last > first else 0.5)

    def down(y: float) -> float:
        return 142 - 132 * (y - marks[0]) / (marks[-1] - marks[0])

    curves = []
    for i, line in enumerate(lines):
        stretches = groupby(line.points, lambda point: point[1] is not None)
        runs = [[(across(x), down(y)) for x, y in run if y is not None] for has, run in stretches if has]
        points = [(across(x), down(y), f"{line.name}, step {x:g}: {number(y)}")
                  for x, y in line.points if y is not None]  # fmt: skip
        curves.append((_line_style(i), runs, points if len(points) <= _HOVER else ()))
    anchors = {first: "start", last: "end"} if last > first else {first: "middle"}
    levels = [(down(t), text) for t, text in zip(marks, _numbers(marks), strict=True)]
    ends = [(f"{x:g}", across(x), anchor) for x, anchor in anchors.items()]
    return draw("curves", curves=curves, marks=levels, ends=ends, summary=summary)


def stage_svg(parts: Sequence[tuple[str, str, int]], whole: int) -> Markup:
    """One stage as a bar of which `whole` rows would fill the width: parts as (CSS class, what it is, rows).

    >>> "<svg" in stage_svg([("kept", "failed", 60), ("left", "right", 140)], whole=200)
    True
    """
    placed, x = [], 0.0
    for kind, name, rows in parts:
        width = 1000 * rows / max(whole, 1)
        if rows:
            placed.append((kind, f"{name}: {rows:,}", x, max(width - 2, 1.0)))
        x += width
    summary = ", ".join(f"{name} {rows:,}" for _, name, rows in parts if rows)
    return draw("stage", parts=placed, summary=summary)


def _line_style(position: int) -> str:
    """CSS classes of the curve at this position: a colour and a pattern of dashes, to be told apart without colour."""
    return f"f{position % 6} dash{position % 4}"


def line_swatch(position: int) -> Markup:
    """A short piece of a curve, for a legend.

    >>> "<svg" in line_swatch(0)
    True
    """
    return draw("dashes", style=_line_style(position))


def number(value: float, digits: int = 3) -> str:
    """A number in few characters, whatever its size.

    Example:
        >>> number(0.25), number(1.2e-5), number(12_340_000)
        ('0.25', '1.2e-5', '12.3 M')
    """
    if abs(value) >= 1000:
        return f"{'-' if value < 0 else ''}{quantity(abs(value))}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.{digits}g}"
    size = math.floor(math.log10(abs(value)))
    return f"{value / 10.0**size:.{digits}g}e{size}"


def _numbers(values: Sequence[float]) -> list[str]:
    """The values of an axis with as many digits as it takes to tell them apart."""
    for digits in range(3, 9):
        texts = [number(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts
