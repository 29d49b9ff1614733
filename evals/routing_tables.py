"""The tables, plots and sentences of `evals.routing`, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from stepwise.routing.estimates import LEVELS, Estimate, Outcomes, estimate
from stepwise.routing.metrics import cpt_interpolated, frontier_area, pgr
from stepwise.routing.pomdp.fit import FitCard
from stepwise.runs.shell import Run

from .routing_claims import (
    Chosen,
    Ends,
    accuracy_difference,
    break_even,
    choose,
    each_against_query,
    filtered_against_published,
    most_of_the_gap,
    step_against_query,
    who_wins,
    why_belief,
    why_step,
)
from .routing_rows import HINDSIGHT, STRONG, Cost, Row, curves, hindsight
from .routing_samples import MAJORITY

REFERENCE = "threshold"
MIXES = ("random", "random problems")  # of the two models: no policy
ON_THE_PLOT = (
    "never",
    "always",
    "random",
    "threshold",
    "planned",
    "published",
    "belief",
    "score drop",
    "first-token entropy",
    "resample 3, then escalate",
    "question classifier",
    "cascade, least score",
    MAJORITY,
    "truth at each step",
)


class Line(NamedTuple):
    """One arm under one cost. CPT are shares of the strong model alone, interpolated; `against`: mean accuracy at
    equal cost less the reference's, over costs from the weak model's to the strong model's (or twice the weak one's).
    """

    arm: str
    level: str
    settings: int
    area: Estimate
    against: Estimate | None
    cpt: tuple[Estimate, ...]
    chosen: Chosen | None
    most: float


def compared(rows: Sequence[Row], cost: Cost, *, samples: int, reached: Sequence[float] = LEVELS) -> list[Line]:
    """One line for each arm but the two models alone."""
    arms, ends = parts(rows, cost)
    levels = levels_of(rows)
    least = ends.weak.point.cost / ends.strong.point.cost
    shares = [least + (max(1.0, least + 1.0) - least) * i / 20 for i in range(1, 21)]
    made = []
    for arm, own in arms.items():
        both = [*ends, *own]

        def share(points: Sequence[Any], x: float) -> float | None:
            found = cpt_interpolated(points[2:], points[0], points[1], x)
            return None if found is None else found / points[1].cost

        reference = arms.get(REFERENCE)
        made.append(
            Line(
                arm,
                levels[arm],
                len(own),
                estimate(lambda p: frontier_area(p[2:], p[0], p[1]), both, samples=samples),
                None
                if reference is None or arm == REFERENCE
                else accuracy_difference(own, reference, ends, samples=samples, shares=shares),
                tuple(
                    estimate(lambda p, x=x: share(p, x), both, samples=samples, none_is_dear=True)  # type: ignore[misc]
                    for x in reached
                ),
                choose({arm: own}, ends, 0.8, samples=samples),
                max(pgr(one.point, ends.weak.point, ends.strong.point) or 0.0 for one in own),
            )
        )
    return made


def parts(rows: Sequence[Row], cost: Cost) -> tuple[dict[str, list[Outcomes]], Ends]:
    """The arms, and the two models alone."""
    arms = curves(rows, cost)
    weak, strong = arms.pop("never")[0], arms.pop("always")[0]
    bound = hindsight(rows, cost)
    return {**arms, **({HINDSIGHT: [bound]} if bound else {})}, Ends(weak, strong)


def sentences(rows: Sequence[Row], counted: Sequence[Cost], card: FitCard | None = None, *, samples: int) -> list[str]:
    """The four claims with their figures and reasons; `card` is that of the fit. Bounds know the truth and are left
    out, and so are, in (a) to (c), samples, which do not route.
    """
    arms, ends = parts(rows, STRONG)
    levels = levels_of(rows)
    first, weak, strong = ends, ends.weak.point, ends.strong.point
    n = len(ends.weak.correct)
    lines = [
        f"The weak model alone solves {weak.accuracy:.1%} of {n} problems, the strong one alone {strong.accuracy:.1%}."
    ]
    if strong.accuracy <= weak.accuracy:
        return [*lines, "There is no gap to recover."]
    step, query = ({arm: own for arm, own in arms.items() if levels[arm] == level} for level in ("step", "query"))
    if step and query:
        lines.append(step_against_query(step, query, ends, samples=samples))
        lines += filter(None, [each_against_query(step, query, ends, samples=samples)])
    lines += filter(None, [why_step(rows)])
    compared_beliefs = filtered_against_published(arms, ends, samples=samples)
    lines += [*compared_beliefs, *([why_belief(card)] if card and compared_beliefs else [])]
    if step:
        lines.append(most_of_the_gap(step, ends, samples=samples))
    for cost in counted:
        arms, ends = parts(rows, cost)
        routed = {arm: own for arm, own in arms.items() if levels[arm] != "bound" and arm not in MIXES}
        if routed:
            lines.append(who_wins(cost.name, routed, ends, samples=samples))
    best = choose(step, first, 0.8, samples=samples) if step else None
    if best is not None:
        lines.append(break_even(rows, best.label))
    return lines


def levels_of(rows: Sequence[Row]) -> dict[str, str]:
    """The level of every arm."""
    return {row.arm: row.level for row in rows} | {HINDSIGHT: "bound"}


def show(run: Run[Any], cost: Cost, lines: Sequence[Line]) -> None:
    """Print the table of one cost."""
    from rich.table import Table

    title = f"Cost: {cost.name}, as shares of the strong model alone (95 % bootstrap intervals over problems)"
    table = Table(title=title, title_justify="left")
    for column in (
        "",
        "level",
        "n",
        "area",
        f"accuracy - {REFERENCE}'s",
        "CPT50",
        "CPT80",
        "CPT95",
        "best PGR",
        "80 % chosen on a half",
    ):
        table.add_column(column, justify="left" if column in ("", "level") else "right")
    for line in lines:
        table.add_row(
            line.arm,
            line.level,
            str(line.settings),
            _shown(line.area),
            "" if line.against is None else _shown(line.against, 100, "+.1f"),
            *(_shown(one, 100, ".0f") for one in line.cpt),
            f"{line.most:.2f}",
            ""
            if line.chosen is None
            else f"{line.chosen.pgr.value:.2f} ±{line.chosen.error:.2f} at {line.chosen.share:.0%}",
        )
    run.console.print(table)


def _shown(found: Estimate, scale: float = 1.0, form: str = ".3f") -> str:
    if found.value is None:
        return "–"
    low, high = ("–" if end is None else f"{scale * end:{form}}" for end in (found.low, found.high))
    return f"{scale * found.value:{form}} [{low}, {high}]"
