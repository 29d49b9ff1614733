"""The figures of merit of a router's settings, with bootstrap intervals over problems.

What differs from TRIM (arXiv 2601.10245, section 5), which prints figures without intervals:
1. Problems are drawn again, all settings and both single models together: figures of two routers are paired, and what
   all of them find hard is no noise in their difference.
2. A level that is not reached has no cost: None, in the figure and in the ends of its interval. Resamples that do not
   reach it count as dearer than any that do.
3. `_split_cpt` chooses the setting on half of the problems and measures it on the other, since CPT as a minimum over
   noisy points is optimistic; so do the figures of mixed settings (`mixing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stepwise.errors import DataError, wrong_type
from stepwise.routing.compare import Measured
from stepwise.routing.metrics import (
    OperatingPoint,
    accuracy_at,
    cheapest,
    cost_of,
    cpt,
    delta_ibc,
    pgr,
)
from stepwise.routing.mixing import Mixed, halves
from stepwise.stats import percentile, resamples
from stepwise.types import InNotebook

CostName = Literal["strong_tokens", "all_tokens", "parameter_tokens"]
COSTS: tuple[CostName, ...] = ("strong_tokens", "all_tokens", "parameter_tokens")
LEVELS = (0.5, 0.8, 0.95)
Statistic = Callable[[Sequence[OperatingPoint]], float | None]


@dataclass(frozen=True)
class Outcomes:
    """What one setting of a router did on each problem: 1.0 where the answer is right, and what it cost.

    Raises `DataError` where the two have different lengths or none, or a number is not finite.

    >>> Outcomes("Threshold 0.5", correct=(1.0, 0.0, 1.0), cost=(12.0, 40.0, 0.0)).correct
    (1.0, 0.0, 1.0)
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
        """What `compare.compare` found, at one of the three costs (`COSTS`); see `metrics.cost_of` for what they are.

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
class Estimate(InNotebook):
    """A figure with its interval. None is not known or not reached; `defined` is the share of resamples with a value.

    The ends are quantiles over the resamples with a value, except for CPT; see `estimate`.

    >>> estimate = Estimate(0.12, low=0.03, high=0.21, defined=1.0)
    >>> f"{estimate.value:+.0%} ({estimate.low:+.0%} to {estimate.high:+.0%})"
    '+12% (+3% to +21%)'
    """

    value: float | None
    low: float | None
    high: float | None
    defined: float

    def __str__(self) -> str:
        """The value, with its interval in brackets.

        >>> print(Estimate(0.12, low=0.03, high=0.21, defined=1.0))
        0.12 (0.03 to 0.21)
        """
        value, low, high = ("?" if x is None else f"{x:.3g}" for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class _Chosen:
    """A setting chosen on half of the problems, and its mean cost and PGR on the other half."""

    label: str
    cost: float
    pgr: float | None


@dataclass(frozen=True)
class _RouterFigures:
    """All figures of one router at one cost: by setting, by level of the gap recovered, and of its settings mixed:
    the share of strong's cost at a level, and the area (None for fewer than 4 problems).
    """

    problems: int
    pgr: dict[str, Estimate]
    delta_ibc: dict[str, Estimate]
    cpt_measured: dict[float, Estimate]
    cpt_mixed: dict[float, Estimate]
    cpt_split: dict[float, _Chosen | None]
    area: Estimate | None


def _figures(
    settings: Sequence[Outcomes],
    weak: Outcomes,
    strong: Outcomes,
    *,
    levels: Sequence[float] = LEVELS,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> _RouterFigures:
    """The figures of a router's `settings` against its two models alone, all on the same problems in the same order.

    Costs are in the unit of the outcomes. With the same `samples` and `seed` the same problems are drawn again for any
    other router on these problems. Raises `DataError` for labels that are not distinct, and as `estimate` does.
    """
    labels = [setting.label for setting in settings]
    if len(set(labels)) != len(labels):
        raise DataError(f"labels are {labels!r}; settings of one router must differ in their label")
    drawn = _drawn([weak, strong, *settings], samples, seed)
    each = {label: i for i, label in enumerate(labels, start=2)}
    mixed = mixed_of([weak, strong, *settings], samples, seed) if len(weak.correct) >= 4 else None

    def of(values: list[float | None], none_is_dear: bool = False) -> Estimate:
        return _interval(values, confidence, none_is_dear)

    return _RouterFigures(
        problems=len(weak.correct),
        pgr={label: of([pgr(p[i], p[0], p[1]) for p in drawn]) for label, i in each.items()},
        delta_ibc={label: of([delta_ibc(p[i], p[0], p[1]) for p in drawn]) for label, i in each.items()},
        cpt_measured={x: of([cpt(p[2:], p[0], p[1], x) for p in drawn], True) for x in levels},
        cpt_mixed={x: of_draws(mixed.cpt(x), confidence) for x in levels} if mixed else {},
        cpt_split={x: _split_cpt(settings, weak, strong, x, seed=seed) for x in levels},
        area=of_draws(mixed.area(), confidence) if mixed else None,
    )


def by_family(measured: Sequence[Measured], *, samples: int = 1000) -> dict[str, dict[CostName, _RouterFigures | None]]:
    """The figures of every family of policies that `compare` measured, at each of the three costs.

    None for parameter-tokens where a model's size is not known. Empty unless "never" and "always" are among them and
    all problems have a gold answer.

    Example:
        results = sw.compare(router, ["never", "always", sw.Threshold(0.3), sw.Threshold(0.7)], problems)
        figures = by_family(results)
        print(figures["threshold"]["strong_tokens"])
    """
    arms: dict[str, list[Measured]] = {}
    for m in measured:
        arms.setdefault(m.family, []).append(m)
    if not {"never", "always"} <= arms.keys() or any(m.accuracy is None for m in measured):
        return {}

    def at(cost: CostName, family: str) -> _RouterFigures | None:
        outcomes = [Outcomes.of(m, cost) for m in (arms["never"][-1], arms["always"][-1], *arms[family])]
        known = [each for each in outcomes if each is not None]
        return _figures(known[2:], known[0], known[1], samples=samples) if len(known) == len(outcomes) else None

    return {family: {cost: at(cost, family) for cost in COSTS} for family in arms if family not in ("never", "always")}


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

    >>> ours = Outcomes("ours", (1.0, 1.0, 0.0, 1.0), (10.0, 20.0, 30.0, 0.0))
    >>> estimate(lambda points: points[0].accuracy, [ours], samples=200).value
    0.75
    """
    return _interval([statistic(points) for points in _drawn(arms, samples, seed)], confidence, none_is_dear)


def difference(
    first: Sequence[Measured],
    second: Sequence[Measured],
    *,
    at_cost: float | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Accuracy of `first` less that of `second`, paired by problem, with a bootstrap interval.

    Each is one measured setting, or, with `at_cost`, any number of them: then both are read off their frontiers at so
    many strong tokens per problem (see `metrics.accuracy_at`). Raises `DataError` where the two are on other problems,
    some have no gold answer, there are several settings and no `at_cost`, or one that was not measured up or down to.

    Example:
        results = sw.compare(router, ["never", sw.Threshold(0.5)], problems)
        gain = difference([results[1]], [results[0]])
        print(gain.value, gain.low, gain.high)
    """
    arms = [*first, *second]
    if not isinstance(at_cost, int | float | None):
        raise DataError(wrong_type("at_cost", at_cost, "give strong tokens per problem, a number"))
    if len({tuple(view.trace.problem.id for view in m.views) for m in arms}) != 1:
        raise DataError("difference: the two are not on the same problems in the same order; measure both on the same")
    if at_cost is None and not len(first) == len(second) == 1:
        labels = ", ".join(m.label for m in arms)
        raise DataError(f"difference: there are several settings ({labels}); name one of each, or give at_cost")
    for arm in (first, second):
        costs = [m.point.cost for m in arm]
        if at_cost is not None and not min(costs) <= at_cost <= max(costs):
            raise DataError(
                f"difference: at_cost is {at_cost:g} strong tokens per problem, and {arm[0].family!r} was measured "
                f'from {min(costs):.1f} to {max(costs):.1f}; measure "never" and "always" too, or take a cost between'
            )
    outcomes = [of for m in arms if (of := Outcomes.of(m)) is not None]

    def accuracy(points: Sequence[OperatingPoint]) -> float | None:
        return points[0].accuracy if at_cost is None else accuracy_at(points, at_cost)

    def statistic(points: Sequence[OperatingPoint]) -> float | None:
        ours, theirs = accuracy(points[: len(first)]), accuracy(points[len(first) :])
        return None if ours is None or theirs is None else ours - theirs

    return estimate(statistic, outcomes, samples=samples, confidence=confidence, seed=seed)


def mixed_of(arms: Sequence[Outcomes], samples: int = 1000, seed: int = 0) -> Mixed:
    """What is mixed: the weak model alone, the strong one and the settings of one router. Raises `DataError` for fewer
    than 4 problems.

    Example:
        print(of_draws(mixed_of([weak, strong, *settings]).area()))
    """
    return Mixed(np.array([arm.cost for arm in arms]), np.array([arm.correct for arm in arms]), samples, seed)


def of_draws(draws: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The first of the draws with the interval of the others; NaN has no value, and is left out of the interval.

    >>> of_draws([0.5, 0.4, 0.5, 0.6], confidence=0.5).value
    0.5
    """
    return _interval([None if math.isnan(x) else float(x) for x in draws], confidence)


def _split_cpt(
    settings: Sequence[Outcomes], weak: Outcomes, strong: Outcomes, x: float, *, seed: int = 0
) -> _Chosen | None:
    """The cheapest setting that recovers `x` of the gap on a random half of the problems, measured on the other half.

    None where no setting does, or there are fewer than two problems.
    """
    here, there = halves(len(weak.correct), seed)
    if not here:
        return None
    chosen_on, others = ([arm.part(part).point for arm in (weak, strong, *settings)] for part in (here, there))
    best = cheapest(chosen_on[2:], chosen_on[0], chosen_on[1], x)
    if best is None:
        return None
    point = others[2:][best]
    return _Chosen(settings[best].label, point.cost, pgr(point, others[0], others[1]))


def _drawn(arms: Sequence[Outcomes], samples: int, seed: int) -> list[list[OperatingPoint]]:
    """The arms' points on all problems, then on each of `samples` resamples of them."""
    sizes = {len(arm.correct) for arm in arms}
    if len(sizes) != 1:
        raise DataError(f"the arms have {sorted(sizes)} problems; give at least one, all on the same problems")
    if samples < 1:
        raise DataError(f"samples is {samples}; give at least 1, for example 1000")
    values = np.array([(arm.cost, arm.correct) for arm in arms])  # (arms, 2, problems)
    means = (values[:, :, rows].mean(2) for rows in resamples(sizes.pop(), samples, seed))
    return [[OperatingPoint(cost, correct) for cost, correct in each.tolist()] for each in means]


def _interval(values: Sequence[float | None], confidence: float, none_is_dear: bool = False) -> Estimate:
    """The first of `values` with the interval that the others give."""
    value, *others = values
    known = [x for x in others if x is not None]
    counted = [math.inf if x is None else x for x in others] if none_is_dear else known
    _, *ends = percentile([0.0, *(counted or [math.inf])], confidence)
    low, high = (end if math.isfinite(end) else None for end in ends)
    return Estimate(value, low, high, len(known) / len(others))
