"""Intervals (one Wilson interval, one percentile bootstrap), and the area under a ROC curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from stepwise.errors import DataError


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval.

    >>> Interval(0.5, low=0.4, high=0.6).low
    0.4
    """

    value: float
    low: float
    high: float


def wilson(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Share of `correct` among `n`, in [0, 1], with Wilson's score interval (1927, J. Am. Stat. Assoc. 22).

    Raises `DataError` unless 0 <= correct <= n and n > 0.

    >>> [round(value, 3) for value in wilson(8, 10)]
    [0.8, 0.49, 0.943]
    """
    from statistics import NormalDist

    if not 0 <= correct <= n or n == 0:
        raise DataError(f"wilson: {correct} correct of {n}; the count must lie in 0..n, and n must be at least 1")
    z = NormalDist().inv_cdf(0.5 + _confidence(confidence) / 2)
    share, scale = correct / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, 0.0 if correct == 0 else middle - half, 1.0 if correct == n else middle + half)


def bootstrap(
    statistic: Callable[[Any], float | None],
    n: int,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """`statistic` of indices 0..n-1, with its percentile bootstrap interval over resamples of them.

    `statistic` takes an array (n,) of indices and returns a number, None where it has none; such resamples are left
    out. None where the whole sample has none. Raises DataError for n = 0. Deterministic for a given `seed`.

    >>> import numpy as np
    >>> values = np.array([0.0, 1.0, 1.0, 1.0])
    >>> interval = bootstrap(lambda index: float(values[index].mean()), n=4)
    >>> interval.value, interval.low < 0.75 < interval.high
    (0.75, True)
    """
    if n < 1:
        raise DataError(f"bootstrap: n is {n}; give at least one value")
    value, *drawn = map(statistic, resamples(n, samples, seed))
    if value is None:
        return None
    return percentile([value, *(x for x in drawn if x is not None)], confidence)


def resamples(n: int, samples: int = 2000, seed: int = 0) -> Iterator[Any]:
    """The indices 0..n-1, (n,), then `samples` times as many of them drawn with replacement.

    >>> [len(index) for index in resamples(3, samples=2)]
    [3, 3, 3]
    """
    import numpy as np

    yield np.arange(n)
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield rng.integers(0, n, n)


def percentile(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The first of `values` with the interval between the quantiles of the others (of itself where it is alone).

    An end that lies beside an infinite value is infinite or NaN.

    >>> percentile([2.0, 1.0, 2.0, 3.0], confidence=0.5)
    Interval(value=2.0, low=1.5, high=2.5)
    """
    import numpy as np

    tail = (1 - _confidence(confidence)) / 2
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(values[1:] or values, [tail, 1 - tail])
    return Interval(float(values[0]), float(low), float(high))


def auroc(positive: Sequence[float] | Any, negative: Sequence[float] | Any) -> float:
    """Chance that a positive lies above a negative, ties counting half; nan where one side is empty.

    >>> auroc([0.9, 0.4], [0.4, 0.1])
    0.875
    """
    import numpy as np

    n, m = len(positive), len(negative)
    if not n or not m:
        return math.nan
    _, place, counts = np.unique(np.concatenate([positive, negative]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place][:n]  # the mean rank of equal values, from 1
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def _confidence(value: float) -> float:
    if not 0 < value < 1:
        raise DataError(f"confidence is {value}; it must lie strictly between 0 and 1, for example 0.95")
    return value
