"""Traces drawn from the routing model itself, or from one whose scores depend on one another as real ones do.

With known truth: what a fit finds can be compared with what went in.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.pomdp.fit_data import EARLIER, NOW, RIGHT, FitStep, FitTrace


def simulate(
    n: int,
    *,
    p_weak: float | Sequence[tuple[float, float]],
    hazard: Sequence[float],
    law: ObservationLaw,
    p_strong: float = 0.95,
    escalate: float = 0.0,
    correlation: float = 0.0,
    recovery: float = 0.0,
    seed: int = 0,
) -> list[FitTrace]:
    """`n` labelled traces, each of a problem of its own.

    Args:
        n: number of traces.
        p_weak: chance of a right draft, or classes of problems as (share, chance).
        hazard: P(a solution has k steps | at least k), its last entry 1.
        law: of the current score; a score is spread evenly over its bin.
        p_strong: chance of a right strong step.
        escalate: chance of a step to be written by the strong model, decided before it is drafted.
        correlation: 0 draws scores independently given the state. Above it, all scores of a trace share a part of that
            weight (a normal intercept for each trace, put through each state's quantiles), up to 1.
        recovery: P(solved | a wrong step stands).
        seed: of everything that is drawn.
    """
    if law.pair:
        raise DataError("simulate draws current scores; give a law of the score alone (law.score_only())")
    if hazard[-1] != 1:
        raise DataError(f"hazard ends with {hazard[-1]!r}: no trace may go on for ever; its last entry must be 1.0")
    rng = np.random.default_rng(seed)
    classes = [(1.0, p_weak)] if isinstance(p_weak, int | float) else list(p_weak)
    shares = np.asarray([share for share, _ in classes])
    quantiles = [np.concatenate([[0.0], np.cumsum(row)]) for row in law.rows]
    traces = []
    for number in range(n):
        chance = classes[int(rng.choice(len(classes), p=shares / shares.sum()))][1]
        length = next(k for k, h in enumerate(hazard) if k and rng.random() < h)
        intercept = rng.standard_normal()
        steps, clean = list[FitStep](), True
        for _ in range(length):
            strong = bool(rng.random() < escalate)
            right = bool(rng.random() < (p_strong if strong else chance))
            state = EARLIER if not clean else RIGHT if right else NOW
            z = np.sqrt(correlation) * intercept + np.sqrt(1 - correlation) * rng.standard_normal()
            score = _quantile(NormalDist().cdf(float(z)), quantiles[state], law.edges)
            steps.append(
                FitStep(False, None, None, True, right, 60) if strong else FitStep(True, score, right, tokens=60)
            )
            clean = clean and right
        solved = clean or bool(rng.random() < recovery)
        traces.append(FitTrace(f"simulated/{seed}/{number}", tuple(steps), solved=solved))
    return traces


def _quantile(u: float, cumulative: NDArray[np.float64], edges: Sequence[float]) -> float:
    return float(np.clip(np.interp(u, cumulative, edges), 0.0, 1.0))
