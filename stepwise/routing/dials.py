"""Which settings of a policy to try: its operating point as a dial from 0 to 1, and the search for a budget on it."""

from __future__ import annotations

import math
from collections.abc import Callable

from stepwise.errors import ConfigError, reason_of
from stepwise.routing.compare import Measured
from stepwise.routing.policy import Policy
from stepwise.routing.pomdp.policies import Planned, Published
from stepwise.routing.signal_policies import Signalled, TwoStage, Watch, threshold_at

_BOUNDS = {  # of the operating point, where it is the policy's own
    "threshold": (0.0, 1.01),
    "random": (0.0, 1.0),
    "belief": (0.0, 1.0),
    "query_random": (0.0, 1.0),
    "query_classifier": (0.0, 1.0),
    "cascade": (0.0, 1.01),
    "relay": (-15.0, 15.0),
}
_CHEAP = 1e-5  # of the reward: a price per token at which almost everything is escalated that could gain
Dial = Callable[[float], Policy]
NEAR = 0.02  # a setting that leaves no more than this share of the budget unspent is not improved further


def check_bounds(policy: Policy, bounds: tuple[float, float] | None) -> None:
    """Raise `ConfigError` where the bounds of the operating point are not known, before anything is spent.

    >>> from stepwise.routing import Threshold
    >>> check_bounds(Threshold(0.5), None)  # its bounds are known: 0 to 1
    """
    known = policy.point is None or isinstance(policy, Signalled | TwoStage | Planned | Published)
    low, high = bounds or _BOUNDS.get(policy.name, (0.0, 1.0) if known else (math.nan, math.nan))
    if not low < high:
        raise ConfigError(
            f"calibrate: bounds are {bounds} for policy {policy.name!r}; give those of its operating point, "
            f"{policy.dial!r}: bounds=(low, high), on the command line --bounds LOW HIGH, or settings=[...] to try"
        )


def dial_of(policy: Policy, bounds: tuple[float, float] | None, run: Callable[[Policy], Measured]) -> Dial:
    """From [0, 1] to settings of the policy.

    >>> from stepwise.routing import Threshold
    >>> dial = dial_of(Threshold(0.5), (0.2, 0.6), run=lambda policy: None)
    >>> dial(0.5)
    Threshold(threshold=0.4)
    """
    if policy.point is None:
        return lambda _: policy
    if bounds is None and isinstance(policy, Signalled | TwoStage):
        watch = Watch(policy.signal if isinstance(policy, Signalled) else policy.after)
        run(watch)
        values = [value for own in watch.values.values() for value in own]
        return lambda u: policy.at(threshold_at(watch.signal.worse, values, u))
    if bounds is None and isinstance(policy, Planned | Published):
        bounds = (_CHEAP * policy.model.reward, policy.model.reward)
    low, high = bounds or _BOUNDS[policy.name]

    def at(u: float) -> Policy:
        x = low * (high / low) ** u if low > 0 and high / low > 100 else low + u * (high - low)
        try:
            return policy.at(x)
        except ValueError as error:
            reason = reason_of(error)
            raise ConfigError(f"calibrate: bounds are ({low}, {high}), but {policy.name}.at({x}): {reason}") from error

    return at


def search(dial: Dial, run: Callable[[Policy], Measured], limit: float, rounds: int) -> list[Measured]:
    """The settings that were tried: both ends, and halvings towards the limit.

    Example:
        tried = search(dial_of(Threshold(0.5), None, run), run, limit=40.0, rounds=6)
        best = max((m for m in tried if m.point.cost <= 40.0), key=lambda m: m.point.cost)
    """
    tried: dict[float | None, Measured] = {}  # equal values of a signal have one setting

    def cost(u: float) -> float:
        policy = dial(u)
        if policy.point not in tried:
            tried[policy.point] = run(policy)
        return tried[policy.point].point.cost

    ends = cost(0.0), cost(1.0)
    cheap, expensive = (0.0, 1.0) if ends[0] <= ends[1] else (1.0, 0.0)
    spent = min(ends)
    if not spent <= limit < max(ends):
        return list(tried.values())
    for _ in range(rounds):
        if limit - spent <= NEAR * limit:
            break
        middle = (cheap + expensive) / 2
        if cost(middle) <= limit:
            cheap, spent = middle, max(spent, cost(middle))
        else:
            expensive = middle
    return list(tried.values())
