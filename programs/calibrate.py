"""Set a routing policy for a budget: the operating point is picked on some problems and measured on others.

Prints every setting that was tried with its band, and what the one that was picked spends and solves on the other
problems. Writes calibrated.json, which `route --policy` takes. Every answer of a model is kept, so that settings share
what they have in common, and a killed run goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import PositiveInt

from stepwise import routing
from stepwise.config import Config
from stepwise.data.problems import named_problems
from stepwise.errors import ConfigError, DataError
from stepwise.models.store import CallCache
from stepwise.plugins import is_import_path
from stepwise.routing import Always, Never, Policy, policy_from_config
from stepwise.routing.calibration import calibrate, check_request
from stepwise.routing.calibration_result import Calibrated, Unit
from stepwise.routing.estimates import Estimate
from stepwise.routing.planning import check_routing, plan_routing
from stepwise.routing.saved import load_policy
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.shell import ColumnNames, Options, Run, one_of, program
from stepwise.types import Problem

_WHAT = one_of("What to set it for", required=True)


class _Options(Options):
    budget: Annotated[float | None, _WHAT] = None
    """strong tokens per problem"""
    lose_at_most: Annotated[float | None, _WHAT] = None
    """promise: expected accuracy at most so much below the strong model alone (0.05: 5 points)"""
    spend_at_most: Annotated[float | None, _WHAT] = None
    """promise: expected strong tokens per problem at most so many; needs budget.problem.strong_tokens"""
    confidence: float = 0.95
    """of the intervals and of a promise"""
    share: bool = False
    """the budget is a share of what the strong model alone takes"""
    hard: bool = False
    """cap the measurement too, so that its budget holds exactly"""
    policy: Path | None = None
    """as for route"""
    allow_import: tuple[str, ...] = ()
    """as for route"""
    bounds: tuple[float, float] | None = None
    """of the operating point; known for ours"""
    problems: str | None = None
    """to pick on, as for route; the lab's split val without it"""
    measure_on: str | None = None
    """other problems; the lab's split test without it"""
    columns: ColumnNames = None
    n: PositiveInt = 200
    """of each, at most"""
    rounds: PositiveInt = 8
    """settings to try"""


def _sets(args: _Options) -> tuple[list[Problem], list[Problem]]:
    """The problems to pick on, and those to measure on."""
    if (args.problems is None) != (args.measure_on is None):
        raise DataError("--problems and --measure-on go together: give both files, or none for the lab's")
    pairs = ((args.problems, "val"), (args.measure_on, "test"))
    first, others = (named_problems(file, split, args.n, columns=args.columns) for file, split in pairs)
    return first, others


def _policy_of(config: Config, args: _Options) -> Policy:
    """The policy of --policy, or else of the configuration."""
    if args.policy:
        return load_policy(args.policy, allow_import=args.allow_import).policy
    return policy_from_config(config.routing)


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    first, others = _sets(args)
    return plan_routing(config, [Never(), Always(), *[_policy_of(config, args)] * (args.rounds + 2)], [*first, *others])


@program(_Options, doc=__doc__, plan=_plan)
def main(run: Run[_Options]) -> None:
    args, (first, others), policy = run.args, _sets(run.args), _policy_of(run.config, run.args)
    if policy.point is None:
        raise ConfigError(f"policy {policy.name!r} has no operating point; give another routing.policy, or --policy")
    asked: dict[str, Any] = {
        "budget": args.budget,
        "lose_at_most": args.lose_at_most,
        "spend_at_most": args.spend_at_most,
    }
    unit: Unit = "share" if args.share else "strong_tokens"
    check_request(policy, first, others, asked, unit, run.config.budget, args.bounds)
    check_routing(run.config, [policy])
    with (
        CallCache(run.path("answers.jsonl")) as cache,
        routing.StepRouter.from_config(run.config, policy=policy, cache=cache) as router,
    ):
        result = calibrate(
            policy,
            first,
            router=router,
            measure_on=others,
            **asked,
            confidence=args.confidence,
            unit=unit,
            bounds=args.bounds,
            rounds=args.rounds,
            hard=args.hard,
            seed=run.config.seed,
        )
    path = run.path("calibrated.json")
    result.save(path)
    _show(run, result, len(first))
    run.say(cache.summary())
    run.say(f"Use it: stepwise route --policy {path}{_allowing(result.settings)}")


def _show(run: Run[_Options], result: Calibrated, picked_on: int) -> None:
    """Every setting with its band, and what the one that was picked does on the other problems."""
    rows = []
    for point in result.curve:
        mark = " *" if point.setting == result.policy.point else ""
        setting = "-" if point.setting is None else f"{point.setting:.4g}"
        rows.append((setting + mark, _band(point.cost, ".1f"), _band(point.accuracy, ".1%")))
    columns = ("Setting", "Strong tokens per problem", "Accuracy")
    run.table(f"{result.policy.name} on {picked_on} problems", columns, rows)
    if result.promise:
        run.say(f"Promise: {result.promise}.")
    if result.note:
        run.say(f"Note: {result.note}.")
    got = result.achieved
    for line in (
        f"On {got.problems} other problems, with {run.args.confidence:.0%} intervals:",
        f"  strong tokens per problem {_band(got.cost, '.1f')}, budget {result.limit:.1f}",
        f"  their share of the strong model alone {_band(got.share, '.1%')}",
        f"  accuracy {_band(got.accuracy, '.1%')}",
        f"  weak model alone {_band(got.weak_accuracy, '.1%')}, strong {_band(got.strong_accuracy, '.1%')}",
        f"  gap recovered {_band(got.pgr, '.0%')}",
    ):
        run.say(line)
    run.metrics(setting=result.policy.point, limit=result.limit, cost=got.cost.value, accuracy=got.accuracy.value)


def _band(figure: Estimate, form: str) -> str:
    """A figure with its interval, "-" where there is none."""
    if figure.value is None:
        return "-"
    ends = ["?" if end is None else format(end, form) for end in (figure.low, figure.high)]
    return f"{format(figure.value, form)} ({ends[0]} to {ends[1]})"


def _allowing(settings: Any) -> str:
    """The option that a command needs to load these settings of a policy, "" where all is the library's.

    Example:
        >>> _allowing({"policy": "mine:Drop", "drop": 0.3}), _allowing({"policy": "random", "p": 0.3})
        (' --allow-import mine', '')
    """
    parts = settings.values() if isinstance(settings, Mapping) else settings if isinstance(settings, list) else ()
    named = settings.get("policy", settings.get("name", "")) if isinstance(settings, Mapping) else ""
    own = f" --allow-import {named.partition(':')[0]}" if isinstance(named, str) and is_import_path(named) else ""
    return own + "".join(text for part in parts if (text := _allowing(part)) != own)


if __name__ == "__main__":
    sys.exit(main())
