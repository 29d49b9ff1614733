"""What of the routing model can be learned from scores and answers, without labels of steps, on simulated traces.

Four worlds: scores independent given the state, as the model has it; scores of a trace correlated, as real ones are; a
fifth of the wrong traces ends right all the same; a scorer that hardly tells right from wrong. Arms differ in what is
known: all labels, none, those of 50 or 100 wrong traces and as many right ones, p_strong, the share that recovers. A
tenth of the steps, at random, is the strong model's. Prints the mean absolute error of p_weak and p_strong, the total
variation distance of the three laws of the score, and the share of first errors found in fresh failed traces. Writes
identify.json.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from evals.simulated_traces import simulate
from stepwise.routing.pomdp.em import Padded, Parameters, count, expect, learn, pad, smoothed
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.pomdp.fit_data import FitTrace, unlabelled
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program

BINS, FRESH = 8, 1000
P_WEAK, P_STRONG, ESCALATE = 0.87, 0.95, 0.1
HAZARD = (0.0, 0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
MIDDLES = (np.arange(BINS) + 0.5) / BINS
GOOD, POOR = ((4.0, 0.5), (0.3, 1.2), (1.0, 1.5)), ((1.5, 1.0), (1.0, 1.3), (1.2, 1.2))
WORLDS: dict[str, dict[str, Any]] = {
    "independent scores": {},
    "correlated scores (.5)": {"correlation": 0.5},
    "a fifth recovers": {"recovery": 0.2},
    "poor scorer": {"shapes": POOR},
}


class _Options(Options):
    traces: tuple[PositiveInt, ...] = (300, 1000, 3000)
    """numbers of traces to fit to"""
    seeds: PositiveInt = 5
    """simulations of each"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> None:
    rows: list[dict[str, Any]] = []
    with progress("simulating", len(WORLDS) * len(run.args.traces) * run.args.seeds) as advance:
        for world in WORLDS:
            for n in run.args.traces:
                found = defaultdict(list)
                for seed in range(run.args.seeds):
                    for arm, figures in one(world, n, seed).items():
                        found[arm].append(figures)
                    advance(1)
                for arm, several in found.items():
                    means = {key: float(np.mean([figures[key] for figures in several])) for key in several[0]}
                    rows.append({"world": world, "traces": n, "arm": arm, **means})
    run.path("identify.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    show(run, rows)


def law_of(shapes: Sequence[tuple[float, float]]) -> ObservationLaw:
    """Laws in the shape of beta densities; their likelihood ratios are monotone."""
    rows = [MIDDLES**a * (1 - MIDDLES) ** b for a, b in shapes]
    first, second, third = (tuple((row / row.sum()).tolist()) for row in rows)
    return ObservationLaw(tuple(i / BINS for i in range(BINS + 1)), (first, second, third))


def draw(world: str, n: int, seed: int) -> tuple[list[FitTrace], ObservationLaw]:
    settings = dict(WORLDS[world])
    law = law_of(settings.pop("shapes", GOOD))
    traces = simulate(
        n, p_weak=P_WEAK, hazard=HAZARD, law=law, p_strong=P_STRONG, escalate=ESCALATE, seed=seed, **settings
    )
    return traces, law


def one(world: str, n: int, seed: int) -> dict[str, dict[str, float]]:
    """The figures of every arm on one simulation."""
    traces, law = draw(world, n, seed)
    fresh = [trace for trace in draw(world, FRESH, 10_000 + seed)[0] if trace.first_error is not None]
    recovery = WORLDS[world].get("recovery", 0.0)
    arms: dict[str, Callable[[], Parameters]] = {
        "all labels": lambda: learn(pad(traces, law.edges[1:-1]), BINS, monotone=False, strength=BINS),
        "no labels": lambda: _some(traces, law, 0),
        "no labels, laws not ordered": lambda: _some(traces, law, 0, monotone=False),
        "no labels, p_strong known": lambda: _some(traces, law, 0, p_strong=P_STRONG),
        "50 wrong traces labelled": lambda: _some(traces, law, 50),
        "50 labelled, wrong laws from them": lambda: _some(traces, law, 50, alone=True),
        "100 labelled, wrong laws from them": lambda: _some(traces, law, 100, alone=True),
    }
    if recovery:
        arms["no labels, recovery known"] = lambda: _some(traces, law, 0, recovery=recovery)
    asked = pad([unlabelled(trace) for trace in fresh], law.edges[1:-1])
    asked = asked._replace(solved=np.zeros_like(asked.solved))
    errors = np.asarray([trace.first_error for trace in fresh])
    truth = np.asarray(law.rows)
    return {arm: figures(make(), truth, asked, errors) for arm, make in arms.items()}


def _some(
    traces: Sequence[FitTrace], law: ObservationLaw, labelled: int, *, alone: bool = False, **settings: Any
) -> Parameters:
    """EM with the labels of `labelled` wrong and as many right traces; `alone`: wrong laws are counted on those."""
    left = {True: labelled, False: labelled}
    mixed, known = list[FitTrace](), list[FitTrace]()
    for trace in traces:
        wrong = trace.first_error is not None
        keep = left[wrong] > 0
        left[wrong] -= keep
        mixed.append(trace if keep else unlabelled(trace))
        known += [trace] if keep else []
    rows = None
    if alone:
        rows = smoothed(count(pad(known, law.edges[1:-1]), BINS).rows, BINS)[1:]
    return learn(pad(mixed, law.edges[1:-1]), BINS, strength=BINS, wrong_rows=rows, **settings)


def figures(
    found: Parameters, truth: NDArray[np.float64], asked: Padded, errors: NDArray[np.int64]
) -> dict[str, float]:
    """Errors of the parameters, and the share of first errors that the most probable place hits."""
    distance = 0.5 * np.abs(found.rows - truth).sum(axis=1)
    first = expect(asked, found)[2][:, :-1]
    return {
        "p_weak": abs(found.p_weak - P_WEAK),
        "p_strong": abs(found.p_strong - P_STRONG),
        "right": float(distance[0]),
        "earlier": float(distance[1]),
        "now": float(distance[2]),
        "found": float((first.argmax(axis=1) == errors).mean()),
    }


def show(run: Run[_Options], rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title=f"Mean over {run.args.seeds} simulations", title_justify="left", box=None)
    heads = ("p_weak off", "p_strong off", "law right", "wrong earlier", "wrong now", "errors found")
    for column in ("world", "arm", "traces", *heads):
        table.add_column(column, justify="left" if column in ("world", "arm") else "right")
    for row in sorted(rows, key=lambda row: list(WORLDS).index(row["world"])):
        values = [row[key] for key in ("p_weak", "p_strong", "right", "earlier", "now", "found")]
        table.add_row(row["world"], row["arm"], str(row["traces"]), *(f"{value:.3f}" for value in values))
    run.console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
