"""What scores of steps are worth against labels: AUROC, ProcessBench's F1, the calibration error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stepwise.data.localization import LocalizationCounts, Outcome, best_threshold, count, first_below
from stepwise.data.step_labels import LabelledSolution, Scores
from stepwise.errors import DataError
from stepwise.models.scorers.calibration import calibration_error
from stepwise.records import record
from stepwise.stats import Interval, auroc, bootstrap


@record()
class ScorerQuality:
    """How well scores fit labels, on steps up to and including first errors; intervals are 95 %, over problems.

    `auroc` is of right steps against first errors, `f1` ProcessBench's in percent at `threshold`, over solutions whose
    labels have no gap; `ece` the calibration error. Example: `measure_scores(scores, solutions, 0.5).auroc`.
    """

    solutions: int
    right_steps: int
    first_errors: int
    auroc: Interval | None
    f1: Interval | None
    threshold: float
    ece: float


def judged_pairs(scores: Scores, solutions: Sequence[LabelledSolution]) -> list[list[tuple[float, float]]]:
    """For each solution the score and the label of each step that has one, up to and including the first error.

    Raises DataError unless there is one score for each step. Example: `judged_pairs([[0.9, 0.2]], solutions)`.
    """
    pairs = []
    for values, s in zip(scores, solutions, strict=True):
        if len(values) != len(s.steps):
            raise DataError(f"problem {s.problem_id!r}: {len(values)} scores for {len(s.steps)} steps; give one each")
        pairs.append([(values[i], label) for i in s.judged if (label := s.labels[i]) is not None])
    return pairs


def measure_scores(
    scores: Scores, solutions: Sequence[LabelledSolution], threshold: float, *, samples: int = 1000
) -> ScorerQuality:
    """What scores (one for each step, one list for each solution) are worth against labels. `threshold` was chosen on
    other problems: `threshold_of`.

    >>> solutions = [LabelledSolution.of(f"{n} + 1?", ["Add.", "It is 2."], [1.0, float(n == 1)]) for n in range(4)]
    >>> quality = measure_scores([[0.9, 0.8 if n == 1 else 0.2] for n in range(4)], solutions, 0.5)
    >>> quality.auroc.value, quality.f1.value, round(quality.ece, 3)
    (1.0, 100.0, 0.15)
    """
    flat = [pair for group in judged_pairs(scores, solutions) for pair in group]
    cells: dict[str, LocalizationCounts] = {s.problem_id: LocalizationCounts(0, 0, 0, 0) for s in solutions}
    for values, s in zip(scores, solutions, strict=True):
        if s.complete:
            more = count([Outcome(first_below(values, threshold))], [s.as_row()])
            cells[s.problem_id] = LocalizationCounts(*map(sum, zip(cells[s.problem_id], more, strict=True)))
    counts = np.array([*cells.values()])  # (problems, 4)
    return ScorerQuality(
        solutions=len(solutions),
        right_steps=sum(label >= 0.5 for _, label in flat),
        first_errors=sum(label < 0.5 for _, label in flat),
        auroc=bootstrap(error_area(scores, solutions), len(cells), samples=samples),
        f1=bootstrap(lambda index: LocalizationCounts(*counts[index].sum(axis=0)).f1, len(cells), samples=samples),
        threshold=threshold,
        ece=calibration_error([score for score, _ in flat], [label for _, label in flat]),
    )


def error_area(scores: Scores, solutions: Sequence[LabelledSolution]) -> Callable[[Any], float | None]:
    """AUROC of right steps against first errors as a statistic for `stepwise.stats.bootstrap`: of indices of problems,
    in the order in which they come first; None where there are steps of one kind only.

    >>> solutions = [LabelledSolution.of(f"{n} + 1?", ["Add.", "It is 2."], [1.0, float(n == 1)]) for n in range(4)]
    >>> error_area([[0.9, 0.2]] * 4, solutions)([0, 1])
    0.8333333333333334
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    for s, pairs in zip(solutions, judged_pairs(scores, solutions), strict=True):
        groups.setdefault(s.problem_id, []).extend(pairs)
    right = [np.array([score for score, label in group if label >= 0.5]) for group in groups.values()]
    wrong = [np.array([score for score, label in group if label < 0.5]) for group in groups.values()]

    def area(index: Any) -> float | None:
        value = auroc(np.concatenate([right[i] for i in index]), np.concatenate([wrong[i] for i in index]))
        return None if np.isnan(value) else value

    return area


def threshold_of(scores: Scores, solutions: Sequence[LabelledSolution]) -> float:
    """The threshold with the best F1 (`best_threshold`). Example: `threshold_of(scores, splits.validation)`."""
    known = [(values, s.as_row()) for values, s in zip(scores, solutions, strict=True) if s.complete]
    return best_threshold([values for values, _ in known], [row for _, row in known])
