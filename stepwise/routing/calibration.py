"""The operating point of any policy for a budget: set on some problems, measured on others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from stepwise.config import BudgetConfig
from stepwise.data.problems import load_problems
from stepwise.errors import ConfigError, DataError
from stepwise.models.store import CallCache
from stepwise.plugins import check_choice
from stepwise.routing.calibration_result import Achieved, Calibrated, CurvePoint, Unit
from stepwise.routing.compare import Measured, compare
from stepwise.routing.deciding import check_policy
from stepwise.routing.dials import NEAR, check_bounds, dial_of, search
from stepwise.routing.estimates import Estimate, Outcomes, Statistic, estimate
from stepwise.routing.guarantee import Tested, certify
from stepwise.routing.learned import Learned
from stepwise.routing.metrics import cost_of, pgr
from stepwise.routing.policies import Always, Never
from stepwise.routing.policy import NAMES, Policy
from stepwise.routing.query import QueryClassifier, question_key, refuse_overlap
from stepwise.routing.saved import policy_to_dict
from stepwise.types import Problem

if TYPE_CHECKING:
    from stepwise.routing.router import StepRouter

_UNUSED = 0.1  # a share of the budget that is worth a note where it is left


def calibrate(
    policy: Policy,
    problems: Any,
    *,
    router: StepRouter,
    measure_on: Any,
    budget: float | None = None,
    lose_at_most: float | None = None,
    spend_at_most: float | None = None,
    unit: Unit = "strong_tokens",
    bounds: tuple[float, float] | None = None,
    settings: Sequence[float] | None = None,
    rounds: int = 8,
    hard: bool = False,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> Calibrated:
    """The operating point of `policy` that spends the budget on `problems`, and what it does on `measure_on`.

    Of the settings tried it is the one that spends most within the budget, since a point picked for its accuracy would
    be picked for its luck. Where the strong model is no better than the weak one on `problems`, it is the cheapest;
    where none is within the budget, too, and `reached` is False. Answers are kept in the router's cache, or in memory.

    Args:
        policy: any with `at(x)`; one without an operating point is measured as it is.
        problems: to choose on, with gold answers; whatever `load_problems` takes.
        router: its models, seed and caps (`router.budget` holds for every setting as it does for a run).
        measure_on: other problems, with gold answers; a promise is tested on them.
        budget: mean tokens that the strong model writes per problem, or their share; see `unit`. Or instead of it:
        lose_at_most: a promise: the cheapest setting of which "expected accuracy is at most so much (0.05 is 5 points)
            below the strong model alone" holds with `confidence`, whatever the models; see `guarantee`. It is the
            strong model alone where nothing cheaper is certified, and `note` says how many problems that would take.
        spend_at_most: a promise: the dearest setting of which "expected spend is at most so many strong tokens per
            problem" holds; needs a cap for each problem (`router.budget.problem.strong_tokens`).
        unit: "strong_tokens", or "share", in [0, 1], of what the strong model writes when it solves `problems` alone.
        bounds: of the operating point; for policies of this package they are known. The cost must rise or fall from
            one end to the other.
        settings: try these operating points instead, all of them; a policy that has only some (`Learned.prices`) is
            tried at those.
        rounds: halvings of that range at most; for a promise, the parts that it is cut into.
        hard: cap the run on `measure_on` too, so that it spends no token more than its budget.
        samples: of the bootstrap over problems; see `estimates.estimate`.
        confidence: of the intervals, and of a promise.
        seed: of the bootstrap.
        progress: show a bar for each run.

    Raises `DataError` for a budget out of range, problems that are in both sets (under whatever id) or that the policy
    was fitted on, and problems without answers; `ConfigError` for a policy whose bounds are not known.

    Example:
        print(sw.calibrate(sw.Threshold(), val, budget=20, router=router, measure_on=test).achieved)
    """
    problems, measure_on = load_problems(problems), load_problems(measure_on)
    policy = check_policy(policy)
    asked = {"budget": budget, "lose_at_most": lose_at_most, "spend_at_most": spend_at_most}
    target, unit = check_request(policy, problems, measure_on, asked, unit, router.budget, bounds, settings)
    if settings is None and isinstance(policy, Learned):
        settings = policy.prices
    router = router if router.cache is not None else router.with_cache(CallCache())

    def run(policy: Policy, arm: StepRouter = router, on: Sequence[Problem] = problems) -> Measured:
        return compare(arm, [policy], on, progress=progress)[0]

    def of(statistic: Statistic, *arms: Measured) -> Estimate:
        known = [outcomes for arm in arms if (outcomes := Outcomes.of(arm)) is not None]
        return estimate(statistic, known, samples=samples, confidence=confidence, seed=seed)

    weak, strong = run(Never()), run(Always())
    limit = target * strong.point.cost if unit == "share" else target
    gap = strong.point.accuracy > weak.point.accuracy
    if settings and policy.point is not None:
        tried = [run(policy.at(x)) for x in dict.fromkeys(settings)]
    elif budget is None:
        dial = dial_of(policy, bounds, run)
        tried = [run(each) for each in dict.fromkeys(dial(part / rounds) for part in range(rounds + 1))]
    else:
        tried = search(dial_of(policy, bounds, run), run, limit, rounds if gap else 0)
    tried.sort(key=lambda m: (m.point.cost, m.point.accuracy))
    others = run(Never(), on=measure_on), run(Always(), on=measure_on)
    arm, sure = router, None
    if budget is None:
        again = [lambda m=m: run(policy if m.setting is None else policy.at(m.setting), on=measure_on) for m in tried]
        sure = _promised(again, others, limit, confidence, router if lose_at_most is None else None)
        best, limit = _policy_like(policy, sure.setting), sure.setting.point.cost if spend_at_most is None else limit
        reached, note = sure.promise is not None, sure.note
    else:
        within = [m for m in tried if m.point.cost <= limit]
        chosen = within[-1] if within and gap else tried[0]
        best, reached = _policy_like(policy, chosen), bool(within)
        note = _note(gap, within, tried, chosen, limit)
        arm = router.with_policy(best)
    if hard:
        caps, most = router.budget, int(limit * len(measure_on))
        own = most if caps.strong_tokens is None else min(caps.strong_tokens, most)
        arm.budget = caps.model_copy(update={"strong_tokens": own})
    arms = *others, sure.setting if sure else run(best, arm, measure_on)
    cost = of(lambda p: p[2].cost, *arms)
    return Calibrated(
        settings=policy_to_dict(best),
        card=router.card,
        budget=target,
        unit=unit,
        limit=limit,
        reached=reached,
        note="; ".join(filter(None, (note, "" if sure else _held(cost, limit)))),
        curve=tuple(CurvePoint(m.setting, of(lambda p: p[0].cost, m), of(lambda p: p[0].accuracy, m)) for m in tried),
        calibrated_on=tuple(sorted(map(question_key, problems))),
        achieved=Achieved(
            problems=len(measure_on),
            cost=cost,
            share=of(lambda p: p[2].cost / p[1].cost if p[1].cost else None, *arms),
            accuracy=of(lambda p: p[2].accuracy, *arms),
            pgr=of(lambda p: pgr(p[2], p[0], p[1]), *arms),
            weak_accuracy=of(lambda p: p[0].accuracy, *arms),
            strong_accuracy=of(lambda p: p[1].accuracy, *arms),
            strong_cost=of(lambda p: p[1].cost, *arms),
        ),
        promise=sure.promise if sure else None,
    )


def check_request(
    policy: Policy,
    problems: Sequence[Problem],
    measure_on: Sequence[Problem],
    given: Mapping[str, float | None],
    unit: Unit,
    caps: BudgetConfig,
    bounds: tuple[float, float] | None = None,
    settings: Sequence[float] | None = None,
) -> tuple[float, Unit]:
    """What was asked of `calibrate`, with its unit, before a model is loaded; `given` are budget, lose_at_most and
    spend_at_most. Raises what `calibrate` raises.

    Example:
        check_request(policy, problems, others, {"budget": 20.0}, "strong_tokens", config.budget)
    """
    named = {name: float(value) for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise ConfigError(f"calibrate: {' and '.join(named) or 'nothing'} is given; give one of {', '.join(given)}")
    ((name, value),) = named.items()
    cap = caps.problem.strong_tokens
    if name == "spend_at_most" and (cap is None or value >= cap):
        raise ConfigError(
            f"calibrate: spend_at_most is {value:g} and budget.problem.strong_tokens {cap}; a promise about spending "
            "needs a cap for each problem above it, since nothing else bounds what a problem may cost"
        )
    unit = unit if name == "budget" else "accuracy_lost" if name == "lose_at_most" else "strong_tokens"
    check_choice("unit", unit, get_args(Unit))
    _check(policy, problems, value, measure_on, unit)
    if not settings and not isinstance(policy, Learned):  # that one carries its settings
        check_bounds(policy, bounds)
    return value, unit


def _promised(
    tried: Sequence[Callable[[], Measured]],
    ends: tuple[Measured, Measured],
    limit: float,
    confidence: float,
    capped: StepRouter | None,
) -> Tested:
    """The last setting that can be certified: from the strong model alone downwards for accuracy, from the weak model
    alone upwards for spending (under the cap that `capped` has for each problem). `tried` stands by rising cost.
    """
    weak, strong = ends
    if capped is None:

        def lost(arm: Measured) -> list[float]:
            return [float(a) - float(b) for a, b in zip(strong.correct, arm.correct, strict=True)]

        order = [lambda: strong, *reversed(tried)]
        return certify(order, lost, kind="accuracy", limit=limit, confidence=confidence, span=(-1.0, 1.0))
    cap = capped.budget.problem.strong_tokens
    assert cap is not None
    return certify(
        [lambda: weak, *tried],
        lambda arm: [float(cost_of([view.trace]).strong_tokens) for view in arm.views],
        kind="spend",
        limit=limit,
        confidence=confidence,
        span=(0.0, float(cap)),
    )


def _policy_like(policy: Policy, chosen: Measured) -> Policy:
    """The policy of a measurement: one of the models alone, or `policy` at its setting."""
    if chosen.family in NAMES and chosen.family != policy.family:
        return Always() if chosen.family == "always" else Never()
    return policy if chosen.setting is None else policy.at(chosen.setting)


def _check(
    policy: Policy, problems: Sequence[Problem], budget: float, measure_on: Sequence[Problem], unit: Unit
) -> None:
    if unit == "accuracy_lost" and not 0 < budget < 1:
        raise DataError(f"calibrate: lose_at_most is {budget}; give a fraction between 0 and 1, 0.05 for 5 points")
    if not 0 <= budget <= (sys.float_info.max if unit == "strong_tokens" else 1.0):
        raise DataError(
            f"calibrate: budget is {budget} with unit {unit!r}; give strong tokens per problem, at least 0, or a share "
            "in [0, 1]"
        )
    if not problems or not measure_on:
        raise DataError(
            f"calibrate: {len(problems)} problems to choose on and {len(measure_on)} to measure on; give both"
        )
    for problem in (*problems, *measure_on):
        if problem.answer is None:
            raise DataError(f"calibrate: problem {problem.id!r} has no gold answer, so there is no accuracy; add it")
    refuse_overlap(map(question_key, problems), measure_on, "the operating point")
    if isinstance(policy, QueryClassifier):
        refuse_overlap(policy.fitted_on, [*problems, *measure_on])


def _note(gap: bool, within: Sequence[Measured], tried: Sequence[Measured], chosen: Measured, limit: float) -> str:
    """What is special about the choice, in words; "" for nothing."""
    if not within:
        return (
            f"no setting is within the budget of {limit:.1f} strong tokens per problem; the cheapest, which this is, "
            f"takes {tried[0].point.cost:.1f}"
        )
    if not gap:
        return "the strong model is no better than the weak one here, so this is the cheapest setting"
    above = [m for m in tried if m.point.cost > limit]
    if chosen.point.cost >= limit * (1 - (_UNUSED if above else NEAR)):
        return ""
    if not above:
        return f"the budget of {limit:.1f} cannot be used up; the dearest setting takes {chosen.point.cost:.1f}"
    return (
        f"of the budget of {limit:.1f} strong tokens per problem only {chosen.point.cost:.1f} are used: the next "
        f"setting that was tried, {above[0].setting:g} after {chosen.setting:g}, takes {above[0].point.cost:.1f}; try "
        "more rounds, or a policy whose cost rises in smaller steps"
    )


def _held(cost: Estimate, limit: float) -> str:
    """Whether the budget is passed on the other problems, in words; "" where it is not."""
    if cost.value is None or cost.value <= limit:
        return ""
    ends = "" if cost.low is None or cost.high is None else f" ({cost.low:.1f} to {cost.high:.1f})"
    return f"on the other problems it takes {cost.value:.1f}{ends}, more than the budget of {limit:.1f}"
