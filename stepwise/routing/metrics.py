"""Figures of merit for a router: performance gap recovered, cost, and how sure one can be of them.

What differs from TRIM (arXiv 2601.10245, section 5) and AutoMix (arXiv 2310.12963):
1. The cost of the weak model need not be 0: delta-IBC divides by the cost above the weak model's.
2. Cost is counted three ways (`cost_of`): strong tokens (the papers' own), all generated tokens with discarded
   drafts, and parameter-tokens with prefill and scorer.
3. There are two CPT: `cpt` of measured points only, `cpt_interpolated` of settings mixed at random per problem, which
   the non-decreasing convex hull of RouterBench (arXiv 2403.12031, section 3) has.
Intervals of these figures over problems are in `estimates`. A hull over noisy points grows with their number: the
figures of mixed settings on problems that did not choose the vertices are in `mixing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from stepwise.config import Prices
from stepwise.errors import DataError
from stepwise.models.budget import Ledger
from stepwise.records import items_of, record
from stepwise.types import Trace, Usage

Finite = Annotated[float, Field(allow_inf_nan=False)]
_ROUNDING = 1e-9  # 0.95 of a gap computed in floats may come out as 0.9499999999999999


@dataclass(frozen=True)
class OperatingPoint:
    """One measured setting of a router: mean cost per problem and accuracy, in units that are the same throughout.

    >>> OperatingPoint(cost=60.0, accuracy=0.88)
    OperatingPoint(cost=60.0, accuracy=0.88)
    """

    cost: Finite
    accuracy: Finite


def pgr(point: OperatingPoint, weak: OperatingPoint, strong: OperatingPoint) -> float | None:
    """Performance gap recovered: (r - r_weak) / (r_strong - r_weak); None unless strong is better (TRIM, section 5).

    >>> weak, strong = OperatingPoint(0, 0.4), OperatingPoint(100, 0.9)
    >>> pgr(OperatingPoint(30, 0.8), weak, strong)
    0.8
    """
    gap = strong.accuracy - weak.accuracy
    return (point.accuracy - weak.accuracy) / gap if gap > 0 else None


def cpt(points: Iterable[OperatingPoint], weak: OperatingPoint, strong: OperatingPoint, x: float) -> float | None:
    """Call-performance threshold: the least cost among `points` whose PGR is at least `x`, x in (0, 1].

    In the unit of the points. None when no point reaches it, or when strong is no better than weak. Raises `DataError`
    for another x. As a minimum over noisy points it is optimistic: choose the setting on one split, measure on another.

    >>> weak, strong = OperatingPoint(0, 0.4), OperatingPoint(100, 0.9)
    >>> cpt([OperatingPoint(10, 0.6), OperatingPoint(30, 0.8)], weak, strong, 0.5)
    30.0
    """
    measured = list(points)
    best = cheapest(measured, weak, strong, x)
    return None if best is None else measured[best].cost


def cheapest(points: Sequence[OperatingPoint], weak: OperatingPoint, strong: OperatingPoint, x: float) -> int | None:
    """Which of `points` `cpt` is the cost of: its index, the first of equals; None where none recovers `x`.

    >>> weak, strong = OperatingPoint(0, 0.4), OperatingPoint(100, 0.9)
    >>> cheapest([OperatingPoint(10, 0.6), OperatingPoint(30, 0.8)], weak, strong, 0.5)
    1
    """
    _share_of_gap(x)
    if strong.accuracy <= weak.accuracy:
        return None
    reached = [i for i, point in enumerate(points) if (pgr(point, weak, strong) or 0.0) >= x - _ROUNDING]
    return min(reached, key=lambda i: points[i].cost, default=None)


def cpt_interpolated(
    points: Iterable[OperatingPoint], weak: OperatingPoint, strong: OperatingPoint, x: float
) -> float | None:
    """The least cost at which settings mixed at random per problem recover `x` of the gap, x in (0, 1].

    The two models alone are among the settings, so that it is at most what mixing those two costs, and at most `cpt`.
    None when strong is no better than weak. Raises `DataError` for another x.

    >>> weak, strong = OperatingPoint(0, 0.4), OperatingPoint(100, 0.9)
    >>> round(cpt_interpolated([OperatingPoint(10, 0.6), OperatingPoint(30, 0.8)], weak, strong, 0.5), 3)
    15.0
    """
    _share_of_gap(x)
    if strong.accuracy <= weak.accuracy:
        return None
    wanted = weak.accuracy + (x - _ROUNDING) * (strong.accuracy - weak.accuracy)
    line = hull([weak, strong, *points])
    before, after = next(pair for pair in pairwise([line[0], *line]) if pair[1].accuracy >= wanted)
    rise = after.accuracy - before.accuracy
    return before.cost + ((wanted - before.accuracy) / rise if rise else 0.0) * (after.cost - before.cost)


def delta_ibc(point: OperatingPoint, weak: OperatingPoint, strong: OperatingPoint) -> float | None:
    """Incremental benefit per cost against paying for the strong model alone (AutoMix; TRIM prints the ratio, as here).

    IBC = (r - r_weak) / (C - C_weak), and the result is IBC / IBC_strong - 1: 0 for a random mix of the two models.
    None where the point costs no more than weak, and where strong costs no more or is no better than weak.

    >>> weak, strong = OperatingPoint(0, 0.4), OperatingPoint(100, 0.9)
    >>> round(delta_ibc(OperatingPoint(30, 0.8), weak, strong), 3)
    1.667
    """
    if point.cost <= weak.cost or strong.cost <= weak.cost or strong.accuracy <= weak.accuracy:
        return None
    base = (strong.accuracy - weak.accuracy) / (strong.cost - weak.cost)
    return (point.accuracy - weak.accuracy) / (point.cost - weak.cost) / base - 1


def hull(points: Iterable[OperatingPoint]) -> list[OperatingPoint]:
    """The settings whose mixtures nothing beats: the vertices of the upper concave hull up to the most accurate point,
    by strictly rising cost and accuracy, rising ever less.

    >>> points = [OperatingPoint(0, 0.4), OperatingPoint(20, 0.5), OperatingPoint(30, 0.8), OperatingPoint(40, 0.7)]
    >>> [point.cost for point in hull(points)]
    [0.0, 30.0]
    """
    best: list[OperatingPoint] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy)):
        if best and point.accuracy <= best[-1].accuracy:
            continue
        while len(best) > 1 and _slope(best[-2], best[-1]) <= _slope(best[-1], point):
            best.pop()
        best.append(point)
    return best


def _slope(first: OperatingPoint, second: OperatingPoint) -> float:
    return (second.accuracy - first.accuracy) / (second.cost - first.cost)


def accuracy_at(points: Iterable[OperatingPoint], cost: float) -> float | None:
    """The best accuracy of `points`, or of two of them mixed at random per problem, for a mean `cost` per problem; None
    below the cheapest.

    Example:
        >>> accuracy_at([OperatingPoint(0, 0.25), OperatingPoint(10, 0.75)], 5)
        0.5
    """
    line = hull(points)
    if not line or cost < line[0].cost:
        return None
    for before, after in pairwise(line):
        if cost <= after.cost:
            return before.accuracy + (cost - before.cost) * _slope(before, after)
    return line[-1].accuracy


def frontier_area(points: Iterable[OperatingPoint], weak: OperatingPoint, strong: OperatingPoint) -> float | None:
    """Area under PGR against cost share of settings mixed at random per problem, from weak (0, 0) to strong (1, 1).

    A random mix of the two models has 0.5, a free perfect router 1. The two models alone are among the settings;
    another setting never lowers it. None when strong costs no more or is no better than weak.

    >>> weak, strong = OperatingPoint(0, 0.4), OperatingPoint(100, 0.9)
    >>> frontier_area([], weak, strong), round(frontier_area([OperatingPoint(30, 0.8)], weak, strong), 3)
    (0.5, 0.75)
    """
    if strong.cost <= weak.cost or strong.accuracy <= weak.accuracy:
        return None
    line = hull([weak, strong, *points])
    costs = [weak.cost, *(p.cost for p in line if weak.cost < p.cost < strong.cost), strong.cost]
    heights = [(accuracy_at(line, cost) or 0.0) - weak.accuracy for cost in costs]
    raw = sum(
        (b - a) * (low + high) / 2 for (a, b), (low, high) in zip(pairwise(costs), pairwise(heights), strict=True)
    )
    return raw / ((strong.cost - weak.cost) * (strong.accuracy - weak.accuracy))


def _share_of_gap(x: float) -> None:
    if not 0 < x <= 1:
        raise DataError(f"cpt: x is {x}; it is the share of the gap to recover and must lie in (0, 1], for example 0.8")


@dataclass(frozen=True)
class Cost:
    """What a set of traces cost, in all; `parameter_tokens` is None when a working model's size is not known.

    Example:
        cost = router.cost(traces)
        print(cost.strong_tokens_per_problem, cost.all_tokens, cost.discarded_tokens)
    """

    problems: int
    strong_tokens: int
    all_tokens: int
    parameter_tokens: float | None
    discarded_tokens: int
    calls: int
    strong_calls: int

    @property
    def strong_tokens_per_problem(self) -> float:
        """TRIM's cost C: tokens that the strong model generated, mean per problem."""
        return self.strong_tokens / self.problems


def cost_of(traces: Sequence[Trace], *, weak: Any = None, strong: Any = None, scorer: Any = None) -> Cost:
    """What `traces` cost, three ways: strong tokens generated, all tokens generated, parameter-tokens.

    A parameter-token is one weight times one token run through it: parameters x (evaluated + generated tokens), summed
    over the models, so prefill and scorer count. `weak`, `strong`, `scorer` are numbers of weights, or models with a
    `parameters` attribute. Raises `DataError` for an empty list.

    >>> written = [("weak", 5), ("strong", 8)]
    >>> steps = [Step("So 3.", author, usage=Usage(generated_tokens=n)) for author, n in written]
    >>> cost_of([Trace(Problem("p", "?"), tuple(steps), "answer")]).strong_tokens
    8
    """
    traces = items_of(traces, Trace, "traces", "give what solve_all returned")
    if not traces:
        raise DataError("cost_of: no traces; route at least one problem first")
    models = {"weak": weak, "strong": strong, "scorer": scorer}
    sizes: dict[str, Any] = {
        role: m if isinstance(m, int | float | None) else m.parameters for role, m in models.items()
    }
    totals: dict[str, Usage] = {}
    for trace in traces:
        for author, usage in trace.usage.items():
            totals[author] = totals.get(author, Usage()) + usage
    run = {author: usage.evaluated_tokens + usage.generated_tokens for author, usage in totals.items()}
    known = all(sizes.get(author) is not None for author, tokens in run.items() if tokens)
    discarded = (d for t in traces for d in (*(d for s in t.steps for d in s.discarded), *t.abandoned))
    return Cost(
        problems=len(traces),
        strong_tokens=totals.get("strong", Usage()).generated_tokens,
        all_tokens=sum(usage.generated_tokens for usage in totals.values()),
        parameter_tokens=float(sum(sizes[author] * run[author] for author in run if run[author])) if known else None,
        discarded_tokens=sum(d.usage.generated_tokens for d in discarded),
        calls=sum(usage.calls for author, usage in totals.items() if author != "scorer"),
        strong_calls=totals.get("strong", Usage()).calls,
    )


@record(allow_inf_nan=False)
class _Savings:
    """Strong tokens and money here, and what the strong model alone would take by the estimate.

    The estimate: it writes as many steps as these solutions have, those that the weak model wrote as long as its own
    here are on average (as long as they are, where it wrote none: `own_steps` is 0), in one call per problem, which
    reads the question. Where the strong model alone would take fewer or longer steps, the estimate is off by that; the
    only sure way to know is to run it (`routing.policy=always`). Money is None where a price is not known.
    """

    problems: int
    own_steps: int
    strong_tokens: int
    strong_only_tokens: float
    money: float | None
    strong_only_money: float | None

    @property
    def tokens_saved(self) -> float | None:
        """Share of the strong model's tokens that were not needed, below 0 for a loss; None where it has none."""
        return 1 - self.strong_tokens / self.strong_only_tokens if self.strong_only_tokens else None

    @property
    def money_saved(self) -> float | None:
        """Money that was not spent, below 0 for a loss."""
        if self.money is None or self.strong_only_money is None:
            return None
        return self.strong_only_money - self.money

    def in_words(self) -> list[str]:
        """One line for tokens, and one for money where anything costs any; both say that it is an estimate."""
        saved = self.tokens_saved
        if saved is None:
            return []
        share = f"{saved:.0%} saved" if saved >= 0 else f"{-saved:.0%} more"
        length = f"the strong model's own {self.own_steps} here" if self.own_steps else "they are: it wrote none here"
        lines = [
            f"Strong tokens: {self.strong_tokens:,} here, about {self.strong_only_tokens:,.0f} by the strong model "
            f"alone, {share} (estimated: as many steps as here, each as long as {length})."
        ]
        if self.money_saved is not None and (self.money or self.strong_only_money):
            lines.append(
                f"Money: {self.money:,.6g} here with all models, about {self.strong_only_money:,.6g} by the strong "
                f"model alone (estimated from the same steps, one call per problem)."
            )
        return lines


def savings(traces: Sequence[Trace], prices: Mapping[str, Prices | None] | None = None) -> _Savings:
    """Estimate what `traces` saved; `prices` by role, as for a `Ledger`. Raises `DataError` for no traces.

    >>> written = [("weak", 5), ("strong", 8)]
    >>> steps = [Step("So 3.", author, usage=Usage(generated_tokens=n)) for author, n in written]
    >>> savings([Trace(Problem("p", "?"), tuple(steps), "answer")]).strong_only_tokens  # two of its steps
    16.0
    """
    if not traces:
        raise DataError("savings: no traces; route at least one problem first")
    steps = [step for trace in traces for step in trace.steps]
    own = [step.usage.generated_tokens for step in steps if step.author == "strong"]
    other = [step.usage.generated_tokens for step in steps if step.author != "strong"]
    alone = float(sum(own) + (len(other) * sum(own) / len(own) if own else sum(other)))
    read, spent = 0, Ledger(None, prices)
    for trace in traces:
        usages = [step.usage for step in trace.steps or trace.abandoned]
        read += min((usage.prompt_tokens for usage in usages if usage != Usage()), default=0)  # least: the question
        for role, usage in trace.usage.items():
            spent.record(role, usage)
    price = (prices or {}).get("strong")
    return _Savings(
        problems=len(traces),
        own_steps=len(own),
        strong_tokens=cost_of(traces).strong_tokens,
        strong_only_tokens=alone,
        money=spent.usage().cost,
        strong_only_money=None if price is None else (price[0] * read + price[1] * alone) / 1_000_000,
    )
