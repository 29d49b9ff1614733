"""The board as a table and as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stepwise.report.charts import NARROW, WIDE, CostAxis, legend, plot_svg
from stepwise.report.shell import write_page
from stepwise.report.words import MISSING
from stepwise.routing.board import BOARD_COSTS, Board, BoardChange, BoardCost, BoardLine, BoardRow
from stepwise.routing.compare import PolicyRow
from stepwise.routing.estimates import Estimate
from stepwise.stats import wilson

_SHOWN = 6  # entries in a drawing: as many as there are colours


def board_table(lines: Sequence[BoardLine], reference: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and cells: the area under PGR against cost (a random mix of both models has .5) and less that of the
    reference; points of accuracy over a random mix at shares of the cost (at no more than the weak model's, where it
    was trained); the share of the strong model's cost, in percent, for 80 % of the gap.

    Example:
        run.table("strong tokens", *board_table(board.lines("strong_tokens"), "threshold"))
    """
    shares = [0.1, 0.2, *([0.0] if any(line.level == "trained" for line in lines) else [])]
    rows = [
        (
            line.entry,
            _figure(line.area, ".2f"),
            "" if line.over is None else _figure(line.over, "+.2f"),
            *(_points(line.gains[share]) for share in shares),
            _figure(line.cpt[0.8], ".0f", 100),
        )
        for line in lines
    ]
    return ("entry", "area", f"- {reference}", *(f"+ at {share:.0%}" for share in shares), "80 % for"), rows


def change_cells(changes: Sequence[BoardChange]) -> Iterator[tuple[str, str, str, str]]:
    """Entry, cost, change of the area, and what that says.

    Example:
        run.table("against", ("entry", "cost", "area", ""), change_cells([*board.against(before)]))
    """
    for change in changes:
        yield change.entry, BOARD_COSTS[change.cost], _figure(change.area, "+.3f"), change.verdict


def write_board(
    path: str | Path, board: Board, lines: dict[BoardCost, list[BoardLine]], notes: Sequence[str], reference: str,
    changes: Sequence[BoardChange] = (), lab: bool = False,
) -> Path:  # fmt: skip
    """Write the page: for each cost a drawing of the first entries' settings and the table of all; returns the path.

    Example:
        write_board("board.html", board, {"strong_tokens": board.lines("strong_tokens")}, [], "threshold")
    """
    sections = [
        (BOARD_COSTS[cost], *_drawn(board, cost, own), *board_table(own, reference)) for cost, own in lines.items()
    ]
    return write_page(
        path,
        "board.html.jinja",
        title="The board",
        subtitle="Every policy, scorer and trained weak model on the same problems, at equal cost.",
        meta={key.replace("_", " "): _fact(value) for key, value in board.facts.items() if key != "sampling"},
        notes=notes,
        lab=lab,
        scripts=("common.js",),
        sections=sections,
        changes=[*change_cells(changes)],
    )


def _drawn(board: Board, cost: BoardCost, lines: Sequence[BoardLine]) -> tuple[list[Any], list[Any]]:
    shown = {"never", "always", *(line.entry for line in lines[:_SHOWN])}
    rows = [(_policy_row(row), row.costs(cost)) for row in board.rows if row.entry in shown]
    means = {row.policy: sum(costs) / len(costs) for row, costs in rows if costs}
    name = BOARD_COSTS[cost]
    axis = CostAxis(cost, name, f"{name} per problem", lambda row: means.get(row.policy))
    drawn = [row for row, _ in rows]
    return [plot_svg(drawn, axis, canvas) for canvas in (WIDE, NARROW)], legend(drawn)


def _policy_row(row: BoardRow) -> PolicyRow:
    n = len(row.correct)
    accuracy = wilson(round(sum(row.correct)), n)
    name = row.entry if row.setting is None else f"{row.entry} {row.setting:.6g}"
    shown = None if row.setting is None else float(f"{row.setting:.2g}")
    return PolicyRow(
        name, row.entry, shown, sum(row.correct) / n, accuracy.low, accuracy.high, None,
        round(sum(row.strong_tokens)), round(sum(row.all_tokens)), None, 0, None, n,
    )  # fmt: skip


def _fact(value: Any) -> str:
    """Prices and speeds by role."""
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    return ", ".join(f"{role} {' / '.join(map(str, each)) if each else 'unknown'}" for role, each in value.items())


def _points(found: Estimate) -> str:
    """In points, with half the width of the interval."""
    if found.value is None or found.low is None or found.high is None:
        return MISSING
    return f"{100 * found.value + 0.0:+.0f} ±{50 * (found.high - found.low):.0f}"


def _figure(found: Estimate, form: str, scale: float = 1.0) -> str:
    if found.value is None:
        return MISSING
    value, low, high = (
        MISSING if x is None else re.sub(r"\b0\.", ".", f"{scale * x:{form}}")
        for x in (found.value, found.low, found.high)
    )
    return f"{value} ({low}, {high})"
