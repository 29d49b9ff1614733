"""What one operating point did on every problem under one seed, and how rows become outcomes to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.errors import DataError
from stepwise.routing.compare import Measured, PolicyRow
from stepwise.routing.estimates import Outcomes
from stepwise.stats import wilson
from stepwise.types import Usage

HINDSIGHT = "cheapest right, in hindsight"


class Cost(NamedTuple):
    """A way to count cost. `sizes`: weights of (weak, strong, scorer) by which the tokens that each ran through are
    counted; without, `key` names the field of a row.
    """

    key: str
    name: str
    sizes: tuple[float, float, float] | None = None


STRONG = Cost("strong_tokens", "strong tokens")
ALL = Cost("all_tokens", "all generated tokens")
TRIM_SIZES = (1.5, 7.0, 7.0)  # billions: the published pair of TRIM and its scorer


def costs(sizes: tuple[float, float, float]) -> tuple[Cost, ...]:
    """The three costs, with the models' own `sizes`, and parameter-tokens as if the models had the sizes of TRIM's."""
    own = Cost("parameter_tokens", "parameter-tokens", sizes)
    return STRONG, ALL, own, Cost("parameter_tokens_trim", "parameter-tokens at the sizes of TRIM's pair", TRIM_SIZES)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Row:
    """One (arm, operating point, seed): for every problem, in order, whether the answer is right and what it cost.

    `weak_run`, `strong_run`, `scorer_run`: tokens that each model ran through, evaluated and generated.
    `strong_share`: of the kept tokens, those that the strong model wrote.
    """

    arm: str
    level: str
    setting: float | None
    seed: int
    correct: tuple[bool, ...]
    strong_tokens: tuple[float, ...]
    all_tokens: tuple[float, ...]
    weak_run: tuple[float, ...]
    strong_run: tuple[float, ...]
    scorer_run: tuple[float, ...]
    strong_share: float | None = None
    calls: int = 0

    @classmethod
    def of(cls, arm: str, level: str, setting: float | None, seed: int, found: Measured) -> Row:
        """The row of a measured policy. Raises `DataError` where a problem has no gold answer."""
        strong, everything = Outcomes.of(found, "strong_tokens"), Outcomes.of(found, "all_tokens")
        assert strong is not None
        assert everything is not None
        spent = [view.trace.usage for view in found.views]
        nothing = Usage()

        def run(role: str) -> tuple[float, ...]:
            usages = [each.get(role, nothing) for each in spent]
            return tuple(float(one.evaluated_tokens + one.generated_tokens) for one in usages)

        return cls(
            arm,
            level,
            setting,
            seed,
            found.correct,
            strong.cost,
            everything.cost,
            weak_run=run("weak"),
            strong_run=run("strong"),
            scorer_run=run("scorer"),
            strong_share=found.row.strong_share,
            calls=found.row.calls,
        )

    @property
    def label(self) -> str:
        """Arm and setting."""
        return self.arm if self.setting is None else f"{self.arm} {self.setting:.6g}"

    def cost(self, cost: Cost) -> tuple[float, ...]:
        """What every problem cost."""
        if cost.sizes is None:
            named: tuple[float, ...] = getattr(self, cost.key)
            return named
        runs = zip(self.weak_run, self.strong_run, self.scorer_run, strict=True)
        return tuple(sum(size * run for size, run in zip(cost.sizes, each, strict=True)) for each in runs)


Curves = Mapping[str, Sequence[Outcomes]]


def curves(rows: Iterable[Row], cost: Cost) -> dict[str, list[Outcomes]]:
    """For each arm its settings, each with the mean over the seeds for every problem.

    Raises `DataError` where the seeds of a setting were measured on different numbers of problems.
    """
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.arm, row.setting), []).append(row)
    found: dict[str, list[Outcomes]] = {}
    for (arm, _), group in groups.items():
        if len({len(row.correct) for row in group}) != 1:
            raise DataError(f"{group[0].label}: its seeds were measured on different problems")
        right = _mean([[float(value) for value in row.correct] for row in group])
        found.setdefault(arm, []).append(Outcomes(group[0].label, right, _mean([row.cost(cost) for row in group])))
    return found


def hindsight(rows: Sequence[Row], cost: Cost) -> Outcomes | None:
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
            candidates = [row.cost(cost)[i] for row in known if row.correct[i]]
            solved.append(float(bool(candidates)))
            paid.append(min(candidates, default=known[0].cost(cost)[i]))
        right.append(solved)
        spent.append(paid)
    return Outcomes(HINDSIGHT, _mean(right), _mean(spent)) if seeds else None


def policy_rows(rows: Sequence[Row], arms: Iterable[str], weights: Cost) -> list[PolicyRow]:
    """For the page: one row for each setting of these arms, its seeds taken together, parameter-tokens as `weights`."""
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.arm, row.setting), []).append(row)
    wanted = set(arms)
    return [_policy_row(group, weights) for (arm, _), group in groups.items() if arm in wanted]


def _policy_row(group: Sequence[Row], weights: Cost) -> PolicyRow:
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
        parameter_tokens=total(lambda row: sum(row.cost(weights))),
        calls=round(total(lambda row: row.calls)),
        seconds=None,
        n=n * seeds,
    )


def _mean(values: Sequence[Sequence[Any]]) -> tuple[float, ...]:
    return tuple(sum(column) / len(values) for column in zip(*values, strict=True))
