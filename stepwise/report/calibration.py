"""A calibration plot as a file of its own: what was predicted against what happened, with intervals, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from stepwise.report.svg import tag
from stepwise.routing.router_fit import CalibrationBin

_SIZE, _LEFT, _BASE, _INNER = 360, 52, 310, 290
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}.grid{stroke:#ddd}.axis{stroke:#444;fill:none}"
    ".even{stroke:#999;stroke-dasharray:4 4}.bar{stroke:#2563eb}.dot{fill:#2563eb}"
)


def calibration_svg(bins: Sequence[CalibrationBin], title: str) -> str:
    """One dot for each bin, its area growing with the number of drafts, and the bar of its interval.

    Both axes go from 0 to the highest interval; on the dashed line what was predicted is what happened.
    """
    most = max([0.1, *(max(b.predicted, b.share.high) for b in bins)])
    top = next(t for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if t >= min(most, 1.0))

    def across(value: float) -> float:
        return _LEFT + _INNER * value / top

    def down(value: float) -> float:
        return _BASE - _INNER * value / top

    body: list[Markup] = [tag("style", _STYLE), tag("text", title, x=_LEFT, y=14)]
    for i in range(5):
        value = top * i / 4
        body.append(tag("path", d=f"M{_LEFT} {down(value):.1f}H{_LEFT + _INNER}", class_="grid"))
        body.append(tag("text", f"{100 * value:.3g}", x=_LEFT - 8, y=down(value) + 4, text_anchor="end"))
        body.append(tag("text", f"{100 * value:.3g}", x=across(value), y=_BASE + 16, text_anchor="middle"))
    body.append(tag("path", d=f"M{_LEFT} {_BASE}L{_LEFT + _INNER} {down(top):.1f}", class_="even"))
    body.append(tag("path", d=f"M{_LEFT} {down(top):.1f}V{_BASE}H{_LEFT + _INNER}", class_="axis"))
    largest = max((b.n for b in bins), default=1)
    for b in bins:
        label = f"predicted {b.predicted:.1%}, happened {b.share.value:.1%} of {b.n}"
        bar = f"M{across(b.predicted):.1f} {down(b.share.low):.1f}V{down(b.share.high):.1f}"
        radius = 2.0 + 3.0 * (b.n / largest) ** 0.5
        dot = tag("circle", tag("title", label), cx=across(b.predicted), cy=down(b.share.value), r=radius, class_="dot")
        body += [tag("path", d=bar, class_="bar"), dot]
    middle = _LEFT + _INNER / 2
    body.append(tag("text", "belief in wrong just now (%)", x=middle, y=_BASE + 36, text_anchor="middle"))
    turn = f"translate(14 {_BASE - _INNER / 2:.0f}) rotate(-90)"
    body.append(tag("text", "wrong just now (%)", transform=turn, text_anchor="middle"))
    box = f"0 0 {_SIZE} {_SIZE}"
    return str(tag("svg", *body, xmlns="http://www.w3.org/2000/svg", viewBox=box, width=_SIZE, height=_SIZE)) + "\n"
