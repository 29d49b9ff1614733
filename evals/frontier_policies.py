"""The policies that `evals.frontier` compares, each as the frontier of accuracy against strong calls that it reaches.

Points are joined by straight lines: choosing between two settings at random for each problem attains these. Frontiers
are exact where a policy is memoryless (forward recursion) or optimal (the solver), and simulated where it filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Protocol

import numpy as np

from evals.frontier_worlds import Actions, Decide, Episodes, World, exact, simulate
from stepwise.routing.metrics import OperatingPoint
from stepwise.routing.pomdp import Plan, RoutingPomdp
from stepwise.routing.pomdp.solve import Array

SWEEP = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.1)  # prices per token
DENSE = (0.0, 0.005, 0.01, 0.02, 0.03, 0.04, *(round(0.05 + 0.025 * i, 3) for i in range(65)))  # up to 1.65
TAUS = (*np.linspace(0.02, 0.98, 33).tolist(), 1.0)
SNAP = 40  # of the published table: parts of a belief
TOKEN_BINS = (5, 10, 20, 30, 40, 50, 75, 100, 125, 150, 175, 200, 250, 300, 350, 400, 450, 500)
Plans = dict[float, Plan]


class Frontier(Protocol):
    """Accuracy against strong calls for each problem."""

    @property
    def points(self) -> tuple[OperatingPoint, ...]:
        """Its corners, by rising calls."""
        ...

    def at(self, calls: float) -> tuple[float, float]:
        """The best accuracy for so many expected calls or fewer, and its standard error (0 where it is exact)."""
        ...


@dataclass(frozen=True)
class Hull:
    """The least concave function above points, as far as it rises; `episodes` are those behind the points, if any."""

    points: tuple[OperatingPoint, ...]
    episodes: tuple[Episodes, ...] = ()

    @classmethod
    def of(cls, points: Sequence[OperatingPoint], episodes: Sequence[Episodes] = ()) -> Hull:
        """The hull of `points`; `episodes` go with them one by one."""
        kept: list[int] = []
        for i in sorted(range(len(points)), key=lambda i: (points[i].cost, -points[i].accuracy)):
            if kept and points[i].accuracy <= points[kept[-1]].accuracy:
                continue
            while len(kept) > 1 and _slope(points[kept[-2]], points[kept[-1]]) <= _slope(points[kept[-1]], points[i]):
                kept.pop()
            kept.append(i)
        return cls(tuple(points[i] for i in kept), tuple(episodes[i] for i in kept) if episodes else ())

    def at(self, calls: float) -> tuple[float, float]:
        """See `Frontier`. Settings share their random numbers, so the error is the larger one of the two ends."""
        after = next((i for i, point in enumerate(self.points) if point.cost >= calls), None)
        if after is None or after == 0:
            end = -1 if after is None else 0
            return self.points[end].accuracy, self.episodes[end].error(0.0) if self.episodes else 0.0
        a, b = self.points[after - 1 : after + 1]
        slope = _slope(a, b)
        error = max((one.error(slope) for one in self.episodes[after - 1 : after + 1]), default=0.0)
        return a.accuracy + slope * (calls - a.cost), error


@dataclass(frozen=True)
class Optimal:
    """The best that any policy on a model's observations can do: the least over prices of (value + fee calls) / reward.

    `lines` are (value, fee) by rising price; the least of them lies above the truth, by less the denser they are.
    """

    lines: tuple[tuple[float, float], ...]
    reward: float

    @property
    def points(self) -> tuple[OperatingPoint, ...]:
        """Where the lines of neighbouring prices cross."""
        crossed = []
        for (value, fee), (other, more) in pairwise(self.lines):
            calls = max((value - other) / (more - fee), 0.0)
            crossed.append(OperatingPoint(calls, (value + fee * calls) / self.reward))
        return tuple(sorted(crossed, key=lambda point: point.cost))

    def at(self, calls: float) -> tuple[float, float]:
        """See `Frontier`."""
        return min(value + fee * calls for value, fee in self.lines) / self.reward, 0.0


def solve(world: World, model: RoutingPomdp, prices: Sequence[float]) -> Plans:
    """The plan at each price per strong token, with the world's hazard."""
    return {price: _plan(model, price, world.published_hazard) for price in prices}


@cache
def _plan(model: RoutingPomdp, price: float, published_hazard: bool) -> Plan:
    return model.solve(price, 1e-3, published_hazard)


def optimal(world: World, model: RoutingPomdp, every: int = 1) -> Optimal:
    """The optimal frontier on a model's observations, by every `every`-th price: with few, a bound above it."""
    plans = solve(world, model, DENSE[::every])
    lines = [(sum(plan.root_value) / 2, price * model.tokens_per_step) for price, plan in plans.items()]
    return Optimal(tuple(lines), model.reward)


def threshold(world: World) -> Hull:
    """Call where the current score is below a bin's edge."""
    bins, steps = world.law.bins, len(world.ends)
    column = np.tile(np.arange(bins), bins)
    return Hull.of([exact(world, np.tile(column < edge, (steps, 1))) for edge in range(bins + 1)])


def published(world: World, plans: Plans, gate: float | None) -> Hull:
    """TRIM's published rule: belief under a uniform prior, closeness gate, the table's action at the nearest entry.

    The table is exact here, and has no entry for the last step. `gate` None leaves out both gate and table: the plan's
    action at the belief itself.
    """
    law, steps = np.asarray(world.law.rows), len(world.ends)
    belief = law / law.sum(0)
    at, allowed = (belief, True) if gate is None else (_snapped(belief), belief.max(0) - belief[2] < gate)
    usual = world.model.tokens_per_step
    tokens = usual if gate is None else min(TOKEN_BINS, key=lambda bin_: abs(bin_ - usual))
    points = [exact(world, np.zeros((steps, law.shape[1]), dtype=bool))]
    for plan in plans.values():
        actions = np.stack([allowed & planned(plan, n, at, tokens) for n in range(len(plan.curves))])
        points.append(exact(world, np.pad(actions, ((0, max(0, steps - len(actions))), (0, 0)))))
    return Hull.of(points)


def _snapped(beliefs: Array) -> Array:
    """Beliefs (3, n) on the published grid: multiples of 1 / SNAP by largest remainder."""
    parts = np.floor(SNAP * beliefs)
    order = np.argsort(parts - SNAP * beliefs, axis=0, kind="stable")
    missing = np.rint(SNAP - parts.sum(0))
    for rank in range(2):
        parts[order[rank], np.arange(parts.shape[1])] += rank < missing
    return np.asarray(parts / SNAP)


def memoryless(world: World, plans: Plans) -> Hull:
    """The plan's action at the belief under the true prior of each step, which the model and the rule imply."""
    points = [exact(world, np.zeros((len(world.ends), len(world.law.rows[0])), dtype=bool))]
    for plan in plans.values():
        actions, at_last, _ = with_priors(world, plan)
        points.append(exact(world, actions, at_last))
    return Hull.of(points)


def with_priors(world: World, plan: Plan) -> tuple[Actions, Actions, Array]:
    """A plan's actions without memory (steps, observations), those at the last step, and the prior x of each step.

    `StepFilter.with_priors` for all observations at once, and with the actions that it has no need for.
    """
    law, p, q = np.asarray(world.law.rows), world.model.p_weak, world.model.p_strong[0]
    tokens = world.model.tokens_per_step
    x, actions, at_last, priors = 1.0, [], [], []
    for n in range(len(world.ends)):
        joint = np.array([[p * x], [1 - x], [(1 - p) * x]]) * law
        mass = joint.sum(0)
        belief = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
        priors.append(x)
        actions.append(planned(plan, n, belief, tokens))
        at_last.append(planned(plan, n, belief, tokens, last=True))
        x = float(np.where(actions[-1], q * (joint[0] + joint[2]), joint[0]).sum())
    return np.stack(actions), np.stack(at_last), np.asarray(priors)


def filter_tau(world: World, episodes: int, seed: int, *, pair: bool) -> Hull:
    """Filter, and call where the belief in "wrong just now" passes tau."""
    return _simulated([simulate(world, _above(tau), episodes, seed, pair=pair) for tau in TAUS])


def filter_planned(world: World, plans: Plans, episodes: int, seed: int, *, pair: bool) -> Hull:
    """Filter, and act as the plan says, knowing which step is the last."""
    never = simulate(world, _above(1.0), episodes, seed, pair=pair)
    return _simulated([never, *(follow(world, plan, episodes, seed, pair=pair) for plan in plans.values())])


def follow(world: World, plan: Plan, episodes: int, seed: int, *, pair: bool) -> Episodes:
    """What following `plan` on the filtered belief earns."""
    tokens = world.model.tokens_per_step

    def decide(n: int, belief: Array, ending: Actions) -> Actions:
        last = planned(plan, n, belief, tokens, last=True)
        return np.where(ending, last, planned(plan, n, belief, tokens))

    return simulate(world, decide, episodes, seed, pair=pair)


def planned(plan: Plan, step: int, belief: Array, tokens: float, *, last: bool = False) -> Actions:
    """Whether the strong model is worth more than keeping at beliefs (3, n), for a step of so many tokens."""
    model, fee = plan.model, plan.prices[0] * tokens
    kept, written = belief[0], model.p_strong[0] * (belief[0] + belief[2])
    if last:
        return np.asarray(model.reward * (written - kept) > fee)
    curve = plan.curves[min(step, len(plan.curves) - 1)]
    keep, call = (np.mean(curve.bounds(np.clip(x, 0.0, 1.0)), axis=0) for x in (kept, written))
    return np.asarray(call - fee > keep)


def _above(tau: float) -> Decide:
    return lambda _, belief, ending: belief[2] > tau


def _simulated(done: Sequence[Episodes]) -> Hull:
    return Hull.of([one.point for one in done], done)


def _slope(a: OperatingPoint, b: OperatingPoint) -> float:
    return (b.accuracy - a.accuracy) / (b.cost - a.cost)
