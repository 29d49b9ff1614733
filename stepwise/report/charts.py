"""Drawings of policies, as inline SVG: accuracy against cost, predictions and outcomes.

The accuracy-cost plot has a line per family of policies and a point per operating point. It is drawn twice, for a
laptop and for a phone, and the page shows one of them: text in a scaled-down SVG cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from stepwise.report.shell import draw
from stepwise.report.words import count, interval, percent, quantity
from stepwise.routing.compare import PolicyRow
from stepwise.routing.pomdp.fit_check import CalibrationBin

_BAR_HALF = 4.0  # half the width of an interval bar
_Box = tuple[float, float, float, float]  # left, top, right, bottom


# ----- accuracy against cost


class CostAxis(NamedTuple):
    """One way to count cost: its key and name, and the value of a row per problem (None: not known).

    >>> row = PolicyRow("Never", "never", None, 0.4, 0.3, 0.5, 0.0, 0, 900, None, 60, None, n=10)
    >>> [axis.value(row) for axis in COSTS]
    [0.0, 90.0, None]
    """

    key: str
    name: str
    axis: str
    value: Callable[[PolicyRow], float | None]


COSTS: tuple[CostAxis, ...] = (
    CostAxis("strong", "Strong tokens", "strong tokens per problem", lambda row: row.strong_tokens / row.n),
    CostAxis("all", "All tokens", "generated tokens per problem", lambda row: row.generated_tokens / row.n),
    CostAxis(
        "weights",
        "Parameter-tokens",
        "parameter-tokens per problem",
        lambda row: None if row.parameter_tokens is None else row.parameter_tokens / row.n,
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


class _Point(NamedTuple):
    """A row placed in the drawing; `low` and `high` are the ends of its interval bar, None where there is none."""

    row: PolicyRow
    style: str
    x: float
    y: float
    low: float | None
    high: float | None


def _styles(rows: Sequence[PolicyRow]) -> dict[str, str]:
    """CSS classes of each family: six colours and shapes, filled the first time round, then hollow; of a single model
    its own.
    """
    names = dict.fromkeys(row.family for row in rows if not row.anchor)
    styles = {name: f"f{i % 6}" + (" hollow" if i >= 6 else "") for i, name in enumerate(names)}
    return styles | {row.family: row.anchor for row in rows if row.anchor}


def legend(rows: Sequence[PolicyRow]) -> list[tuple[Markup, str]]:
    """Swatch and name of every family and of the single models that the rows hold.

    >>> row = PolicyRow("Never", "never", None, 0.4, 0.3, 0.5, 0.0, 0, 900, None, 60, None, n=10)
    >>> [name for _, name in legend([row])]
    ['weak model alone']
    """
    alone = {"never": "weak model alone", "always": "strong model alone"}
    styles = _styles(rows)
    order = [*(name for name in styles if name not in alone), *(name for name in alone if name in styles)]
    return [(draw("swatch", style=styles[name]), alone.get(name, name)) for name in order]


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `wanted` of them.

    Example:
        >>> ticks(0, 9, 4)
        [0.0, 5.0, 10.0]
    """
    span = max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-100)  # what is all but equal gets room
    raw = span / max(wanted - 1, 1)
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next((m * scale for m in (1, 2, 2.5, 5) if m * scale >= raw * 0.999), 10 * scale)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(12, 2 - math.floor(math.log10(step)))  # also of what is smaller than 1e-12
    return [round(i * step, digits) for i in range(first, max(last, first + 1) + 1)]


def plot_svg(rows: Sequence[PolicyRow], cost: CostAxis, canvas: _Canvas = WIDE) -> Markup:
    """One drawing of accuracy against `cost`; rows whose accuracy or cost is not known are left out.

    Example:
        svg = plot_svg([measured.row for measured in results], COSTS[0])
        Path("plot.html").write_text(svg)
    """
    placed = [(row, x) for row in rows if row.accuracy is not None and (x := cost.value(row)) is not None]
    if not placed:
        return draw("nothing", words="No policy has both an accuracy and this cost.")
    # The x axis starts at 0 unless that would leave more than a third of it empty.
    xs = [x for _, x in placed]
    largest, least = max(xs) or 1.0, min(xs)
    left = 0.0 if least < 0.35 * largest or least == largest else least - 0.05 * (largest - least)
    right = largest + 0.03 * (largest - left)
    ys = [y for row, _ in placed for y in (row.accuracy, row.accuracy_low, row.accuracy_high) if y is not None]
    y_ticks = ticks(max(min(ys) - 0.01, 0.0), min(max(ys) + 0.01, 1.0), 6)

    def across(value: float) -> float:
        return canvas.left + (canvas.width - canvas.left - canvas.right) * (value - left) / (right - left)

    def down(value: float) -> float:
        inner = canvas.height - canvas.top - canvas.bottom
        return canvas.top + inner * (y_ticks[-1] - value) / (y_ticks[-1] - y_ticks[0])

    points, styles = [], _styles(rows)
    for row, x in placed:
        low, high = (None if end is None else down(end) for end in (row.accuracy_low, row.accuracy_high))
        points.append(_Point(row, styles[row.family], across(x), down(row.accuracy or 0.0), low, high))
    lines = _lines(points)
    digits = 0 if all(abs(100 * t - round(100 * t)) < 1e-6 for t in y_ticks) else 1
    return draw(
        "plot",
        canvas=canvas,
        shape="wide" if canvas.width > 500 else "narrow",
        xs=[
            (across(t), quantity(t) if t >= 1000 else f"{t:.4g}")
            for t in ticks(left, right, canvas.ticks)
            if left <= t <= right
        ],
        ys=[(down(t), f"{100 * t:.{digits}f}") for t in y_ticks],
        axis=cost.axis,
        lines=[(kind, [(p.x, p.y) for p in line]) for kind, line in lines],
        points=[(point, _title(point.row, cost)) for point in points],
        labels=_labels(points, lines, canvas),
        summary=f"Accuracy against {cost.axis}, {len(points)} operating points; the table below holds the same "
        "figures.",
    )


def _lines(points: Sequence[_Point]) -> list[tuple[str, list[_Point]]]:
    """What is joined by a line, as (CSS classes, points from left to right): each family's points, and the two models.

    The line between the models is what sending each whole problem to one of them at random would give.
    """
    lines: dict[str, list[_Point]] = {}
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        lines.setdefault("chord" if point.row.anchor else f"series {point.style}", []).append(point)
    order = dict.fromkeys("chord" if point.row.anchor else f"series {point.style}" for point in points)
    return [(kind, lines[kind]) for kind in order if len(lines[kind]) > 1]


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
    points: Sequence[_Point], lines: Sequence[tuple[str, list[_Point]]], canvas: _Canvas
) -> list[tuple[str, float, float, str]]:
    """The settings beside their points, each at the first of six places where it covers nothing, else left out.

    As (text, x, y, style of its point).
    """
    taken: list[_Box] = [(p.x - 7, p.y - 7, p.x + 7, p.y + 7) for p in points]
    taken += [
        (p.x - _BAR_HALF, p.high, p.x + _BAR_HALF, p.low) for p in points if p.low is not None and p.high is not None
    ]
    for a, b in (pair for _, line in lines for pair in pairwise(line)):  # small boxes that cover the line between two
        pieces = max(1, math.ceil(math.hypot(b.x - a.x, b.y - a.y) / 4))
        spots = ((a.x + (b.x - a.x) * i / pieces, a.y + (b.y - a.y) * i / pieces) for i in range(pieces + 1))
        taken += [(x - 1.5, y - 1.5, x + 1.5, y + 1.5) for x, y in spots]

    def free(box: _Box) -> bool:
        inside = box[0] > canvas.left and box[2] < canvas.width - 2 and box[1] > 0
        over = any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
        return inside and box[3] < canvas.height - canvas.bottom and not over

    labels = []
    for point in (point for point in points if point.row.setting is not None and not point.row.anchor):
        text = f"{point.row.setting:.3g}"
        width = 6.6 * len(text)
        for dx, dy in ((9, 13), (-9 - width, -6), (9, -6), (-9 - width, 13), (10, 4), (-10 - width, 4)):
            box = (point.x + dx, point.y + dy - 9, point.x + dx + width, point.y + dy + 2)
            if free(box):
                taken.append(box)
                labels.append((text, box[0], point.y + dy, point.style))
                break
    return labels


def calibration_svg(bins: Sequence[CalibrationBin], title: str) -> str:
    """A plot that is a file of its own: one dot for each bin, its area growing with the number of drafts, and the bar
    of its interval.

    Both axes go from 0 to the highest interval; on the dashed line what was predicted is what happened.

    Example:
        Path("calibration.svg").write_text(calibration_svg(fit.card.held_out.calibration, "Belief in an error"))
    """
    highest = max([0.1, *(max(b.predicted, b.share.high) for b in bins)])
    top = next(t for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if t >= min(highest, 1.0))
    largest = max((b.n for b in bins), default=1)
    return str(draw("calibration", bins=bins, top=top, largest=largest, title=title)) + "\n"
