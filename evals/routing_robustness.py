"""Routing with a scorer that is worse than the one the policies were fitted on, and on longer problems.

Every condition (a changed scorer on the usual problems, or problems longer than any seen in fitting) is measured twice:
with the policies as fitted on the scorer as it is and on the usual problems, and fitted again under the condition on
other problems. Prints the area under the frontier of each arm, what becomes of the setting that was the cheapest to
80 % of the gap before, and what refitting gives back; writes one file of rows per condition and robustness.json. Lab
figures: a test bed, no benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from pydantic import Field, PositiveInt

from stepwise.errors import DataError
from stepwise.routing.estimates import Estimate, Outcomes, estimate
from stepwise.routing.metrics import cheapest, frontier_area, pgr
from stepwise.runs.shell import Run, program

from .routing import SizeOptions, material_of, measured
from .routing_arms import NAMES as ARM_NAMES
from .routing_arms import chosen
from .routing_claims import Ends
from .routing_rows import STRONG, Row
from .routing_tables import parts
from .routing_world import SCORERS, World, opened

USUAL = "as it is"
LONG = "longer problems"
DEFAULT = (
    "threshold",
    "belief",
    "belief, memoryless pair",
    "belief, published",
    "planned",
    "published",
    "score drop",
    "cumulative sum",
    "cascade, least score",
)


class Condition(NamedTuple):
    """What is measured: `name` without "refitted", the scorer, the split, whether the arms are fitted under it."""

    name: str
    scorer: str
    split: str
    refit: bool

    @property
    def key(self) -> str:
        """Its name in tables and of its file."""
        return f"{self.name}, refitted" if self.refit else self.name


Rows = Mapping[str, Sequence[Row]]


class _Options(SizeOptions):
    seeds: PositiveInt = 1
    points: PositiveInt = 8
    arms: tuple[str, ...] = Field(tuple(DEFAULT), description=f"of {', '.join(ARM_NAMES)}")
    scorers: tuple[str, ...] = Field(
        ("noisy", "cold", "hot", "strict", "lenient"),
        description="; ".join(f"{name}: {what}" for name, (what, _) in SCORERS.items() if name != "plain"),
    )


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    unknown = [kind for kind in run.args.scorers if kind not in SCORERS]
    if unknown:
        raise DataError(f"--scorers {unknown[0]!r} is none; the kinds are {', '.join(SCORERS)}")
    with opened(run.config, run.args.cache or run.path("calls.jsonl")) as world:
        rows = {one.key: of_condition(run, world, one) for one in conditions(run.args.scorers)}
        run.say(world.cache.summary())
    report(run, rows)


def conditions(scorers: Sequence[str]) -> list[Condition]:
    """The usual one, then each other with the policies as they were and fitted again."""
    changed = [(kind, kind, "test") for kind in scorers] + [(LONG, "plain", "test-long")]
    return [
        Condition(USUAL, "plain", "test", False),
        *(Condition(*one, refit) for one in changed for refit in (False, True)),
    ]


def of_condition(run: Run[_Options], world: World, condition: Condition) -> list[Row]:
    """The rows of one condition."""
    m = material_of(world, run.args, condition.scorer, condition.split, condition.refit)
    file = f"rows_{condition.key.replace(', ', '_').replace(' ', '_')}.jsonl"
    return measured(run, m, chosen(run.args.arms), file, range(run.args.seeds))


def areas(rows: Rows, samples: int) -> dict[str, dict[str, Estimate]]:
    """Area under the frontier by arm and condition."""
    found: dict[str, dict[str, Estimate]] = {}
    for key, own in rows.items():
        arms, ends = parts(own, STRONG)
        for arm, curve in arms.items():
            found.setdefault(arm, {})[key] = estimate(
                lambda p: frontier_area(p[2:], p[0], p[1]), [*ends, *curve], samples=samples
            )
    return found


def lost(usual: Sequence[Row], changed: Sequence[Row], samples: int) -> dict[str, Estimate]:
    """By arm the area under a condition less that under the usual one, on the same problems."""
    (before, ends), (after, others) = parts(usual, STRONG), parts(changed, STRONG)

    def of(arm: str) -> Estimate:
        first, second = before[arm], after[arm]
        cut = 2 + len(first)

        def change(p: Sequence[Any]) -> float | None:
            old = frontier_area(p[2:cut], p[0], p[1])
            new = frontier_area(p[cut + 2 :], p[cut], p[cut + 1])
            return None if old is None or new is None else new - old

        return estimate(change, [*ends, *first, *others, *second], samples=samples)

    return {arm: of(arm) for arm in before if arm in after}


def kept_settings(rows: Rows) -> dict[str, dict[str, tuple[float, float]]]:
    """By arm and condition (those without refitting) the PGR and the cost share of the setting that was the cheapest to
    80 % of the gap under the usual condition; an arm that never gets there is left out.
    """
    arms, ends = parts(rows[USUAL], STRONG)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for arm, curve in arms.items():
        best = cheapest([one.point for one in curve], ends.weak.point, ends.strong.point, 0.8)
        if best is None:
            continue
        for key, own in rows.items():
            if key.endswith("refitted"):
                continue
            there, their_ends = parts(own, STRONG)
            same = [one for one in there.get(arm, []) if one.label == curve[best].label]
            if same:
                found.setdefault(arm, {})[key] = _at(same[0], their_ends)
    return found


def _at(one: Outcomes, ends: Ends) -> tuple[float, float]:
    share = pgr(one.point, ends.weak.point, ends.strong.point) or 0.0
    return share, one.point.cost / ends.strong.point.cost


def sentences(rows: Rows, area: Mapping[str, Mapping[str, Estimate]], samples: int) -> list[str]:
    """For each condition who loses most and least, and what refitting gives back."""
    said = []
    for key in rows:
        if key == USUAL or key.endswith("refitted"):
            continue
        if key == LONG:  # other problems: nothing to pair
            values = {arm: own[key].value for arm, own in area.items() if key in own}
            again = {arm: own[f"{key}, refitted"].value for arm, own in area.items() if f"{key}, refitted" in own}
            shown = "; ".join(f"{arm} {_area(values[arm])}, refitted {_area(again.get(arm))}" for arm in values)
            said.append(f"{key}: area {shown}.")
            continue
        falls, back = (lost(rows[USUAL], rows[name], samples) for name in (key, f"{key}, refitted"))
        order = sorted(falls, key=lambda arm: falls[arm].value or 0.0)
        shown = "; ".join(f"{arm} {_change(falls[arm])}, refitted {_change(back[arm])}" for arm in order)
        said.append(f"{key}: change of the area, those that lose most first: {shown}.")
    return said


def report(run: Run[_Options], rows: Rows) -> None:
    """Print the tables and sentences, and write them."""
    samples = run.args.resamples
    area, settings = areas(rows, samples), kept_settings(rows)
    _table(
        run,
        "Area under the frontier of strong tokens (a random mix has 0.5)",
        list(rows),
        {arm: [_area(own[key].value) if key in own else "" for key in rows] for arm, own in area.items()},
    )
    kept = [key for key in rows if not key.endswith("refitted")]
    _table(
        run,
        "The setting that was the cheapest to 80 % of the gap, kept: PGR and share of the strong model's tokens",
        kept,
        {
            arm: [f"{own[key][0]:.2f} at {own[key][1]:.0%}" if key in own else "" for key in kept]
            for arm, own in settings.items()
        },
    )
    said = sentences(rows, area, samples)
    for sentence in said:
        run.say(sentence)
    result = {
        "area": {arm: {key: asdict(one) for key, one in own.items()} for arm, own in area.items()},
        "kept": settings,
        "sentences": said,
    }
    run.path("robustness.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _table(run: Run[_Options], title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    run.console.print(table)


def _area(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _change(found: Estimate) -> str:
    if found.value is None:
        return "unknown"
    low, high = ("?" if end is None else f"{end:+.3f}" for end in (found.low, found.high))
    return f"{found.value:+.3f} ({low} to {high})"


if __name__ == "__main__":
    raise SystemExit(main())
