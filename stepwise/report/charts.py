"""Small charts as SVG: bars over named places, curves over steps, a stage of a funnel, predictions and outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from stepwise.report.plot import ticks
from stepwise.report.shell import draw
from stepwise.report.table import quantity
from stepwise.routing.pomdp.fit_check import CalibrationBin

_HOVER = 200  # points up to which each has a place to hover over


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
    most = max((bar.value for bar in bars), default=0) or 1
    marks = [t for t in ticks(0, most, 4) if t == int(t)]
    scale, slot = 180 / max(marks[-1], most), 374 / max(len(bars), 1)
    return draw(
        "bars", bars=bars, marks=[(190 - scale * t, quantity(t)) for t in marks], slot=slot, scale=scale,
        each=math.ceil(30 / slot), axis=axis, summary=summary, style=style,
    )  # fmt: skip


def curves_svg(lines: Sequence[Line], summary: str, span: tuple[float, float] | None = None) -> Markup:
    """Curves over steps, each in a colour and dashes of its own; None leaves a gap, a value between gaps is a dot.

    `span` are the ends of the axis of values; where it is not given, they follow from the values.
    """
    known = [y for line in lines for _, y in line.points if y is not None]
    if not known:
        return draw("nothing", words="No value is known.")
    xs = [x for line in lines for x, _ in line.points]
    first, last, marks = min(xs), max(xs), ticks(*(span or _span(known)), 4)

    def across(x: float) -> float:
        return 56 + 254 * ((x - first) / (last - first) if last > first else 0.5)

    def down(y: float) -> float:
        return 142 - 132 * (y - marks[0]) / (marks[-1] - marks[0])

    curves = []
    for i, line in enumerate(lines):
        runs = [[(across(x), down(y)) for x, y in run if y is not None] for run in _runs(line.points)]
        points = [(across(x), down(y), f"{line.name}, step {x:g}: {number(y)}")
                  for x, y in line.points if y is not None]  # fmt: skip
        curves.append((_line_style(i), runs, points if len(points) <= _HOVER else ()))
    anchors = {first: "start", last: "end"} if last > first else {first: "middle"}
    levels = [(down(t), text) for t, text in zip(marks, _numbers(marks), strict=True)]
    ends = [(f"{x:g}", across(x), anchor) for x, anchor in anchors.items()]
    return draw("curves", curves=curves, marks=levels, ends=ends, summary=summary)


def stage_svg(parts: Sequence[tuple[str, str, int]], whole: int) -> Markup:
    """One stage as a bar of which `whole` rows would fill the width: parts as (CSS class, what it is, rows)."""
    placed, x = [], 0.0
    for kind, name, rows in parts:
        width = 1000 * rows / max(whole, 1)
        if rows:
            placed.append((kind, f"{name}: {rows:,}", x, max(width - 2, 1.0)))
        x += width
    summary = ", ".join(f"{name} {rows:,}" for _, name, rows in parts if rows)
    return draw("stage", parts=placed, summary=summary)


def calibration_svg(bins: Sequence[CalibrationBin], title: str) -> str:
    """A plot that is a file of its own: one dot for each bin, its area growing with the number of drafts, and the bar
    of its interval.

    Both axes go from 0 to the highest interval; on the dashed line what was predicted is what happened.
    """
    most = max([0.1, *(max(b.predicted, b.share.high) for b in bins)])
    top = next(t for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if t >= min(most, 1.0))
    largest = max((b.n for b in bins), default=1)
    return str(draw("calibration", bins=bins, top=top, largest=largest, title=title)) + "\n"


def _line_style(number: int) -> str:
    """CSS classes of the curve with this number: a colour and a pattern of dashes, to be told apart without colour."""
    return f"f{number % 6} dash{number % 4}"


def line_swatch(number: int) -> Markup:
    """A short piece of a curve, for a legend."""
    return draw("dashes", style=_line_style(number))


def number(value: float, digits: int = 3) -> str:
    """A number in few characters, whatever its size: 0.25, 1.2e-5, 12.3 M."""
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


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis for these values; equal ones get room on both sides, but none below zero."""
    low, high = min(values), max(values)
    if high > low:
        return low, high
    room = abs(high) / 2 or 1.0
    return (low - room, high + room) if low else (0.0, room)


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float | None]]]:
    """The stretches without a gap."""
    return [list(run) for known, run in groupby(points, lambda point: point[1] is not None) if known]
