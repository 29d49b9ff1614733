"""Accuracy against expected strong calls of every kind of routing policy, in two model worlds.

Policies: a threshold on the score, TRIM's published rule, memoryless with the true prior of the step, the filtered
belief with a threshold tau and with the optimal plan (exact), and the state itself. Worlds: "drawn", where the pair
(least earlier score, current score) is drawn anew at every step, as in TRIM's POMDP; "carried", where the least earlier
score is that of the solution's own steps, while the policies keep the tables of the first.

--data is TRIM's published parameters as plain JSON; the figures, with the published hazard, are then compared with
known ones. Without it, a stand-in with 10 bins and the hazard as it should be. All figures are of models, not of real
traces. Writes frontier.json and frontier.html, with a plot for each world.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from pydantic import PositiveInt
from rich.table import Table

from evals.frontier_policies import (
    SWEEP,
    Frontier,
    filter_planned,
    filter_tau,
    follow,
    memoryless,
    optimal,
    published,
    solve,
    threshold,
)
from evals.frontier_reference import REFERENCE, ROUNDING
from evals.frontier_worlds import World, exact, pooled_pairs
from evals.pages import page
from evals.pomdp import load
from stepwise.io import write_text
from stepwise.report.charts import NARROW, WIDE, CostAxis, legend, plot_svg
from stepwise.routing.compare import PolicyRow
from stepwise.routing.metrics import OperatingPoint
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program

BUDGETS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)
SIGMAS = 3.0
STAND_IN_BINS = 10
FOLLOWED = (0.1, 0.35, 0.65)  # prices at which the optimal filter is simulated against its root value


class _Options(Options):
    data: Path | None = None
    """published parameters; without it, a stand-in"""
    episodes: PositiveInt = 100000
    """problems simulated"""
    every: PositiveInt = 1
    """take every so many-th price of the optimal frontiers (their bound is looser then)"""
    seed: int = 1
    """of the simulation"""
    corrected_hazard: bool = False
    """with --data: count steps right, not as published (see the solver)"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> int:
    data, episodes, seed = run.args.data, run.args.episodes, run.args.seed
    as_published = data is not None and not run.args.corrected_hazard
    drawn = world_of(data, published_hazard=as_published)
    result: dict[str, Any] = {"data": "published" if data else "stand-in", "episodes": episodes, "worlds": {}}
    plots, missed = [], list[str]()
    for world in (drawn, replace(drawn, kind="carried")):
        frontiers = measure(world, episodes, seed, run.args.every)
        checks = against_bounds(world, frontiers, episodes, seed)
        if as_published:
            checks += against_reference(world, frontiers)
        rows = {name: [frontier.at(calls) for calls in BUDGETS] for name, frontier in frontiers.items()}
        result["worlds"][world.kind] = {
            "calls": BUDGETS,
            "accuracy": {name: [value for value, _ in row] for name, row in rows.items()},
            "standard_error": {name: [error for _, error in row] for name, row in rows.items()},
            "points": {name: [(p.cost, p.accuracy) for p in frontier.points] for name, frontier in frontiers.items()},
            "checks": checks,
        }
        _print(run, world, rows, checks)
        missed += [check["what"] for check in checks if not check["held"]]
        plots.append(plot(world, frontiers, episodes))
    run.path("frontier.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    note = "Accuracy against strong calls in two worlds of TRIM's POMDP. Figures of models, not of real traces."
    path = run.path("frontier.html")
    write_text(path, page("Model frontier", note, plots))
    run.say(f"Plots: {path.resolve().as_uri()}")
    return run.missed(missed)


def world_of(path: Path | None, *, published_hazard: bool) -> World:
    """The world "drawn" of the published parameters, or of a stand-in whose pairs are those of its own drafts."""
    if path is None:
        base = load(None, "score", STAND_IN_BINS)
        law = pooled_pairs(base)
        return World("drawn", replace(base, observation=law.rows), law, published_hazard)
    model = load(path, "pair")
    return World(
        "drawn", model, ObservationLaw.from_dict(json.loads(path.read_text(encoding="utf-8"))), published_hazard
    )


def measure(world: World, episodes: int, seed: int, every: int) -> dict[str, Frontier]:
    """The frontier of each policy by name. "plan" is a plan that is optimal in the other world only."""
    model = world.model
    plans = solve(world, model, SWEEP)
    makers: dict[str, Callable[[], Frontier]] = {
        "threshold": lambda: threshold(world),
        "published rule, gate 0.4": lambda: published(world, plans, 0.4),
        "published rule, gate 0.5": lambda: published(world, plans, 0.5),
        "uniform prior, no gate": lambda: published(world, plans, None),
        "memoryless, true prior": lambda: memoryless(world, plans),
        "filter on pair, tau": lambda: filter_tau(world, episodes, seed, pair=True),
        "filter on score, tau": lambda: filter_tau(world, episodes, seed, pair=False),
        "filter on score, optimal": lambda: optimal(world, world.on_score, every),
        "perfect state": lambda: optimal(world, world.on_state, every),
    }
    if world.kind == "drawn":
        makers["filter on pair, optimal"] = lambda: optimal(world, model, every)
    else:
        makers["filter on pair, plan"] = lambda: filter_planned(world, plans, episodes, seed, pair=True)
    made: dict[str, Frontier] = {}
    with progress(f'world "{world.kind}"', len(makers)) as advance:
        for name, make in makers.items():
            made[name] = make()
            advance(1)
    return made


def against_bounds(world: World, frontiers: dict[str, Frontier], episodes: int, seed: int) -> list[dict[str, Any]]:
    """Whether simulation agrees with proof: root values are earned, and nothing beats the optimum of what it sees.

    That is the plan on pairs in the world "drawn", the plan on the current score for who sees no other in both worlds,
    and the state for all.
    """
    checks = []
    pair = world.kind == "drawn"
    model = world.model if pair else world.on_score
    for price, plan in solve(world, model, FOLLOWED).items():
        done, fee = follow(world, plan, episodes, seed, pair=pair), price * model.tokens_per_step / model.reward
        earned = done.point.accuracy - fee * done.point.cost
        value = sum(plan.root_value) / 2 / model.reward
        checks.append(_check(f"filter earns the root value at price {price}", value, earned, done.error(fee)))
    bounds = {"perfect state": list(frontiers), "filter on score, optimal": ["threshold", "filter on score, tau"]}
    if world.kind == "drawn":
        bounds["filter on pair, optimal"] = [name for name in frontiers if name != "perfect state"]
    for best, names in bounds.items():
        places = [(name, calls) for name in names if name != best for calls in BUDGETS]

        def excess(place: tuple[str, float], best: str = best) -> float:
            ours, error = frontiers[place[0]].at(place[1])
            return ours - SIGMAS * error - frontiers[best].at(place[1])[0]

        name, calls = max(places, key=excess)
        what = f"no policy beats {best}; nearest: {name} at {calls} calls"
        check = _check(what, frontiers[best].at(calls)[0], *frontiers[name].at(calls))
        checks.append(check | {"held": excess((name, calls)) <= ROUNDING})
    return checks


def against_reference(world: World, frontiers: dict[str, Frontier]) -> list[dict[str, Any]]:
    """Known accuracies beside ours."""
    checks = []
    for name, known in REFERENCE[world.kind].items():
        for calls, value in known.accuracy.items():
            ours, error = frontiers[name].at(calls)
            checks.append(_check(f"{name} at {calls} calls", value, ours, math.hypot(error, known.error)))
    return checks


def _check(what: str, reference: float, ours: float, error: float) -> dict[str, Any]:
    held = abs(ours - reference) <= SIGMAS * error + ROUNDING
    return {"what": what, "reference": reference, "ours": ours, "standard_error": error, "held": held}


def plot(world: World, frontiers: dict[str, Frontier], episodes: int) -> Markup:
    """The world's heading, legend and plot, as HTML."""

    def row(name: str, family: str, point: OperatingPoint) -> PolicyRow:
        calls = round(point.cost * episodes)
        tokens = round(calls * world.model.tokens_per_step)
        accuracy = min(point.accuracy, 1.0)
        return PolicyRow(name, family, None, accuracy, None, None, None, tokens, tokens, None, calls, None, episodes)

    steps, columns = len(world.ends), len(world.law.rows[0])
    ends = [exact(world, np.full((steps, columns), always)) for always in (False, True)]
    rows = [row("never", "never", ends[0])]
    for name, frontier in frontiers.items():
        rows += [row(name, name, OperatingPoint(calls, frontier.at(calls)[0])) for calls in (0.125, *BUDGETS)]
    calls_axis = CostAxis("calls", "Strong calls", "strong calls per problem", lambda r: r.calls / r.n)
    key = Markup(" ").join(Markup("<span>{}{}</span>").format(swatch, text) for swatch, text in legend(rows))
    drawings = Markup("").join(plot_svg(rows, calls_axis, canvas) for canvas in (WIDE, NARROW))
    return Markup('<h2>World "{}"</h2><p>{}</p>{}').format(world.kind, key, drawings)


def _print(
    run: Run[_Options], world: World, rows: dict[str, list[tuple[float, float]]], checks: list[dict[str, Any]]
) -> None:
    table = Table(title=f'World "{world.kind}": accuracy at expected strong calls', title_justify="left")
    table.add_column("policy")
    for calls in BUDGETS:
        table.add_column(f"{calls:g}", justify="right")
    table.add_column("s.e. up to", justify="right")
    for name, row in rows.items():
        error = max(error for _, error in row)
        table.add_row(name, *(f"{value:.3f}" for value, _ in row), f"{error:.4f}" if error else "exact")
    run.console.print(table)
    table = Table(title=f"Checks: within {SIGMAS:g} standard errors and {ROUNDING}", title_justify="left")
    for column in ("", "reference", "ours", "s.e.", ""):
        table.add_column(column, justify="right" if column in ("reference", "ours", "s.e.") else "left")
    for check in checks:
        figures = (f"{check['reference']:.4f}", f"{check['ours']:.4f}", f"{check['standard_error']:.4f}")
        table.add_row(check["what"], *figures, "ok" if check["held"] else "MISSED")
    run.console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
