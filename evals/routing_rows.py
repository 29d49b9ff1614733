"""What one operating point did on every problem under one seed, and how rows become outcomes to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.errors import DataError
from stepwise.report.model import PolicyRow
from stepwise.routing.compare import Measured
from stepwise.routing.estimates import CostName, Outcomes
from stepwise.routing.metrics import wilson

HINDSIGHT = "cheapest right, in hindsight"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Row:
    """One (arm, operating point, seed): for every problem, in order, whether the answer is right and what it cost.

    `strong_share`: of the kept tokens, those that the strong model wrote. `seconds` says how long it took here, with
    the cache; it is no measure of the policy.
    """

    arm: str
    level: str
    setting: float | None
    seed: int
    correct: tuple[bool, ...]
    strong_tokens: tuple[float, ...]
    all_tokens: tuple[float, ...]
    parameter_tokens: tuple[float, ...]
    strong_share: float | None = None
    calls: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, arm: str, level: str, seed: int, found: Measured) -> Row:
        """The row of a measured policy. Raises `DataError` where a model's size is not known."""
        costs: dict[str, tuple[float, ...]] = {}
        for name in ("strong_tokens", "all_tokens", "parameter_tokens"):
            outcomes = Outcomes.of(found, name)
            if outcomes is None:
                raise DataError(f"{arm}: the size of a model is not known, so there are no parameter-tokens")
            costs[name] = outcomes.cost
        return cls(
            arm,
            level,
            found.setting,
            seed,
            found.correct,
            **costs,
            strong_share=found.row.strong_share,
            calls=found.row.calls,
            seconds=found.seconds or 0.0,
        )


Curves = Mapping[str, Sequence[Outcomes]]


def curves(rows: Iterable[Row], cost: CostName) -> dict[str, list[Outcomes]]:
    """For each arm its settings, each with the mean over the seeds for every problem.

    Raises `DataError` where the seeds of a setting were measured on different numbers of problems.
    """
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.arm, row.setting), []).append(row)
    found: dict[str, list[Outcomes]] = {}
    for (arm, setting), group in groups.items():
        if len({len(row.correct) for row in group}) != 1:
            raise DataError(f"{arm} at {setting}: its seeds were measured on different problems")
        label = arm if setting is None else f"{arm} {setting:.4g}"
        right = _mean([[float(value) for value in row.correct] for row in group])
        found.setdefault(arm, []).append(Outcomes(label, right, _mean([getattr(row, cost) for row in group])))
    return found


def hindsight(rows: Sequence[Row], cost: CostName) -> Outcomes | None:
    """For every problem and seed the cheapest right one of the weak model alone, the truth at each step and the strong
    model alone; the weak model where none is right. No router can know that; None where an arm is missing.
    """
    by_seed = {(row.arm, row.seed): row for row in rows if row.arm in ("never", "always", "truth at each step")}
    seeds = sorted({seed for _, seed in by_seed})
    right, spent = [], []
    for seed in seeds:
        arms = [by_seed.get((name, seed)) for name in ("never", "truth at each step", "always")]
        known = [row for row in arms if row is not None]
        if len(known) < len(arms):
            return None
        paid, solved = [], []
        for i in range(len(known[0].correct)):
            candidates = [getattr(row, cost)[i] for row in known if row.correct[i]]
            solved.append(float(bool(candidates)))
            paid.append(min(candidates, default=getattr(known[0], cost)[i]))
        right.append(solved)
        spent.append(paid)
    return Outcomes(HINDSIGHT, _mean(right), _mean(spent)) if seeds else None


def policy_rows(rows: Sequence[Row], arms: Iterable[str]) -> list[PolicyRow]:
    """For the page: one row for each setting of these arms, its seeds taken together."""
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.arm, row.setting), []).append(row)
    wanted = set(arms)
    return [_policy_row(group) for (arm, _), group in groups.items() if arm in wanted]


def _policy_row(group: Sequence[Row]) -> PolicyRow:
    """Its interval is that of one seed's number of problems: seeds of one problem are not independent."""
    first = group[0]
    n, seeds = len(first.correct), len(group)
    right = sum(sum(row.correct) for row in group)
    spread = wilson(round(right / seeds), n)
    shares = [row.strong_share for row in group if row.strong_share is not None]

    def total(of: Callable[[Row], float]) -> float:
        return sum(map(of, group))

    return PolicyRow(
        policy=first.arm if first.setting is None else f"{first.arm} {first.setting:.3g}",
        family=first.arm,
        setting=first.setting,
        accuracy=right / (n * seeds),
        accuracy_low=spread.low,
        accuracy_high=spread.high,
        strong_share=sum(shares) / len(shares) if shares else None,
        strong_tokens=round(total(lambda row: sum(row.strong_tokens))),
        generated_tokens=round(total(lambda row: sum(row.all_tokens))),
        parameter_tokens=total(lambda row: sum(row.parameter_tokens)),
        calls=round(total(lambda row: row.calls)),
        seconds=None,
        n=n * seeds,
    )


def _mean(values: Sequence[Sequence[Any]]) -> tuple[float, ...]:
    return tuple(sum(column) / len(values) for column in zip(*values, strict=True))
