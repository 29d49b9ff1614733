"""The figures of merit of a router's settings, with bootstrap intervals over problems.

What differs from TRIM (arXiv 2601.10245, section 5), which prints figures without intervals:
1. Problems are drawn again, all settings and both single models together: figures of two routers are paired, and what
   all of them find hard is no noise in their difference.
2. A level that is not reached has no cost: None, in the figure and in the ends of its interval. Resamples that do not
   reach it count as dearer than any that do.
3. `split_cpt` chooses the setting on half of the problems and measures it on the other, since CPT as a minimum over
   noisy points is optimistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepwise.errors import DataError
from stepwise.routing.metrics import (
    OperatingPoint,
    cheapest,
    cost_of,
    cpt,
    cpt_interpolated,
    delta_ibc,
    frontier_area,
    pgr,
)

if TYPE_CHECKING:
    from stepwise.routing.compare import Measured

CostName = Literal["strong_tokens", "all_tokens", "parameter_tokens"]
COSTS: tuple[CostName, ...] = ("strong_tokens", "all_tokens", "parameter_tokens")
LEVELS = (0.5, 0.8, 0.95)
Statistic = Callable[[Sequence[OperatingPoint]], float | None]


@dataclass(frozen=True)
class Outcomes:
    """What one setting of a router did on each problem: 1.0 where the answer is right, and what it cost.

    Raises `DataError` where the two have different lengths or none, or a number is not finite.
    """

    label: str
    correct: tuple[float, ...]
    cost: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.correct) != len(self.cost) or not self.correct:
            counts = f"{len(self.correct)} verdicts and {len(self.cost)} costs"
            raise DataError(f"{self.label}: {counts}; give one of each for every problem, at least one")
        if not all(map(math.isfinite, (*self.correct, *self.cost))):
            raise DataError(f"{self.label}: a verdict or a cost is not a finite number; leave such problems out")

    @classmethod
    def of(cls, measured: Measured, cost: CostName = "strong_tokens") -> Outcomes | None:
        """What `compare.measure` found, at one of the three costs (`COSTS`); see `metrics.cost_of` for what they are.

        None where parameter-tokens are asked for and a model's size is not known. Raises `DataError` where a problem
        has no gold answer.
        """
        if measured.accuracy is None:
            raise DataError(f"{measured.label}: some problems have no gold answer, so there is no accuracy")
        if cost == "parameter_tokens":
            spent = [view.parameter_tokens for view in measured.views]
        else:
            spent = [getattr(cost_of([view.trace]), cost) for view in measured.views]
        known = tuple(float(value) for value in spent if value is not None)
        return cls(measured.label, tuple(map(float, measured.correct)), known) if len(known) == len(spent) else None

    @property
    def point(self) -> OperatingPoint:
        """Means over the problems."""
        return OperatingPoint(sum(self.cost) / len(self.cost), sum(self.correct) / len(self.correct))

    def part(self, problems: Sequence[int]) -> Outcomes:
        """The same on some of the problems, by index."""
        return Outcomes(self.label, tuple(self.correct[i] for i in problems), tuple(self.cost[i] for i in problems))


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval. None is not known or not reached; `defined` is the share of resamples with a value.

    The ends are quantiles over the resamples with a value, except for CPT; see `estimate`.
    """

    value: float | None
    low: float | None
    high: float | None
    defined: float


@dataclass(frozen=True)
class Chosen:
    """A setting chosen on half of the problems, and its mean cost and PGR on the other half."""

    label: str
    cost: float
    pgr: float | None


@dataclass(frozen=True)
class Figures:
    """All figures of one router at one cost: by setting, by level of the gap recovered, and of its whole frontier."""

    problems: int
    pgr: dict[str, Estimate]
    delta_ibc: dict[str, Estimate]
    cpt_measured: dict[float, Estimate]
    cpt_interpolated: dict[float, Estimate]
    cpt_split: dict[float, Chosen | None]
    area: Estimate


def figures(
    settings: Sequence[Outcomes],
    weak: Outcomes,
    strong: Outcomes,
    *,
    levels: Sequence[float] = LEVELS,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Figures:
    """The figures of a router's `settings` against its two models alone, all on the same problems in the same order.

    Costs are in the unit of the outcomes. With the same `samples` and `seed` the same problems are drawn again for any
    other router on these problems. Raises `DataError` for labels that are not distinct, and as `estimate` does.
    """
    labels = [setting.label for setting in settings]
    if len(set(labels)) != len(labels):
        raise DataError(f"labels are {labels!r}; settings of one router must differ in their label")
    drawn = _drawn([weak, strong, *settings], samples, seed)
    each = {label: i for i, label in enumerate(labels, start=2)}

    def of(values: list[float | None], none_is_dear: bool = False) -> Estimate:
        return _interval(values, confidence, none_is_dear)

    return Figures(
        problems=len(weak.correct),
        pgr={label: of([pgr(p[i], p[0], p[1]) for p in drawn]) for label, i in each.items()},
        delta_ibc={label: of([delta_ibc(p[i], p[0], p[1]) for p in drawn]) for label, i in each.items()},
        cpt_measured={x: of([cpt(p[2:], p[0], p[1], x) for p in drawn], True) for x in levels},
        cpt_interpolated={x: of([cpt_interpolated(p[2:], p[0], p[1], x) for p in drawn], True) for x in levels},
        cpt_split={x: split_cpt(settings, weak, strong, x, seed=seed) for x in levels},
        area=of([frontier_area(p[2:], p[0], p[1]) for p in drawn]),
    )


def by_family(measured: Sequence[Measured], *, samples: int = 1000) -> dict[str, dict[CostName, Figures | None]]:
    """The figures of every family of policies that `compare.measure` found, at each of the three costs.

    None for parameter-tokens where a model's size is not known. Empty unless "never" and "always" are among them and
    all problems have a gold answer.
    """
    ends = {m.family: m for m in measured if m.family in ("never", "always")}
    if len(ends) < 2 or any(m.accuracy is None for m in measured):
        return {}
    families = dict.fromkeys(m.family for m in measured if m.family not in ends)
    found: dict[str, dict[CostName, Figures | None]] = {}
    for family in families:
        found[family] = {}
        for cost in COSTS:
            own = [m for m in measured if m.family == family]
            arms = [Outcomes.of(m, cost) for m in (ends["never"], ends["always"], *own)]
            known = [arm for arm in arms if arm is not None]
            whole = len(known) == len(arms)
            found[family][cost] = figures(known[2:], known[0], known[1], samples=samples) if whole else None
    return found


def estimate(
    statistic: Statistic,
    arms: Sequence[Outcomes],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    none_is_dear: bool = False,
) -> Estimate:
    """Any figure of the arms' points, with a percentile bootstrap interval over problems, paired across the arms.

    `statistic` gets the arms' points in their order: a difference of two routers' areas, or a ratio of their CPT. Where
    it is None in a resample, that counts as larger than any number with `none_is_dear` (then an end of the interval may
    be None), and is left out without. Raises `DataError` for no arms, arms on different numbers of problems, or
    `samples` or `confidence` out of range.
    """
    return _interval([statistic(points) for points in _drawn(arms, samples, seed)], confidence, none_is_dear)


def split_cpt(
    settings: Sequence[Outcomes], weak: Outcomes, strong: Outcomes, x: float, *, seed: int = 0
) -> Chosen | None:
    """The cheapest setting that recovers `x` of the gap on a random half of the problems, measured on the other half.

    None where no setting does, or there are fewer than two problems.
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(weak.correct)).tolist()
    half = len(order) // 2
    if not half:
        return None
    here, there = order[:half], order[half:]
    best = cheapest([s.part(here).point for s in settings], weak.part(here).point, strong.part(here).point, x)
    if best is None:
        return None
    point = settings[best].part(there).point
    return Chosen(settings[best].label, point.cost, pgr(point, weak.part(there).point, strong.part(there).point))


def _drawn(arms: Sequence[Outcomes], samples: int, seed: int) -> list[list[OperatingPoint]]:
    """The arms' points on all problems, then on each of `samples` resamples of them."""
    import numpy as np

    sizes = {len(arm.correct) for arm in arms}
    if len(sizes) != 1:
        raise DataError(f"the arms have {sorted(sizes)} problems; give at least one, all on the same problems")
    if samples < 1:
        raise DataError(f"samples is {samples}; give at least 1, for example 1000")
    (count,) = sizes
    weights = np.random.default_rng(seed).multinomial(count, [1 / count] * count, samples) / count
    weights = np.vstack([np.full(count, 1 / count), weights])
    # Rounded, so that arms that did the same are equal whatever the order of the sums.
    costs = np.round(weights @ np.array([arm.cost for arm in arms]).T, 9)
    shares = np.round(weights @ np.array([arm.correct for arm in arms]).T, 12)
    return [list(map(OperatingPoint, *rows)) for rows in zip(costs.tolist(), shares.tolist(), strict=True)]


def _interval(values: Sequence[float | None], confidence: float, none_is_dear: bool = False) -> Estimate:
    """The first of `values` with the interval that the others give."""
    import numpy as np

    if not 0 < confidence < 1:
        raise DataError(f"confidence is {confidence}; it must lie strictly between 0 and 1, for example 0.95")
    value, *others = values
    known = [other for other in others if other is not None]
    counted = [math.inf if other is None else other for other in others] if none_is_dear else known
    low = high = None
    if counted:
        tail = (1 - confidence) / 2
        low = float(np.quantile(counted, tail, method="lower"))
        high = float(np.quantile(counted, 1 - tail, method="higher"))
    ends = [None if end is None or math.isinf(end) else end for end in (low, high)]
    return Estimate(value, ends[0], ends[1], len(known) / len(others))
