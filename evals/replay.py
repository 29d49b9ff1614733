"""What a belief over steps is worth on the scores of real reward models: who finds the first error, and at what price.

--data is a JSON Lines file in ProcessBench's columns with `scores`, a list for each reward model by its name. Every
arm is fitted on half of the problems and measured on the other half, for --splits seeded halvings. Prints, for each
reward model: AUROC of "the first error is here" (all steps; up to the first error) and of "there is an error so far";
log-likelihood of the former, nats per step, as the belief has it, of the belief in all three states, and of the former
after calibration on the fitted half; the share of first errors caught as they happen when 10 and 20 % of all steps are
escalated, and 10 % of those up to the first error (as if each error caught were mended, and each one missed the end of
it). Then the same AUROC for traces drawn from the two worlds in which the POMDP's tables of accuracy were computed.
Intervals hold 95 % of the splits: they say how much the halving matters, not how much another set of traces would.
Writes replay.json.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from stepwise.errors import DataError
from stepwise.io import read_rows
from stepwise.routing.pomdp.fit_check import log_likelihood
from stepwise.routing.pomdp.fit_data import EARLIER, NOW, RIGHT, FitTrace, from_row, lag_correlation
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import auroc

from .replay_arms import BELIEFS, SCORE, WORLDS, Arm, Array, Seen, arms, cumulative_sum, law_of, seen_of, worlds

SHARES = tuple(round(0.025 * i, 3) for i in range(1, 21))  # of steps escalated, where the detection curve is read
MEASURES = {
    "here": "here, all steps",
    "here_to_error": "here, to the error",
    "so_far": "error so far",
    "log_likelihood": "log-lik.",
    "log_likelihood_states": "of the state",
    "log_likelihood_calibrated": "calibrated",
    "caught_10": "caught at 10 %",
    "caught_20": "caught at 20 %",
    "caught_10_to_error": "10 %, to the error",
}


class _Options(Options):
    data: Path
    """labelled traces with scores"""
    splits: PositiveInt = 20
    """halvings of the problems"""
    smoothing: Literal["kernel", "counts"] = "kernel"
    """of all arms' laws: as published, or bare counts"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> None:
    traces = load(run.args.data)
    result: dict[str, Any] = {"splits": run.args.splits, "smoothing": run.args.smoothing, "models": {}}
    with progress("replaying", len(traces) * run.args.splits) as advance:
        for name, own in traces.items():
            rows = []
            for split in range(run.args.splits):
                rows.append(measure(*halves(own, split), run.args.smoothing))
                advance(1)
            result["models"][name] = {
                "traces": len(own),
                "correlation": {s: lag_correlation(own, n) for n, s in ((RIGHT, "right"), (EARLIER, "wrong earlier"))},
                "arms": summary(rows),
                "against_filter": differences(rows),
                "worlds": in_worlds(own, min(4, run.args.splits), run.args.smoothing),
            }
    run.path("replay.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(run, result)


def load(path: Path) -> dict[str, list[FitTrace]]:
    """The traces by the name of the reward model that scored them."""
    if not path.is_file():
        raise DataError(
            f"--data {path}: no such file; give JSON Lines with problem, steps, label and scores = "
            '{"reward model": [a score for each step]}'
        )
    rows = read_rows(path, finished=True)
    names = list(rows[0].get("scores") or ()) if rows else []
    if not names or not isinstance(rows[0]["scores"], dict):
        raise DataError(f"--data {path}: its rows have no scores by the name of a reward model; add the field scores")
    return {name: [from_row(row, f"{path}, row {i}", name) for i, row in enumerate(rows, 1)] for name in names}


def halves(traces: Sequence[FitTrace], seed: int) -> tuple[list[Seen], list[Seen]]:
    """(fitted on, measured on): each problem is in one half, with all its traces."""
    problems = sorted({trace.problem for trace in traces})
    order = np.random.default_rng(seed).permutation(len(problems))
    test = {problems[i] for i in order[: len(problems) // 2]}
    return [seen_of(t) for t in traces if t.problem not in test], [seen_of(t) for t in traces if t.problem in test]


def measure(fitted_on: Sequence[Seen], measured_on: Sequence[Seen], smoothing: str) -> dict[str, dict[str, Any]]:
    """The measures of each arm on one split; the detection curve under "curve"."""
    states = np.concatenate([seen.states for seen in measured_on])
    known = np.concatenate([seen.states for seen in fitted_on])
    out = {}
    for name, arm in arms(fitted_on, smoothing).items():
        here, so_far = signals(arm, measured_on)
        fitted, _ = signals(arm, fitted_on)
        if name == "cumulative sum":
            curve = restarted_curve(measured_on, fitted_on, smoothing)
        else:
            curve = [caught(here, states == NOW, share) for share in SHARES]
        out[name] = {
            "here": auroc(here[states == NOW], here[states != NOW]),
            "here_to_error": auroc(here[states == NOW], here[states == RIGHT]),
            "so_far": auroc(so_far[states != RIGHT], so_far[states == RIGHT]),
            "log_likelihood": bernoulli(here, states == NOW) if name in BELIEFS else None,
            "log_likelihood_states": log_likelihood(three(here, so_far), states) if name in BELIEFS else None,
            "log_likelihood_calibrated": bernoulli(calibrated(fitted, known == NOW, here), states == NOW),
            "caught_10": curve[SHARES.index(0.1)],
            "caught_20": curve[SHARES.index(0.2)],
            "caught_10_to_error": caught(here[states != EARLIER], states[states != EARLIER] == NOW, 0.1),
            "curve": curve,
        }
    return out


def signals(arm: Arm, traces: Sequence[Seen]) -> tuple[Array, Array]:
    """The arm's two numbers for all steps of all traces."""
    found = [arm(seen) for seen in traces]
    return np.concatenate([signal.here for signal in found]), np.concatenate([signal.so_far for signal in found])


def three(here: Array, so_far: Array) -> Array:
    """Beliefs (steps, 3) in right, wrong earlier, wrong just now, from an arm's two probabilities."""
    return np.stack([1 - so_far, so_far - here, here], axis=1)


def bernoulli(predicted: Array, happened: NDArray[np.bool_]) -> float:
    """Mean log-likelihood of what happened, nats per step."""
    return float(np.log(np.clip(np.where(happened, predicted, 1 - predicted), 1e-6, 1)).mean())


def calibrated(signal: Array, happened: NDArray[np.bool_], asked: Array, bins: int = 12) -> Array:
    """Share of `happened` in the quantile bin of `signal` that each of `asked` falls into, shrunk a little."""
    inner = np.unique(np.quantile(signal, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(inner, signal, side="right")
    hits, n = (np.bincount(place, weight, len(inner) + 1) for weight in (happened.astype(float), np.ones(len(signal))))
    shares: Array = (hits + 2 * happened.mean()) / (n + 2)
    return shares[np.searchsorted(inner, asked, side="right")]


def caught(signal: Array, errors: NDArray[np.bool_], share: float) -> float:
    """Share of `errors` among the `share` of all steps with the highest signal, ties at the edge broken at random."""
    wanted = share * len(signal)
    edge = np.sort(signal)[::-1][min(int(wanted), len(signal) - 1)]
    above, level = signal > edge, signal == edge
    part = (wanted - above.sum()) / max(level.sum(), 1)
    return float((above[errors].sum() + part * level[errors].sum()) / errors.sum())


def restarted_curve(measured_on: Sequence[Seen], fitted_on: Sequence[Seen], smoothing: str) -> list[float]:
    """The detection curve of a cumulative sum that starts again after each alarm, read between alarm levels."""
    law = law_of(fitted_on, smoothing=smoothing)
    errors = np.concatenate([seen.states for seen in measured_on]) == NOW
    points = [(0.0, 0.0)]
    for alarm in np.geomspace(12, 0.01, 40):
        flags = np.concatenate([cumulative_sum(seen, law, alarm) for seen in measured_on]) >= alarm
        points.append((float(flags.mean()), float(flags[errors].mean())))
    xs, ys = np.asarray(sorted([*points, (1.0, 1.0)])).T
    return [float(y) for y in np.interp(SHARES, xs, ys)]


def summary(rows: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean and 95 % range over splits of each measure of each arm."""
    return {arm: {key: spread([row[arm][key] for row in rows]) for key in rows[0][arm]} for arm in rows[0]}


def differences(rows: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each arm less the filter on the score, split by split."""
    out: dict[str, dict[str, Any]] = {}
    for arm in rows[0]:
        pairs = {key: [(row[arm][key], row[SCORE][key]) for row in rows] for key in MEASURES}
        out[arm] = {
            key: None if found[0][0] is None else spread([a - b for a, b in found]) for key, found in pairs.items()
        }
    return out


def spread(values: Sequence[Any]) -> Any:
    """[mean, low, high] of numbers, the mean of curves, None where there is no value."""
    if values[0] is None:
        return None
    found = np.asarray(values)
    if found.ndim == 2:
        return found.mean(axis=0).tolist()
    return [float(found.mean()), *map(float, np.quantile(found, [0.025, 0.975]))]


def in_worlds(traces: Sequence[FitTrace], seeds: int, smoothing: str) -> dict[str, dict[str, Any]]:
    """AUROC of "here" over all steps in each of the two worlds fitted to `traces`, and their lag-1 correlation."""
    seen = [seen_of(trace) for trace in traces]
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(seeds):
        for world, drawn in worlds(seen, 2 * len(seen), seed).items():
            half = len(drawn) // 2
            rows = measure(drawn[:half], drawn[half:], smoothing)
            found[world].append({"correlation": lag_of(drawn), **{arm: row["here"] for arm, row in rows.items()}})
    return {world: {key: spread([row[key] for row in rows]) for key in rows[0]} for world, rows in found.items()}


def lag_of(traces: Sequence[Seen]) -> float:
    """Correlation of the scores of neighbouring right steps."""
    pairs = [
        (a, b)
        for seen in traces
        for (a, y), (b, z) in pairwise(zip(seen.scores, seen.states, strict=True))
        if y == z == RIGHT
    ]
    return float(np.corrcoef(np.asarray(pairs).T)[0, 1])


def show(run: Run[_Options], result: Mapping[str, Any]) -> None:
    for name, found in result["models"].items():
        lags = ", ".join(f"{value:.2f} {state}" for state, value in found["correlation"].items() if value is not None)
        run.say(f"\n{name}: {found['traces']} traces; correlation of neighbouring scores: {lags}")
        title = f"AUROC, nats, share caught: mean and half of the range of 95 % of {result['splits']} splits"
        columns = list(MEASURES.values())
        _table(run, title, columns, {arm: [row[key] for key in MEASURES] for arm, row in found["arms"].items()})
        less = {arm: [row[key] for key in MEASURES] for arm, row in found["against_filter"].items() if arm != SCORE}
        _table(run, f"The same, less the {SCORE}", columns, less, "+.3f")
        drawn = {"lag-1 correlation, right": [[found["correlation"]["right"]]]}
        drawn |= {arm: [[row["here"][0]]] for arm, row in found["arms"].items()}
        for world in WORLDS:
            for key, cells in zip(("correlation", *found["arms"]), drawn.values(), strict=True):
                cells.append(found["worlds"][world][key])
        _table(run, "AUROC of here, all steps: real traces and the two worlds", ["real", *WORLDS], drawn)


def _table(
    run: Run[_Options], title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Any]], form: str = ".3f"
) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, cells in rows.items():
        table.add_row(name, *(_cell(cell, form) for cell in cells))
    run.console.print(table)


def _cell(value: Sequence[Any] | None, form: str) -> str:
    if value is None or value[0] is None:
        return ""
    half = f" ±{(value[2] - value[1]) / 2:.3f}" if len(value) == 3 else ""
    return f"{value[0]:{form}}{half}"


if __name__ == "__main__":
    raise SystemExit(main())
