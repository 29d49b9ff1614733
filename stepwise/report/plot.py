"""The accuracy-cost plot as inline SVG: one line per family of policies, one point per operating point.

Each plot is drawn twice, for a laptop and for a phone, and the page shows one of them: text in a scaled-down SVG
cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from stepwise.report.shell import draw
from stepwise.report.table import count, interval, percent, quantity
from stepwise.routing.compare import PolicyRow

Box = tuple[float, float, float, float]
BAR_HALF = 4.0


class CostAxis(NamedTuple):
    """One way to count cost: its key and name, and the value of a row per problem (None: not known)."""

    key: str
    name: str
    axis: str
    value: Callable[[PolicyRow], float | None]


COSTS: tuple[CostAxis, ...] = (
    CostAxis("strong", "Strong tokens", "strong tokens per problem", lambda r: r.strong_tokens / r.n),
    CostAxis("all", "All tokens", "generated tokens per problem", lambda r: r.generated_tokens / r.n),
    CostAxis(
        "weights",
        "Parameter-tokens",
        "parameter-tokens per problem",
        lambda r: None if r.parameter_tokens is None else r.parameter_tokens / r.n,
    ),
)


class _Canvas(NamedTuple):
    """Size and margins of a drawing in CSS pixels, and about how many ticks fit on its x axis."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    ticks: int


WIDE = _Canvas(width=860, height=420, left=64, right=24, top=18, bottom=56, ticks=8)
NARROW = _Canvas(width=336, height=320, left=46, right=14, top=14, bottom=50, ticks=4)


class _Axis(NamedTuple):
    """The ends of an axis and the values that are marked on it, in the unit of the data."""

    low: float
    high: float
    ticks: list[float]


class _Point(NamedTuple):
    """A row placed in the drawing; `low` and `high` are the ends of its interval bar, None where there is none."""

    row: PolicyRow
    style: str
    x: float
    y: float
    low: float | None
    high: float | None


def _families(rows: Sequence[PolicyRow]) -> list[str]:
    """The families in order of appearance, without the two single models."""
    return list(dict.fromkeys(row.family for row in rows if not row.anchor))


def _style_of(row: PolicyRow, names: Sequence[str]) -> str:
    """CSS class of a row's colour and shape."""
    return row.anchor or _family_style(names.index(row.family))


def _family_style(number: int) -> str:
    """CSS classes of the family with this number: six colours and shapes, filled the first time round, then hollow."""
    return f"f{number % 6}" + (" hollow" if number >= 6 else "")


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `wanted` of them."""
    span = max(high - low, 1e-12)
    raw = span / max(wanted - 1, 1)
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next((m * scale for m in (1, 2, 2.5, 5) if m * scale >= raw * 0.999), 10 * scale)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def legend(rows: Sequence[PolicyRow]) -> list[tuple[Markup, str]]:
    """Swatch and name of every family and of the single models that the rows hold."""
    names = _families(rows)
    found = [(_style_of(row, names), row) for row in rows]
    entries = {
        style: {"weak": "weak model alone", "strong": "strong model alone"}[style] for style, row in found if row.anchor
    }
    named = [(_family_style(i), name) for i, name in enumerate(names)] + sorted(entries.items(), reverse=True)
    return [(draw("swatch", style=style), name) for style, name in named]


def plot_svg(rows: Sequence[PolicyRow], cost: CostAxis, canvas: _Canvas = WIDE) -> Markup:
    """One drawing of accuracy against `cost`; rows whose accuracy or cost is not known are left out."""
    known = [(row, cost.value(row)) for row in rows if row.accuracy is not None]
    placed = [(row, x) for row, x in known if x is not None]
    if not placed:
        return draw("nothing", words="No policy has both an accuracy and this cost.")
    x_axis, y_axis = _axes(placed, canvas)
    names = _families(rows)

    def across(value: float) -> float:
        inner = canvas.width - canvas.left - canvas.right
        return canvas.left + inner * (value - x_axis.low) / (x_axis.high - x_axis.low)

    def down(value: float) -> float:
        inner = canvas.height - canvas.top - canvas.bottom
        return canvas.top + inner * (y_axis.high - value) / (y_axis.high - y_axis.low)

    points = []
    for row, x in placed:
        ends = (row.accuracy_low, row.accuracy_high)
        low, high = (None if end is None else down(end) for end in ends)
        points.append(_Point(row, _style_of(row, names), across(x), down(row.accuracy or 0.0), low, high))
    runs = _runs(points)
    digits = 0 if all(abs(100 * t - round(100 * t)) < 1e-6 for t in y_axis.ticks) else 1
    return draw(
        "plot",
        canvas=canvas,
        shape="wide" if canvas.width > 500 else "narrow",
        xs=[(across(t), quantity(t) if t >= 1000 else f"{t:.4g}") for t in x_axis.ticks],
        ys=[(down(t), f"{100 * t:.{digits}f}") for t in y_axis.ticks],
        axis=cost.axis,
        lines=[(kind, [(p.x, p.y) for p in run]) for kind, run in runs],
        points=[(point, _title(point.row, cost)) for point in points],
        labels=_labels(points, runs, canvas),
        summary=f"Accuracy against {cost.axis}, {len(points)} operating points; the table below holds the same "
        "figures.",
    )


def _axes(placed: Sequence[tuple[PolicyRow, float]], canvas: _Canvas) -> tuple[_Axis, _Axis]:
    """Both axes. The x axis starts at 0 unless that would leave more than a third of it empty."""
    xs = [x for _, x in placed]
    ys = [y for row, _ in placed for y in (row.accuracy, row.accuracy_low, row.accuracy_high) if y is not None]
    most, least = max(xs) or 1.0, min(xs)
    low = 0.0 if least < 0.35 * most or least == most else least - 0.05 * (most - least)
    high = most + 0.03 * (most - low)
    x_ticks = [t for t in ticks(low, high, canvas.ticks) if low <= t <= high]
    y_ticks = ticks(max(min(ys) - 0.01, 0.0), min(max(ys) + 0.01, 1.0), 6)
    return _Axis(low, high, x_ticks), _Axis(y_ticks[0], y_ticks[-1], y_ticks)


def _runs(points: Sequence[_Point]) -> list[tuple[str, list[_Point]]]:
    """What is joined by a line, as (CSS classes, points from left to right): each family's points, and the two models.

    The line between the models is what sending each whole problem to one of them at random would give.
    """
    runs: dict[str, list[_Point]] = {}
    for point in points:
        runs.setdefault("chord" if point.row.anchor else f"series {point.style}", []).append(point)
    ordered = ((kind, sorted(own, key=lambda p: (p.x, p.y))) for kind, own in runs.items())
    return [(kind, own) for kind, own in ordered if len(own) > 1]


def _title(row: PolicyRow, cost: CostAxis) -> str:
    """What hovering over a row's point says."""
    value = cost.value(row) or 0.0
    spread = "" if row.accuracy_low is None else f" ({interval(row)})"
    spent = quantity(round(value, 1)) if value >= 1000 else f"{value:.1f}"
    return (
        f"{row.policy}: {percent(row.accuracy)}{spread}, {spent} {cost.axis}, {percent(row.strong_share)} strong, "
        f"{count(row.n)} problems"
    )


def _labels(
    points: Sequence[_Point], runs: Sequence[tuple[str, list[_Point]]], canvas: _Canvas
) -> list[tuple[str, float, float, str]]:
    """The settings beside their points, each at the first of six places where it covers nothing, else left out.

    As (text, x, y, style of its point).
    """
    taken: list[Box] = [(p.x - 7, p.y - 7, p.x + 7, p.y + 7) for p in points]
    taken += [
        (p.x - BAR_HALF, p.high, p.x + BAR_HALF, p.low) for p in points if p.low is not None and p.high is not None
    ]
    taken += [box for _, run in runs for a, b in pairwise(run) for box in _along(a, b)]
    out = []
    for point in points:
        if point.row.setting is None or point.row.anchor:
            continue
        text = f"{point.row.setting:g}"
        width = 6.6 * len(text)
        for dx, dy in ((9, 13), (-9 - width, -6), (9, -6), (-9 - width, 13), (10, 4), (-10 - width, 4)):
            box = (point.x + dx, point.y + dy - 9, point.x + dx + width, point.y + dy + 2)
            inside = box[0] > canvas.left and box[2] < canvas.width - 2 and box[1] > 0
            if inside and box[3] < canvas.height - canvas.bottom and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                out.append((text, box[0], point.y + dy, point.style))
                break
    return out


def _along(a: _Point, b: _Point) -> list[Box]:
    """Small boxes that cover the line between two points."""
    pieces = max(1, math.ceil(math.hypot(b.x - a.x, b.y - a.y) / 4))
    spots = ((a.x + (b.x - a.x) * i / pieces, a.y + (b.y - a.y) * i / pieces) for i in range(pieces + 1))
    return [(x - 1.5, y - 1.5, x + 1.5, y + 1.5) for x, y in spots]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
