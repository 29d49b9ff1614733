"""Small charts as inline SVG: bars over named places, curves over steps, and the bar of one stage of a funnel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from stepwise.report.plot import ticks
from stepwise.report.svg import tag
from stepwise.report.table import quantity

_LEFT, _RIGHT, _TOP = 56, 10, 10
_HOVER = 200  # points up to which each has a place to hover over
_CURVE = (320, 168, 26)  # width, height, and the room below the axis


class Bar(NamedTuple):
    """One bar: the mark below it, its height (a count), and what hovering over it says."""

    label: str
    value: int
    title: str


class Line(NamedTuple):
    """One curve: its name, and (step, value) in order; None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]


def bars_svg(bars: Sequence[Bar], axis: str, summary: str, style: str = "f0") -> Markup:
    """Counts as bars from left to right; `axis` names what the bars stand for, `summary` says it in a sentence."""
    width, height, bottom = 440, 236, 46
    inner, base = width - _LEFT - _RIGHT, height - bottom
    most = max((bar.value for bar in bars), default=0) or 1
    marks = [t for t in ticks(0, most, 4) if t == int(t)]
    top = max(marks[-1], most)
    body = _levels([(base - (base - _TOP) * t / top, quantity(t)) for t in marks], width)
    slot = inner / max(len(bars), 1)
    each = math.ceil(30 / slot)  # so that marks below the bars do not run into each other
    for i, bar in enumerate(bars):
        x, tall = _LEFT + slot * i, (base - _TOP) * bar.value / top
        rect = tag("rect", x=x + slot * 0.12, y=base - tall, width=slot * 0.76, height=tall, class_=f"block {style}")
        hover = tag("rect", x=x, y=_TOP, width=slot, height=base - _TOP, class_="hit")
        body.append(tag("g", tag("title", bar.title), rect, hover))
        if i % each == 0:
            body.append(tag("text", bar.label, x=x + slot / 2, y=base + 16, text_anchor="middle"))
    body.append(tag("path", d=f"M{_LEFT} {base}H{width - _RIGHT}", class_="axis"))
    body.append(tag("text", axis, x=_LEFT + inner / 2, y=height - 8, text_anchor="middle", class_="axis-name"))
    return tag("svg", *body, viewBox=f"0 0 {width} {height}", class_="plot small", role="img", aria_label=summary)


def curves_svg(lines: Sequence[Line], summary: str, span: tuple[float, float] | None = None) -> Markup:
    """Curves over steps, each in a colour and dashes of its own; None leaves a gap, a value between gaps is a dot.

    `span` are the ends of the axis of values; where it is not given, they follow from the values.
    """
    width, height, bottom = _CURVE
    known = [(x, y) for line in lines for x, y in line.points if y is not None]
    if not known:
        return tag("p", "No value is known.", class_="muted")
    xs = [x for line in lines for x, _ in line.points]
    marks = ticks(*(span or _span([y for _, y in known])), 4)
    first, last, base = min(xs), max(xs), height - bottom
    across = (width - _LEFT - _RIGHT) / (last - first or 1.0)

    def place(x: float, y: float) -> tuple[float, float]:
        shift = 0.0 if last > first else (width - _LEFT - _RIGHT) / 2
        return _LEFT + shift + (x - first) * across, base - (base - _TOP) * (y - marks[0]) / (marks[-1] - marks[0])

    body = _levels([(place(first, t)[1], text) for t, text in zip(marks, numbers(marks), strict=True)], width)
    body.append(tag("path", d=f"M{_LEFT} {base}H{width - _RIGHT}", class_="axis"))
    for x in dict.fromkeys((first, last)):
        anchor = "middle" if first == last else "start" if x == first else "end"
        body.append(tag("text", f"{x:g}", x=place(x, marks[0])[0], y=height - 8, text_anchor=anchor))
    body.append(
        tag("text", "step", x=(_LEFT + width - _RIGHT) / 2, y=height - 8, text_anchor="middle", class_="axis-name")
    )
    for i, line in enumerate(lines):
        body += _curve(line, [(x, y, *place(x, y)) for x, y in line.points if y is not None], line_style(i))
    return tag("svg", *body, viewBox=f"0 0 {width} {height}", class_="plot small", role="img", aria_label=summary)


def stage_svg(parts: Sequence[tuple[str, str, int]], whole: int) -> Markup:
    """One stage as a bar of which `whole` rows would fill the width: parts as (CSS class, what it is, rows)."""
    body, x = [], 0.0
    for kind, name, rows in parts:
        if not rows:
            continue
        width = 1000 * rows / max(whole, 1)
        rect = tag(
            "rect", tag("title", f"{name}: {rows:,}"), x=x, y=0, width=max(width - 2, 1.0), height=20, class_=kind
        )
        body.append(rect)
        x += width
    said = ", ".join(f"{name} {rows:,}" for _, name, rows in parts if rows)
    return tag(
        "svg", *body, viewBox="0 0 1000 20", preserveAspectRatio="none", class_="stage", role="img", aria_label=said
    )


def line_style(number: int) -> str:
    """CSS classes of the curve with this number: a colour and a pattern of dashes, to be told apart without colour."""
    return f"f{number % 6} dash{number % 4}"


def line_swatch(number: int) -> Markup:
    """A short piece of a curve, for a legend."""
    piece = tag("path", d="M1 6H33", class_=f"series {line_style(number)}")
    return tag("svg", piece, viewBox="0 0 34 12", width=34, height=12, aria_hidden="true")


def number(value: float, digits: int = 3) -> str:
    """A number in few characters, whatever its size: 0.25, 1.2e-5, 12.3 M."""
    if abs(value) >= 1000:
        return f"{'-' if value < 0 else ''}{quantity(abs(value))}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.{digits}g}"
    size = math.floor(math.log10(abs(value)))
    return f"{value / 10.0**size:.{digits}g}e{size}"


def numbers(values: Sequence[float]) -> list[str]:
    """The values of an axis with as many digits as it takes to tell them apart."""
    for digits in range(3, 9):
        texts = [number(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis for these values; equal ones get room on both sides, but none below zero."""
    low, high = min(values), max(values)
    if high > low:
        return low, high
    room = abs(high) / 2 or 1.0
    return (low - room, high + room) if low else (0.0, room)


def _levels(marks: Sequence[tuple[float, str]], width: int) -> list[Markup]:
    out = []
    for y, text in marks:
        out.append(tag("path", d=f"M{_LEFT} {y:.1f}H{width - _RIGHT}", class_="grid"))
        out.append(tag("text", text, x=_LEFT - 6, y=y + 4, text_anchor="end"))
    return out


def _curve(line: Line, placed: Sequence[tuple[float, float, float, float]], style: str) -> list[Markup]:
    """A path for every stretch without a gap, dots for values that stand alone, and places to hover over."""
    where = {x: (across, down) for x, _, across, down in placed}
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append(where[x])
    out = []
    for run in runs:
        if len(run) > 1:
            out.append(tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run), class_=f"series {style}"))
        elif run:
            out.append(tag("circle", cx=run[0][0], cy=run[0][1], r=3, class_=f"mark {style}"))
    if len(placed) <= _HOVER:
        for x, y, across, down in placed:
            title = tag("title", f"{line.name}, step {x:g}: {number(y)}")
            out.append(tag("circle", title, cx=across, cy=down, r=5, class_="hit"))
    return out
