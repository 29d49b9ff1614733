"""The training comparison as a page: what each arm gains over sham, and pass@1 by family and length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from stepwise.lab.problems import LabProblem
from stepwise.report.charts import ticks
from stepwise.report.shell import draw

from .pages import page, tag
from .training_arms import ARMS, CLONED, CREDIT, PAPER
from .training_measures import SAMPLES, Measured, interval, scores

CONTROL = "sham"
GROUPS = {"The paper's arms": PAPER, "What to clone, without RL": CLONED, "Credit": CREDIT}
_LEFT, _RIGHT, _TOP, _ROW, _WIDTH = 168, 24, 30, 24, 760
Arms = dict[str, list[Measured]]


def training_page(by_arm: Arms, problems: Sequence[LabProblem], masks: dict[str, np.ndarray]) -> str:
    """The text of the page; where sham was not run, without the gains over it."""
    seeds = sorted({len(found) for found in by_arm.values()})
    note = (
        f"Lab figures: a test bed, no benchmark. {len(problems)} held-out problems, {SAMPLES} samples each; "
        f"{' to '.join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))} seed(s) of one weak model; 95 % "
        "intervals, problems and seeds drawn again together. Failed by base: none of 16 other samples is right."
    )
    parts = [_gains(by_arm, masks)] if CONTROL in by_arm else []
    families = sorted({trap for made in problems for trap in made.traps})
    of_family = {name.replace("_", " "): np.array([name in made.traps for made in problems]) for name in families}
    operations = np.array([len(made.operations) for made in problems])
    of_length = {str(n): operations == n for n in sorted(set(operations.tolist()))}
    parts += [
        _shares("By stratum: pass@1, %", by_arm, masks),
        _shares("By family of trap: pass@1, %", by_arm, of_family),
        _shares("By length in operations: pass@1, %", by_arm, of_length),
    ]
    return page("Training in the lab", note, parts)


def _gains(by_arm: Arms, masks: dict[str, np.ndarray]) -> Markup:
    """A row for each arm: its difference from sham with the interval, over all problems and those that base fails."""
    whole = {"all problems": np.ones(len(next(iter(masks.values()))), bool), "failed by base": masks["failed by base"]}
    rows: list[tuple[str, list[tuple[float, float, float]]]] = []
    for title, arms in GROUPS.items():
        names = [name for name in arms if name in by_arm and name != CONTROL]
        if names:
            rows.append((title, []))
        for name in names:
            gains = [interval(by_arm[name], by_arm[CONTROL], mask) for mask in whole.values() if mask.any()]
            rows.append((name, [(100 * a, 100 * b, 100 * c) for a, b, c in gains]))
    ends = [value for _, found in rows for one in found for value in one]
    marks = ticks(min(0.0, *ends), max(0.0, *ends), 8)

    def across(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - marks[0]) / (marks[-1] - marks[0])

    height = _TOP + _ROW * len(rows) + 30
    body = []
    for mark in marks:
        body.append(tag("path", d=f"M{across(mark):.1f} {_TOP}V{height - 30}", class_="axis" if mark == 0 else "grid"))
        body.append(tag("text", f"{mark:+g}" if mark else "0", x=across(mark), y=height - 12, text_anchor="middle"))
    for place, (name, found) in enumerate(rows):
        y = _TOP + _ROW * place + _ROW / 2
        body.append(tag("text", name, x=0, y=y + 4, **({} if found else {"class_": "axis-name"})))
        for which, (mean, low, high) in enumerate(found):
            style, at = ("f0", "f3")[which], y - 4 + 8 * which
            said = f"{name}, {list(whole)[which]}: {mean:+.1f} points over sham ({low:+.1f} to {high:+.1f})"
            line = tag("path", d=f"M{across(low):.1f} {at:.1f}H{across(high):.1f}", class_=f"interval {style}")
            body.append(
                tag(
                    "g",
                    tag("title", said),
                    line,
                    draw("marker", style=style, x=across(mean), y=at, size=4),
                    class_="point",
                )
            )
    drawing = tag("svg", *body, viewBox=f"0 0 {_WIDTH} {height}", class_="plot", role="img", aria_label="Gains")
    keys = [tag("li", _swatch(style), text) for style, text in zip(("f0", "f3"), whole, strict=True)]
    legend = tag("ul", *keys, class_="legend")
    return tag("section", tag("h2", "Points of pass@1 over sham"), legend, tag("div", drawing, class_="scroll"))


def _swatch(style: str) -> Markup:
    return tag(
        "svg",
        draw("marker", style=style, x=8, y=8, size=4),
        viewBox="0 0 16 16",
        width=16,
        height=16,
        aria_hidden="true",
    )


def _shares(title: str, by_arm: Arms, masks: dict[str, np.ndarray]) -> Markup:
    """pass@1 of each arm over the masked problems, a darker cell for a higher share."""
    shown = {name: mask for name, mask in masks.items() if mask.any()}
    head = tag("tr", tag("th", "arm"), *(tag("th", f"{name} ({int(mask.sum())})") for name, mask in shown.items()))
    rows = []
    for name, found in by_arm.items():
        one, cells = scores(found, 1), []
        for mask in shown.values():
            share = 100 * float(one[:, mask].mean())
            shade = f"padding-right: 6px; background: color-mix(in srgb, var(--f2) {share / 2:.0f}%, transparent)"
            cells.append(tag("td", f"{share:.1f}", style=shade))
        rows.append(tag("tr", tag("th", name, title=ARMS[name].labels), *cells))
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    return tag("section", tag("h2", title), tag("div", table, class_="scroll"))
