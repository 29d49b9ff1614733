"""Scores made probabilities: a monotone map that is fitted on labels of problems which nothing was trained on.

Two forms: Platt's (1999, Advances in Large Margin Classifiers), a line on the score's logit, of which temperature
scaling (arXiv 1706.04599) is the case without an offset; and isotonic regression (Zadrozny and Elkan, 2002), a
monotone curve, which needs some hundred labels. Labels may be soft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from stepwise.errors import DataError
from stepwise.records import record

CalibrationKind = Literal["platt", "temperature", "isotonic"]
_EDGE = 1e-6  # scores are held so far from 0 and 1, where a logit is infinite
_FLATTEST = 1e-3


@record(allow_inf_nan=False)
class Calibration:
    """sigmoid(`slope` * logit(score) + `offset`), or the straight lines through `knots` (score, probability) where
    there are any; it never falls where the score rises.

    >>> Calibration()(0.25), round(Calibration(slope=0.5)(0.9), 2), Calibration(knots=((0.0, 0.25), (1.0, 0.75)))(0.5)
    (0.25, 0.75, 0.5)
    """

    slope: float = Field(default=1.0, gt=0)
    offset: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def __call__(self, score: float) -> float:
        """The probability in [0, 1] that a score in [0, 1] stands for."""
        if self.knots:
            return float(np.interp(score, [x for x, _ in self.knots], [y for _, y in self.knots]))
        if self.slope == 1 and self.offset == 0:
            return score
        return float(sigmoid(self.slope * _logit(score) + self.offset))


def fit_calibration(scores: Sequence[float], labels: Sequence[float], kind: CalibrationKind = "platt") -> Calibration:
    """The map under which `labels` (0 wrong to 1 right) are likeliest; deterministic. Raises DataError for labels that
    are all equal, or not as many as the scores.

    Platt's and the temperature's labels are drawn in from 0 and 1 as in Platt's paper, so that no slope is infinite.

    >>> calibration = fit_calibration([0.9, 0.9, 0.9, 0.6, 0.6], [1.0, 1.0, 0.0, 0.0, 0.0])
    >>> calibration(0.9) < 0.9, calibration(0.6) < 0.5
    (True, True)
    """
    x, y = np.asarray(scores, float), np.asarray(labels, float)
    if len(x) != len(y) or not len(y) or y.min() == y.max():
        raise DataError(
            f"calibration: {len(x)} scores and {len(y)} labels, which must be as many and not all equal; give labels "
            "of right and of wrong steps"
        )
    if kind == "isotonic":
        return Calibration(knots=_isotonic(x, y))
    right = y.sum()
    low, high = 1 / (len(y) - right + 2), (right + 1) / (right + 2)
    features = np.stack([_logit(x), np.ones_like(x)], axis=1)[:, : 1 if kind == "temperature" else 2]
    slope, *offset = logistic(features, low + y * (high - low)).tolist()
    if slope < _FLATTEST:  # scores that fall where labels rise: nothing but the share of right steps is left to say
        offset = logistic(features[:, 1:], low + y * (high - low)).tolist() if offset else []
    return Calibration(max(slope, _FLATTEST), offset[0] if offset else 0.0)


def calibration_error(scores: Sequence[float], labels: Sequence[float], bins: int = 10) -> float:
    """ECE: the mean distance of score and label over `bins` bins of about equally many scores, in [0, 1] (arXiv
    1706.04599, eq. 3, with bins of equal mass).

    >>> round(calibration_error([0.9] * 10, [1.0] * 6 + [0.0] * 4, bins=1), 2)
    0.3
    """
    x, y = np.asarray(scores, float), np.asarray(labels, float)
    gaps = (x - y)[np.argsort(x, kind="stable")]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, min(bins, len(gaps)))) / len(gaps))


def _logit(score: Any) -> Any:
    clipped = np.clip(score, _EDGE, 1 - _EDGE)
    return np.log(clipped / (1 - clipped))


def sigmoid(value: Any) -> Any:
    """1 / (1 + exp(-value)).

    >>> float(sigmoid(0.0))
    0.5
    """
    return 1 / (1 + np.exp(-value))


def logistic(features: Any, labels: Any, ridge: Any = 1e-9) -> Any:
    """Coefficients (D,) of a logistic regression of `labels` (N,), soft ones too, on `features` (N, D), by Newton's
    method; each has half of `ridge`, one number or one for each, times its square as its price.

    >>> logistic(np.ones((4, 1)), np.array([1.0, 1.0, 1.0, 0.0])).round(3).tolist()
    [1.099]
    """
    weights = np.broadcast_to(np.asarray(ridge, float), features.shape[1:])

    def loss(at: Any) -> float:
        values = features @ at
        return float(np.logaddexp(0, values).sum() - labels @ values + weights @ at**2 / 2)

    at = np.zeros(features.shape[1])
    for _ in range(100):
        p = sigmoid(features @ at)
        hessian = (features * (p * (1 - p))[:, None]).T @ features + np.diag(weights)
        step = np.linalg.solve(hessian, features.T @ (p - labels) + weights * at)
        scale = 1.0
        while loss(at - scale * step) > loss(at) and scale > 1e-6:
            scale /= 2
        at = at - scale * step
        if np.abs(scale * step).max() < 1e-9:
            break
    return at


def _isotonic(x: Any, y: Any) -> tuple[tuple[float, float], ...]:
    """Pools of neighbours until their means rise: the mean score and the mean label of each."""
    pools: list[list[float]] = []  # sum of labels, sum of scores, number
    for value in np.unique(x):  # ties are one pool
        chosen = y[x == value]
        pools.append([float(chosen.sum()), float(value * len(chosen)), len(chosen)])
        while len(pools) > 1 and pools[-2][0] / pools[-2][2] >= pools[-1][0] / pools[-1][2]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    return tuple((scores / n, labels / n) for labels, scores, n in pools)
