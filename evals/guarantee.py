"""How often a promise about accuracy is broken, and what it saves, in draws from a large pool of lab problems.

The pool is routed once under the strong model alone and under thresholds. Each draw takes two sets from it: one to put
the thresholds into order by cost, one to certify the cheapest of which "expected accuracy is at most LIMIT below the
strong model alone" holds (`routing.guarantee`). A promise is broken where the mean over the whole pool says so: a test
set's own noise would look like a breach. Beside it, on the same draws: the point estimate (the cheapest setting that
loses at most LIMIT on the second set), and two settings with planted losses, just below and just above the limit.
Writes guarantee.json. Lab figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from stepwise.lab.problems import generate
from stepwise.models.store import CallCache
from stepwise.routing import Always, StepRouter, Threshold
from stepwise.routing.compare import compare
from stepwise.routing.guarantee import certify, evidence
from stepwise.routing.metrics import cost_of
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program

Floats = NDArray[np.float64]


class _Options(Options):
    pool: PositiveInt = 3000
    """problems of the lab's test split"""
    order: PositiveInt = 200
    """of each draw, to put the settings into order"""
    problems: tuple[PositiveInt, ...] = (300, 600, 1200)
    """of each draw, to certify on"""
    draws: PositiveInt = 1000
    """of each size"""
    limit: float = Field(default=0.05, gt=0, lt=1)
    """accuracy that may be lost"""
    confidence: float = Field(default=0.9, gt=0, lt=1)
    """of the promise"""
    thresholds: tuple[float, ...] = (0.98, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
    """settings"""
    planted: float = 0.01
    """distance of the planted losses from the limit"""


class _Arm(NamedTuple):
    """A setting on the pool: what it loses against the strong model, and its strong tokens, (pool,) each."""

    label: str
    lost: Floats
    cost: Floats


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> int:
    args = run.args
    arms = _routed(run)
    rng = np.random.default_rng(run.config.seed)
    planted = {shift: _planted(args.limit + shift, args.pool, rng) for shift in (-args.planted, args.planted)}
    rows = []
    for n in args.problems:
        if args.order + n > args.pool:
            run.say(f"--problems {n} is left out: with --order {args.order} it is more than the pool of {args.pool}")
            continue
        counts = _drawn(arms, planted, n, args, rng)
        rows.append({"problems": n, **counts})
        run.metrics(**rows[-1])
    run.path("guarantee.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    pool = [(arm.label, f"{100 * arm.lost.mean():.2f}", f"{arm.cost.mean():.2f}") for arm in arms]
    run.table(f"The pool: {args.pool} problems", ("Setting", "Points lost", "Strong tokens per problem"), pool)
    columns = ("Problems", "Broken", "By point estimate", "Saved", "Only always", "Just below", "Just above")
    run.table(
        f"At most {100 * args.limit:g} points lost, confidence {args.confidence:.0%}, {args.draws} draws",
        columns,
        [(str(row["problems"]), *(f"{row[key]:.1%}" for key in list(row)[1:])) for row in rows],
    )
    run.say(
        "Broken: the pool's mean loss of the certified setting is above the limit. Saved: of the strong tokens of the "
        "strong model alone. Just below and above: how often a loss planted there is certified."
    )
    worst = max((row["broken"] for row in rows), default=0.0)
    return run.missed(["promises that hold"] if worst > 1 - args.confidence else [])


def _routed(run: Run[_Options]) -> list[_Arm]:
    """The pool under every setting, the strong model alone first."""
    problems = [made.problem for made in generate("test", run.args.pool)]
    policies = [Always(), *map(Threshold, run.args.thresholds)]
    with (
        CallCache(run.path("answers.jsonl")) as cache,
        StepRouter.from_config(run.config, policy=policies[1], cache=cache) as router,
    ):
        found = compare(router, policies, problems)
    right = [np.array(measured.correct, float) for measured in found]
    costs = [np.array([cost_of([view.trace]).strong_tokens for view in each.views], float) for each in found]
    return [_Arm(m.label, right[0] - r, c) for m, r, c in zip(found, right, costs, strict=True)]


def _planted(mean: float, pool: int, rng: np.random.Generator) -> Floats:
    """Losses (pool,) whose mean is `mean` as nearly as a pool allows, where at least a tenth moves."""
    worse = round(pool * (max(0.1, mean) + mean) / 2)
    better = worse - round(pool * mean)
    return rng.permutation(np.repeat([1.0, -1.0, 0.0], [worse, better, pool - worse - better]))


def _drawn(
    arms: list[_Arm], planted: dict[float, Floats], n: int, args: _Options, rng: np.random.Generator
) -> dict[str, float]:
    """Shares over the draws."""
    sums = dict.fromkeys(("broken", "broken_by_estimate", "saved", "always", "below", "above"), 0.0)
    always, *others = arms
    with progress(f"drawing {n}", args.draws) as advance:
        for _ in range(args.draws):
            drawn = rng.permutation(args.pool)
            first, second = drawn[: args.order], drawn[args.order : args.order + n]
            order = [always, *sorted(others, key=lambda arm: -arm.cost[first].mean())]
            result = certify(
                [_given(arm) for arm in order],
                _losses_on(second),
                kind="accuracy",
                limit=args.limit,
                confidence=args.confidence,
                span=(-1.0, 1.0),
            )
            chosen: _Arm = result.setting
            within = [arm for arm in order if arm.lost[second].mean() <= args.limit]
            guess = min(within, key=lambda arm: arm.cost[first].mean())
            sums["broken"] += chosen.lost.mean() > args.limit
            sums["broken_by_estimate"] += guess.lost.mean() > args.limit
            sums["saved"] += 1 - chosen.cost.mean() / always.cost.mean()
            sums["always"] += chosen is always
            for name, losses in zip(("below", "above"), planted.values(), strict=True):
                sums[name] += evidence(losses[second].tolist(), args.limit, -1, 1) >= 1 / (1 - args.confidence)
            advance(1)
    return {name: value / args.draws for name, value in sums.items()}


def _losses_on(problems: NDArray[np.int64]) -> Callable[[_Arm], list[float]]:
    return lambda arm: arm.lost[problems].tolist()


def _given(arm: Any) -> Callable[[], Any]:
    return lambda: arm


if __name__ == "__main__":
    main()
