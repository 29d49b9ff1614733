"""Figures of settings mixed at random per problem, on problems that did not choose which settings to mix.

What differs from RouterBench (arXiv 2403.12031, section 3), whose hull is drawn and measured on the same problems:
1. The vertices are chosen on one half of the problems and measured on the other, both ways, and the mean is told: a
   hull over noisy points grows with their number, also where all of them are worth nothing.
2. Intervals are a bootstrap over the problems of the measuring half, for the settings as they were chosen. All entries
   on the same problems share halves and draws, so that the difference of two is paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stepwise.errors import DataError
from stepwise.routing.metrics import OperatingPoint, hull


def halves(n: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Two random halves of `n` problems, by index.

    >>> sorted(sum(halves(5), []))
    [0, 1, 2, 3, 4]
    """
    order = np.random.default_rng(seed).permutation(n).tolist()
    return order[: n // 2], order[n // 2 :]


@dataclass(frozen=True)
class Mixed:
    """The settings of one entry and the two models alone, as what is mixed.

    `cost` and `correct` are (A, P): of A settings, the weak model alone first and the strong one second, on P problems.
    The figures are arrays (1 + samples,): the value, then that of each resample, NaN where it has none; see
    `estimates.of_draws`. `samples` and `seed` have to be those of the entries that it is compared with. Raises
    `DataError` for fewer than 4 problems.

    Example:
        mixed = Mixed(np.array([weak.cost, strong.cost, *costs]), np.array([weak.correct, strong.correct, *correct]))
        print(of_draws(mixed.area()), of_draws(mixed.cpt(0.8)))
    """

    cost: Any
    correct: Any
    samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cost.shape != self.correct.shape or self.cost.shape[0] < 2 or self.cost.shape[1] < 4:
            shapes = f"costs {self.cost.shape} and verdicts {self.correct.shape}"
            raise DataError(f"mixed settings: {shapes}; give both models alone, on the same 4 problems or more")

    def area(self) -> Any:
        """`metrics.frontier_area` of mixed settings. NaN where strong costs no more or is no better than weak."""
        return self._crossed(_between_the_ends, _area)

    def cpt(self, x: float) -> Any:
        """`metrics.cpt_interpolated`, as a share of the cost of the strong model alone."""
        return self._crossed(_up_to_strong, lambda points, ends: _cpt(points, ends, x))

    def gain_at(self, share: float) -> Any:
        """Accuracy of the best mix that costs `share` of the way from the weak model to the strong one, less what a
        random mix of these two models has at the cost that it comes to.
        """
        return self._crossed(lambda points: _cut(points, share), _gain)

    def _crossed(self, choose: Callable[[Any], Any], figure: Callable[[Any, Any], Any]) -> Any:
        """The mean of both ways. `choose`: points (A, 2) to weights (M, A); `figure`: points of the mixtures
        (S, M, 2) and of the two models (S, 2, 2) to values (S,).
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return sum(
                figure(np.einsum("ma,sak->smk", choose(chosen), means), means[:, :2]) for chosen, means in self._ways
            ) / len(self._ways)

    @cached_property
    def _ways(self) -> list[tuple[Any, Any]]:
        """For either half the points (A, 2) on it, and those on all and on resamples (S, A, 2) of the other half."""
        data = np.stack([self.cost, self.correct], axis=1).astype(float)  # (A, 2, P)
        parts = [data[:, :, half] for half in halves(data.shape[2], self.seed)]
        rng, ways = np.random.default_rng(self.seed), []
        for choosing, measuring in (parts, parts[::-1]):
            n = measuring.shape[2]
            counts = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=self.samples)])  # (S, P)
            ways.append((choosing.mean(axis=2), np.einsum("akp,sp->sak", measuring, counts, optimize=True) / n))
        return ways


def _vertices(points: Any) -> list[int]:
    """Which of the points (A, 2) the hull has, by rising cost."""
    places = {tuple(point): i for i, point in reversed(list(enumerate(points.tolist())))}  # the first of equals
    return [places[p.cost, p.accuracy] for p in hull(OperatingPoint(*point) for point in points.tolist())]


def _at_cost(points: Any, cost: float) -> Any:
    """The weights (A,) of the best mixture of a mean cost, the nearest end of the hull where there is none."""
    line, weights = _vertices(points), np.zeros(len(points))
    costs = points[line, 0]
    right = min(int(np.searchsorted(costs, cost)), len(line) - 1)
    left = max(right - 1, 0)
    share = (cost - costs[left]) / (costs[right] - costs[left]) if right > left else 1.0
    weights[line[right]] += min(share, 1.0)
    weights[line[left]] += 1 - min(share, 1.0)
    return weights


def _between_the_ends(points: Any) -> Any:
    """The hull from the cost of the weak model to that of the strong one, (M, A)."""
    weak, strong = points[:2, 0]
    inside = [np.eye(len(points))[i] for i in _vertices(points) if weak < points[i, 0] < strong]
    return np.array([_at_cost(points, weak), *inside, _at_cost(points, strong)])


def _area(points: Any, ends: Any) -> Any:
    """Under the lines through the points, flat from the ends of the scale to the first and the last one."""
    costs = np.concatenate([ends[:, :1, 0], points[:, :, 0], ends[:, 1:, 0]], axis=1)
    heights = np.concatenate([points[:, :1, 1], points[:, :, 1], points[:, -1:, 1]], axis=1) - ends[:, :1, 1]
    raw = (np.diff(costs) * (heights[:, 1:] + heights[:, :-1]) / 2).sum(axis=1)
    width, gap = (ends[:, 1] - ends[:, 0]).T
    return np.where((width > 0) & (gap > 0), raw / (width * gap), np.nan)


def _up_to_strong(points: Any) -> Any:
    line = _vertices(points)
    return np.eye(len(points))[[*line, *([] if line[-1] == 1 else [1])]]


def _cpt(points: Any, ends: Any, x: float) -> Any:
    gap = ends[:, 1, 1] - ends[:, 0, 1]
    wanted = ends[:, 0, 1] + (x - 1e-9) * gap
    first = np.argmax(points[:, :, 1] >= wanted[:, None], axis=1)  # the strong model at the latest
    rows, before = np.arange(len(points)), np.maximum(first - 1, 0)
    (low, base), (high, top) = points[rows, before].T, points[rows, first].T
    share = np.where(first > 0, (wanted - base) / (top - base), 1.0)
    return np.where(gap > 0, (low + share * (high - low)) / ends[:, 1, 0], np.nan)


def _cut(points: Any, share: float) -> Any:
    weak, strong = points[:2, 0]
    return _at_cost(points, weak + share * (strong - weak))[None]


def _gain(points: Any, ends: Any) -> Any:
    (weak, base), (strong, top) = ends[:, 0].T, ends[:, 1].T
    way = np.where(strong > weak, (points[:, 0, 0] - weak) / (strong - weak), 1.0).clip(0, 1)
    return points[:, 0, 1] - base - way * (top - base)
