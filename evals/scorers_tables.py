"""What scores are worth against labels, on other problems than threshold and calibration are chosen on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwise.data.scorer_quality import error_area, judged_pairs, measure_scores, threshold_of
from stepwise.data.step_labels import LabelledSolution
from stepwise.models.scorers.calibration import (
    Calibration,
    calibration_error,
    fit_calibration,
    logistic,
    sigmoid,
)
from stepwise.runs.shell import Run
from stepwise.seeds import seed_for
from stepwise.stats import Interval, bootstrap
from stepwise.training.head import whole

Scores = Sequence[float] | None
"""Of the steps of one solution, up to its first error at least; None where the scorer gave none."""
CHEAP = "place and length, fitted"
Split = tuple[list[int], list[int]]
"""The solutions to choose on, and those to measure."""


class Fitted(NamedTuple):
    """A scorer with what was chosen for it: its raw scores of solution i, their calibration, and the threshold on
    calibrated scores. `anew`: it was fitted itself, so that calibrated scores alone are comparable between splits.
    """

    score: Callable[[int], Scores]
    calibration: Calibration
    threshold: float
    anew: bool = False


Fit = Callable[[list[int]], Fitted]
"""Chooses on these solutions."""


class Quality(NamedTuple):
    """A line of the table; `ranked` are the scores of the `solutions` that were measured, for paired comparisons."""

    name: str
    auroc: Interval | None
    f1: Interval | None
    ece_raw: float
    ece: Interval | None
    failed: int
    ranked: list[Sequence[float]]
    solutions: list[LabelledSolution]


def splits_of(solutions: Sequence[LabelledSolution], halves: Mapping[LabelledSolution, str], folds: int) -> list[Split]:
    """Chosen on the even half and measured on the odd one where all solutions have a half and both are there; else
    by problems in turn, `folds` times.
    """
    names = [halves.get(s, "") for s in solutions]
    if set(names) == {"even", "odd"}:
        even, odd = ([i for i, name in enumerate(names) if name == half] for half in ("even", "odd"))
        return [(even, odd)]
    ids = sorted({s.problem_id for s in solutions}, key=lambda name: (seed_for(0, "folds", name), name))
    fold_of = {name: place % folds for place, name in enumerate(ids)}
    at = [fold_of[s.problem_id] for s in solutions]
    return [([i for i, f in enumerate(at) if f != n], [i for i, f in enumerate(at) if f == n]) for n in range(folds)]


def fixed(raw: Sequence[Scores], solutions: Sequence[LabelledSolution]) -> Fit:
    """Of scores that are what they are: calibration and threshold are chosen."""

    def fit(chosen: list[int]) -> Fitted:
        known = [i for i in chosen if raw[i] is not None]
        part = [solutions[i] for i in known]
        scores = whole([raw[i] or () for i in known], part)
        pairs = [pair for group in judged_pairs(scores, part) for pair in group]
        calibration = fit_calibration([score for score, _ in pairs], [label for _, label in pairs])
        return Fitted(lambda i: raw[i], calibration, threshold_of([[*map(calibration, s)] for s in scores], part))

    return fit


def cheap(solutions: Sequence[LabelledSolution]) -> Fit:
    """The place of a step and its length together, a logistic regression on those that are chosen."""

    def features(s: LabelledSolution) -> NDArray[np.float64]:  # (steps up to the first error, 3)
        return np.array([[math.log1p(i), math.log(len(s.steps[i])), 1.0] for i in s.judged])

    def fit(chosen: list[int]) -> Fitted:
        part = [solutions[i] for i in chosen]
        known = [(row, s.labels[i]) for s in part for i, row in zip(s.judged, features(s), strict=True)]
        x, y = zip(*[pair for pair in known if pair[1] is not None], strict=True)
        weights = logistic(np.stack(x), np.array(y, float), ridge=1e-3)
        scores = [sigmoid(features(s) @ weights).tolist() for s in part]
        return Fitted(lambda i: sigmoid(features(solutions[i]) @ weights).tolist(), Calibration(),
                      threshold_of(whole(scores, part), part), anew=True)  # fmt: skip

    return fit


def quality_of(name: str, fit: Fit, solutions: Sequence[LabelledSolution], splits: Sequence[Split]) -> Quality:
    """Each solution that is measured, by what was chosen on others; intervals are over problems. Solutions without
    scores are left out and counted.
    """
    measured: list[LabelledSolution] = []
    raw, calibrated, shifted = list[Sequence[float]](), list[Sequence[float]](), list[Sequence[float]]()
    failed, anew = 0, False
    for chosen, others in splits:
        score, calibration, threshold, anew = fit(chosen)
        for i in others:
            if (scores := score(i)) is None:
                failed += 1
                continue
            s = solutions[i]
            (values,) = whole([scores], [s])
            measured.append(s)
            raw.append(values)
            calibrated.append([*map(calibration, values)])
            shifted.append([value - threshold for value in calibrated[-1]])
    ranked = calibrated if anew else raw
    plain, area = measure_scores(raw, measured, 0.5, samples=1), measure_scores(ranked, measured, 0.5).auroc
    flagged = measure_scores(shifted, measured, 0.0)
    return Quality(name, area, flagged.f1, plain.ece, _ece(calibrated, measured), failed, ranked, measured)


def above(quality: Quality, base: Quality) -> Interval | None:
    """How far its AUROC lies above that of `base`, on the solutions of both, the same problems drawn for both."""
    theirs = dict(zip(base.solutions, base.ranked, strict=True))
    both = [(s, own, theirs[s]) for s, own in zip(quality.solutions, quality.ranked, strict=True) if s in theirs]
    solutions = [s for s, _, _ in both]
    ours, other = (error_area(scores, solutions) for scores in ([a for _, a, _ in both], [b for _, _, b in both]))

    def lead(index: Any) -> float | None:
        a, b = ours(index), other(index)
        return None if a is None or b is None else a - b

    return bootstrap(lead, len({s.problem_id for s in solutions}), samples=1000)


def _ece(scores: Sequence[Sequence[float]], solutions: Sequence[LabelledSolution]) -> Interval | None:
    groups: dict[str, list[tuple[float, float]]] = {}
    for s, pairs in zip(solutions, judged_pairs(scores, solutions), strict=True):
        groups.setdefault(s.problem_id, []).extend(pairs)
    each = [*groups.values()]

    def error(index: Any) -> float:
        pairs = [pair for i in index for pair in each[i]]
        return calibration_error([score for score, _ in pairs], [label for _, label in pairs])

    return bootstrap(error, len(each), samples=200)


def show(run: Run[Any], title: str, rows: Sequence[Quality], costs: Mapping[str, tuple[str, str]]) -> None:
    """Print the table; `costs` has tokens and seconds a step, where they are known."""
    (reference,) = [row for row in rows if row.name == CHEAP]

    def line(row: Quality) -> tuple[str, ...]:
        run.metrics(
            scorer=row.name, auroc=row.auroc, f1=row.f1, ece=row.ece_raw, ece_calibrated=row.ece, failed=row.failed
        )
        n, ece = len(row.solutions), "none" if row.ece is None else f"{row.ece.value:.3f}"
        lead = "" if row.name == CHEAP else band(above(row, reference), "+.3f")
        return (
            row.name, f"{n} of {n + row.failed}" if row.failed else f"{n}", band(row.auroc, ".3f"), lead,
            band(row.f1, ".1f"), f"{row.ece_raw:.3f}, {ece}", *costs.get(row.name, ("", "")),
        )  # fmt: skip

    columns = (
        "scorer", "solutions", "AUROC (95 %)", "above place and length", "F1, %", "ECE: raw, calibrated",
        "tokens a step", "seconds",
    )  # fmt: skip
    run.table(title, columns, [line(row) for row in rows])


def band(interval: Interval | None, form: str) -> str:
    """The estimate with the ends of its interval."""
    return "none" if interval is None else "{:{f}} ({:{f}} to {:{f}})".format(*interval, f=form)
