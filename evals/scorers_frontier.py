"""What `evals.scorers_routing` measured: costs, accuracy against Random at equal cost, from which sizes on it pays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepwise.runs.shell import Run
from stepwise.stats import Interval, bootstrap, wilson

from .real import Row, Solve, points, seconds_of, sees

WEAK, STRONG, RANDOM = "weak alone", "strong alone", "Random"
COSTS = ("strong tokens", "all tokens", "parameter-tokens", "seconds")
BUDGETS = (0.1, 0.2, 0.3)  # of the strong model's tokens alone
SAMPLES = 1000


class Arm(NamedTuple):
    """One setting of a family."""

    family: str
    name: str
    solve: Solve
    scorer: str = ""


def costs_of(row: Row, scorer: str, facts: Mapping[str, Any]) -> tuple[float, ...]:
    """The `COSTS` of one problem."""
    sizes, rates = facts["sizes"], dict(facts["rates"])
    own = {"weak": sizes["weak"], "strong": sizes["strong"], "scorer": sizes.get(scorer, 0.0)}
    run = {role: getattr(row, role) for role in own}
    weights = sum(own[role] * (each.evaluated_tokens + each.generated_tokens) for role, each in run.items())
    if own["scorer"]:
        rates["scorer"] = {key: rate * own["weak"] / own["scorer"] for key, rate in rates["weak"].items()}
    written = row.weak.generated_tokens + row.strong.generated_tokens
    return row.strong.generated_tokens, written, weights, seconds_of(row, rates)


class Outcomes(NamedTuple):
    """Per arm and problem: right (A, P), the four costs (A, 4, P), tokens run through by weak model, strong model and
    scorer (A, 3, P); `sizes` (A,) of the scorers over the weak model's.
    """

    arms: Sequence[Arm]
    right: Any
    costs: Any
    run: Any
    sizes: Any

    @classmethod
    def of(cls, rows: Sequence[Row], arms: Sequence[Arm], facts: Mapping[str, Any]) -> Outcomes:
        """Of the problems that all arms have done."""
        by = {(row.problem, row.arm): row for row in rows}
        ids = [id for id in dict.fromkeys(row.problem for row in rows) if all((id, arm.name) in by for arm in arms)]
        table = [[by[id, arm.name] for id in ids] for arm in arms]
        right = np.array([[row.verdict == "CORRECT" for row in line] for line in table], float)
        costs = [[costs_of(row, arm.scorer, facts) for row in line] for arm, line in zip(arms, table, strict=True)]
        run = [
            [[u.evaluated_tokens + u.generated_tokens for u in (row.weak, row.strong, row.scorer)] for row in line]
            for line in table
        ]
        sizes = np.array([facts["sizes"].get(arm.scorer, 0.0) / facts["sizes"]["weak"] for arm in arms])
        by_kind, by_role = (np.array(each, float).reshape(len(arms), len(ids), -1).transpose(0, 2, 1)
                            for each in (costs, run))  # fmt: skip
        return cls(arms, right, by_kind, by_role, sizes)

    def at(self, family: str) -> list[int]:
        """The places of its settings."""
        return [i for i, arm in enumerate(self.arms) if arm.family == family]

    def line(self, family: str) -> list[int]:
        """Its settings between the two models alone."""
        return [*self.at(WEAK), *self.at(family), *self.at(STRONG)]


def on_line(at: Any, cost: Any, right: Any, best: bool = False) -> Any:
    """Accuracy at the costs `at` on the straight lines between points in order of their cost, beyond them the ends';
    with `best`, a point that costs more than a better one counts as that one.

    >>> on_line([5.0, 20.0], np.array([10.0, 0.0]), np.array([0.8, 0.4])).round(2).tolist()
    [0.6, 0.8]
    """
    order = np.argsort(cost, kind="stable")
    return np.interp(at, cost[order], np.maximum.accumulate(right[order]) if best else right[order])


def against_random(outcomes: Outcomes, family: str, kind: int) -> Callable[[Any], float]:
    """Mean over the family's settings of accuracy less the best that Random and both models have at the same cost."""
    own, base = outcomes.at(family), outcomes.line(RANDOM)

    def gap(index: Any) -> float:
        right, cost = outcomes.right[:, index].mean(axis=1), outcomes.costs[:, kind][:, index].mean(axis=1)
        return float((right[own] - on_line(cost[own], cost[base], right[base], best=True)).mean())

    return gap


def at_budget(outcomes: Outcomes, family: str, share: float) -> Callable[[Any], float]:
    """Accuracy at a share of the strong model's own tokens."""
    line, (strong,) = outcomes.line(family), outcomes.at(STRONG)

    def accuracy(index: Any) -> float:
        right, cost = outcomes.right[:, index].mean(axis=1), outcomes.costs[:, 0][:, index].mean(axis=1)
        return float(on_line(share * cost[strong], cost[line], right[line]))

    return accuracy


def size_ratio(outcomes: Outcomes, arm: int) -> Callable[[Any], float]:
    """The size of the strong model over the weak one's from which on this setting takes fewer parameter-tokens than
    both models alone, mixed by problem to its accuracy; infinite where there is none.
    """
    (weak,), (strong,) = outcomes.at(WEAK), outcomes.at(STRONG)

    def ratio(index: Any) -> float:
        right, run = outcomes.right[:, index].mean(axis=1), outcomes.run[:, :, index].mean(axis=2)
        gap = right[strong] - right[weak]
        share = min(1.0, (right[arm] - right[weak]) / gap) if gap > 0 else 1.0
        saved = share * run[strong, 1] - run[arm, 1]
        more = run[arm, 0] + outcomes.sizes[arm] * run[arm, 2] - (1 - share) * run[weak, 0]
        return float(max(0.0, more) / saved) if saved > 0 else float("inf")

    return ratio


def show(run: Run[Any], rows: Sequence[Row], arms: Sequence[Arm], facts: Mapping[str, Any]) -> None:
    outcomes = Outcomes.of(rows, arms, facts)
    n = outcomes.right.shape[1] if outcomes.right.size else 0
    if not n:
        run.say("No problem was done by all arms yet.")
        return
    means = outcomes.costs.mean(axis=2)  # (A, 4)
    settings = []
    for i, arm in enumerate(arms):
        accuracy = wilson(int(outcomes.right[i].sum()), n)
        ratio = None if arm.family in (WEAK, STRONG) else bootstrap(size_ratio(outcomes, i), n, samples=SAMPLES)
        run.metrics(arm=arm.name, accuracy=accuracy, costs=dict(zip(COSTS, means[i].tolist(), strict=True)),
                    ratio=ratio and _ratio(ratio))  # fmt: skip
        strong, written, weights, seconds = means[i]
        settings.append((
            arm.name, f"{accuracy.value:.1%} ({accuracy.low:.0%} to {accuracy.high:.0%})", f"{strong:.1f}",
            f"{written:.1f}", f"{weights:.3g}", f"{seconds:.3g}", "" if ratio is None else _ratio(ratio),
        ))  # fmt: skip
    columns = ("arm", "accuracy", "strong", "all", "parameter-tokens", "seconds", "cheaper from ratio")
    run.table(f"{n} problems, every setting; costs are means a problem", columns, settings)
    lines = []
    for family in dict.fromkeys(arm.family for arm in arms):
        if family in (WEAK, STRONG):
            continue
        spends = bool(means[outcomes.at(family), 0].any())
        budgets = [f"{at_budget(outcomes, family, share)(np.arange(n)):.1%}" if spends else "" for share in BUDGETS]
        gaps = [bootstrap(against_random(outcomes, family, kind), n, samples=SAMPLES) for kind in range(len(COSTS))]
        run.metrics(family=family, against_random=dict(zip(COSTS, gaps, strict=True)))
        shown = ["" if family == RANDOM or (kind == 0 and not spends) else points(gap) for kind, gap in enumerate(gaps)]
        lines.append((family, *budgets, *shown))
    heads = ("arm", *(f"at {share:.0%}" for share in BUDGETS), *COSTS)
    title = "accuracy at shares of the strong model's own tokens; against Random at equal cost, points"
    run.table(f"{n} problems: {title}", heads, lines)
    ratio = facts["sizes"]["strong"] / facts["sizes"]["weak"]
    run.say(f"The strong model counts as {ratio:.2f} times the weak one; two settings that differ by less than "
            f"{100 * sees(n):.0f} points are not told apart by {n} problems.")  # fmt: skip


def _ratio(ratio: Interval) -> str:
    low, value, high = ("never" if end == float("inf") or end != end else f"{end:.1f}" for end in
                        (ratio.low, ratio.value, ratio.high))  # fmt: skip
    return f"{value} ({low} to {high})"
