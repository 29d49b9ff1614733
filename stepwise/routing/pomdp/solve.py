"""TRIM's routing POMDP (arXiv 2601.10245, the method's section on TRIM-POMDP), solved exactly.

State: right so far, wrong earlier, wrong just now (the latest draft step is the first wrong one). After each draft step
the policy keeps it or has a strong model write it anew; what it sees of the state are the scorer's scores.

What differs from the published code:
1. One backward induction solves all steps, beliefs and token counts, with proven bounds; published is one SARSOP solve
   for each (token bin, step, belief) of a grid. It is exact because after an action only x = P(all committed steps are
   right) matters: keeping gives x = b[0], strong model j gives x = q_j (b[0] + b[2]), and the next belief depends on x
   alone. Solving the POMDP is then finding one convex function F_n(x) per step n; see `Plan`.
2. The hazard is indexed by the number of steps: the n-th step (0-based) is the last one with hazard[n + 1]. Published
   is hazard[n], by which solutions are one step too long; `published_hazard=True` gives that.
3. The last step has its own decision, made knowing that it is the last (`last=True`); the published table has none.
4. A plan answers for any belief and token count: no snapping to a grid, no token bins, no closeness gate.
5. There may be several strong models, each with its price per token and chance of writing a right step.

Bounds are rigorous up to rounding in double precision (about 1e-13 of the reward per step).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError
from stepwise.routing.pomdp.filter import ObservationLaw, Row, check_probabilities, check_rows, published_part

Array = NDArray[np.float64]
Bounds = tuple[float, float]
_SUM = 1e-6  # how far probabilities may be from adding up to 1, and from [0, 1]: a filter rounds
_CLOSEST = 1e-9  # nodes nearer than this to each other would only resolve rounding
_SHARE = 0.75  # of eps at each step: errors add up over steps; so the default meets evals.pomdp's bar at every price


@dataclass(frozen=True)
class RoutingPomdp:
    """The model of TRIM-POMDP: a weak model drafts steps, a scorer sees them, strong models can replace them.

    Args:
        p_weak: chance that the weak model's next step is right after right ones.
        p_strong: the same for each strong model, one or several.
        hazard: P(a solution has k steps | it has at least k), for k = 0, 1, ...; the last entry must be 1.
        observation: P(observation | state), a row for each of right, wrong earlier, wrong just now.
        tokens_per_step: tokens of a step that is not yet drafted.
        reward: what a right solution is worth; values and costs are in this unit.
        discount: per step.

    Raises `DataError` where a probability is none, rows do not add up to 1, or the hazard does not end.

    Example:
        >>> sure = ((0.1, 0.9), (0.9, 0.1), (0.9, 0.1))  # P(low score), P(high score) in each state
        >>> plan = RoutingPomdp(0.8, (1.0,), (0.0, 0.0, 1.0), sure, tokens_per_step=20).solve(0.25)
        >>> keep, escalate = plan.action_values(0, (0.3, 0.0, 0.7), 20)
        >>> escalate > keep
        True
    """

    p_weak: float
    p_strong: tuple[float, ...]
    hazard: tuple[float, ...]
    observation: tuple[Row, Row, Row]
    tokens_per_step: float = 60.0
    reward: float = 100.0
    discount: float = 0.999999

    def __post_init__(self) -> None:
        check_probabilities("p_weak", [self.p_weak])
        check_probabilities("p_strong", self.p_strong)
        check_probabilities("hazard", self.hazard)
        if len(self.hazard) < 2 or self.hazard[-1] != 1.0:
            end = self.hazard[-1]
            raise DataError(f"hazard ends with {end!r}: no solution may go on for ever; its last entry must be 1.0")
        check_rows("observation", self.observation)
        for name in ("tokens_per_step", "reward", "discount"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise DataError(f"{name} is {value!r}; give a number above 0")
        if self.discount > 1:
            raise DataError(f"discount is {self.discount!r}; give a number in (0, 1]")

    @classmethod
    def from_dict(
        cls,
        d: Mapping[str, Any],
        hazard: str = "slm",
        weak: str | float | None = None,
        strong: str | float | Sequence[str | float] | None = None,
        *,
        observation: Literal["pair", "score"] = "pair",
    ) -> RoutingPomdp:
        """The model from TRIM's published parameters, as plain JSON (keys defaults, observation, terminal_*, ...).

        `weak` and `strong` are chances of a right step or names of models in transition_params_*; None is the published
        default, `strong` may be several. `hazard` is a name in terminal_*. `observation` "pair" is (least earlier
        score, current score), as published; "score" is the current score alone. Raises `DataError` for a missing key.
        """
        defaults = published_part(d, "defaults")
        strong = defaults["p_llm"] if strong is None else strong
        models = [strong] if isinstance(strong, str | int | float) else strong
        return cls(
            p_weak=_chance(d, defaults["p_slm"] if weak is None else weak),
            p_strong=tuple(_chance(d, model) for model in models),
            hazard=tuple(map(float, _named(published_part(d, "terminal"), hazard, "hazard")["hazard"])),
            observation=ObservationLaw.from_dict(d, observation).rows,
            tokens_per_step=float(defaults["avg_token_count"]),
            reward=float(defaults["task_reward"]),
            discount=float(defaults["discount"]),
        )

    def solve(
        self, cost_per_token: float | Sequence[float] = 0.25, eps: float = 3e-4, published_hazard: bool = False
    ) -> Plan:
        """The optimal plan at a price per strong token (one for all strong models, or one for each), reward units.

        `eps` (reward units, 1e-8 to 1) bounds the error that each step adds; the plan's `gap` is what came of it over
        all steps, about 2 to 3 eps for 30 steps. Raises `DataError` for a price below 0 and for an `eps` outside its
        range.
        """
        prices = self._prices(cost_per_token)
        if not 1e-8 <= eps <= 1:
            raise DataError(f"eps is {eps!r}; give a number from 1e-8 to 1, in units of the reward")
        ends = self.hazard if published_hazard else (*self.hazard[1:], 1.0)  # P(step n is the last | there is a step n)
        curves: tuple[_Sandwich, ...] = ()
        for end in reversed(ends[1 : len(self.hazard)]):
            later = curves[0] if curves else None

            # F_n from F_(n+1): the next step is drafted and scored, and then decided on.
            def following(x: Array, later: _Sandwich | None = later, end: float = end) -> tuple[Array, ...]:
                return tuple(self.discount * part for part in self._expected(x, later, end, prices))

            curves = (_Sandwich.around(following, _SHARE * eps), *curves)
        lower, upper, _ = self._expected(np.ones(1), curves[0], ends[0], prices)
        return Plan(self, prices, curves, (float(lower[0]), float(upper[0])))

    def _expected(
        self, x: Array, later: _Sandwich | None, end: float, prices: Sequence[float]
    ) -> tuple[Array, Array, Array]:
        """Value expected before the next step is drafted and scored, where all steps so far are right with chance `x`
        (n,): a lower bound, an upper bound, and the slope of the lower one, each (n,).

        `end` is the chance that this step is the last, `later` bounds what follows if it is not. Sums over observations
        of values at unnormalised beliefs, (observations, n): values are homogeneous, so nothing is divided.
        """
        o, p = np.asarray(self.observation)[:, :, None], self.p_weak  # o: (3, observations, 1)
        right, earlier, now = p * o[0] * x, o[1] * (1 - x), (1 - p) * o[2] * x
        right_slope, now_slope = p * o[0], (1 - p) * o[2]  # per unit of x
        mass, mass_slope = right + earlier + now, right_slope - o[1] + now_slope
        # Of each action: y, the mass of "all committed steps are right" after it (observations, n), its slope, its fee.
        actions = [(right, right_slope, 0.0)]
        for q, price in zip(self.p_strong, prices, strict=True):
            actions.append((q * (right + now), q * (right_slope + now_slope), price * self.tokens_per_step))
        parts = []
        for chance, curve in ((end, None), (1 - end, later)):  # None: the last step, after which F(x) = reward x
            if chance:
                values = []
                for y, y_slope, fee in actions:
                    lines: tuple[Any, ...] = (0.0, self.reward, 0.0, self.reward)
                    if curve is not None:
                        lines = curve.lines(np.divide(y, mass, out=np.zeros_like(mass), where=mass > 0))
                    low, low_slope, high, high_slope = lines
                    lower = (low - fee) * mass + low_slope * y
                    upper = (high - fee) * mass + high_slope * y
                    values.append((lower, upper, (low - fee) * mass_slope + low_slope * y_slope))
                parts.append((chance, _best(values)))
        lower, upper, slope = (np.sum([chance * best[i] for chance, best in parts], axis=0) for i in range(3))
        return lower, upper, slope

    def _prices(self, cost_per_token: float | Sequence[float]) -> tuple[float, ...]:
        prices = [cost_per_token] * len(self.p_strong) if isinstance(cost_per_token, int | float) else cost_per_token
        if len(prices) != len(self.p_strong):
            raise DataError(
                f"cost_per_token has {len(prices)} entries for {len(self.p_strong)} strong models; give one for each"
            )
        if not all(math.isfinite(price) and price >= 0 for price in prices):
            raise DataError(f"cost_per_token is {cost_per_token!r}; give finite numbers of at least 0")
        return tuple(map(float, prices))


def _best(actions: Sequence[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """The best action's bounds and slope at each observation, summed over observations: (n,) each."""
    lower, upper, slope = (np.stack(part) for part in zip(*actions, strict=True))  # (actions, observations, n)
    best = np.take_along_axis(slope, lower.argmax(0)[None], axis=0)[0]
    return lower.max(0).sum(0), upper.max(0).sum(0), best.sum(0)


@dataclass(frozen=True, eq=False)
class Plan:
    """The solved POMDP: for each step n the value F_n(x) of going on, as bounds.

    F_n(x) is what is expected after step n is committed, x being the chance that all committed steps are right; it is
    convex and grows with x, and F_n(0) = 0. Keeping a draft at belief b is worth F_n(b[0]); strong model j is worth
    F_n(q_j (b[0] + b[2])) - price_j tokens. At the last step F(x) is reward x.

    Attributes:
        prices: per token of each strong model.
        curves: bounds of F_n for each step n.
        root_value: (lower, upper) after the first observation and before the first decision, from the true prior.

    Example: see `RoutingPomdp`.
    """

    model: RoutingPomdp
    prices: tuple[float, ...]
    curves: tuple[_Sandwich, ...]
    root_value: Bounds

    @property
    def gap(self) -> float:
        """Upper less lower bound of F_n, the largest over all steps and beliefs, in units of the reward."""
        return max(curve.gap for curve in self.curves)

    def continuation(self, step: int, x: float, *, last: bool = False) -> Bounds:
        """(lower, upper) of F_step(x): x is the chance that all steps up to and including this one are right."""
        if not -_SUM <= x <= 1 + _SUM:
            raise DataError(f"x is {x!r}; it is a probability")
        if step < 0:
            raise DataError(f"step is {step}; steps are counted from 0")
        x = min(max(x, 0.0), 1.0)
        return (self.model.reward * x,) * 2 if last else self.curves[min(step, len(self.curves) - 1)].between(x)

    def action_bounds(
        self, step: int, belief: Sequence[float], tokens: float, *, last: bool = False
    ) -> tuple[Bounds, ...]:
        """(lower, upper) of the value of keeping, then of each strong model.

        Args:
            step: 0-based index of the drafted step; steps after the last one of the hazard are taken as that one.
            belief: chances of right, wrong earlier, wrong just now.
            tokens: of this step, for the price of having it written anew.
            last: whether this is known to be the last step.
        """
        if len(belief) != 3 or not all(b >= -_SUM for b in belief) or not abs(sum(belief) - 1.0) <= _SUM:
            raise DataError(
                f"belief is {tuple(belief)!r}; give the chances of right, wrong earlier, wrong just now, adding up to 1"
            )
        if not (math.isfinite(tokens) and tokens >= 0):
            raise DataError(f"tokens is {tokens!r}; give a number of at least 0")
        right, _, now = belief
        bounds = [self.continuation(step, right, last=last)]
        for q, price in zip(self.model.p_strong, self.prices, strict=True):
            low, high = self.continuation(step, q * (right + now), last=last)
            bounds.append((low - price * tokens, high - price * tokens))
        return tuple(bounds)

    def action_values(
        self, step: int, belief: Sequence[float], tokens: float, *, last: bool = False
    ) -> tuple[float, ...]:
        """Value of each action: the middles of `action_bounds`, so right within gap / 2."""
        return tuple((low + high) / 2 for low, high in self.action_bounds(step, belief, tokens, last=last))


@dataclass(frozen=True, eq=False)
class _Sandwich:
    """Bounds of a convex function on [0, 1], each as lines `offset + slope x`: chords of its nodes above, tangents at
    them below; all arrays are one-dimensional.

    `nodes` (n, ascending from 0 to 1) have a tangent each; between nodes i and i + 1 lies one chord, and the tangent of
    i holds up to `crossing[i]`. `gap` is the largest distance of the two bounds anywhere. Nodes are added where
    neighbouring tangents cross, as in the sandwich algorithm (Rote, Computing 48, 1992).
    """

    nodes: Array
    tangent_offset: Array
    tangent_slope: Array
    chord_offset: Array
    chord_slope: Array
    crossing: Array
    gap: float

    @classmethod
    def around(cls, function: Callable[[Array], tuple[Array, ...]], eps: float) -> _Sandwich:
        """Bounds of `function`, refined until chords and tangents of its lower bound are within `eps` of each other.

        `function` takes places (n) and gives a lower bound, an upper bound and a slope of the lower one there, (n)
        each; it must be convex in both its bounds, and is called a handful of times, each time with all places that are
        new.
        """
        nodes = np.linspace(0.0, 1.0, 17)
        lower, upper, slope = function(nodes)
        while True:
            # Where tangents of neighbouring nodes cross (n - 1), kept between the two, and the lower bound there.
            step, bend = np.diff(nodes), np.diff(slope)
            behind = lower[1:] - slope[1:] * step  # the right tangent at the left node
            along = np.divide(lower[:-1] - behind, bend, out=step / 2, where=bend > 1e-12).clip(0.0, step)
            crossing, low = nodes[:-1] + along, lower[:-1] + slope[:-1] * along
            share = (crossing - nodes[:-1]) / step
            chord = lower[:-1] + share * np.diff(lower)
            inside = np.minimum(crossing - nodes[:-1], nodes[1:] - crossing) > _CLOSEST
            new = crossing[inside & (chord - low > eps)]
            if not new.size:
                break
            places = np.concatenate([nodes, new])
            order = np.argsort(places, kind="stable")
            nodes = places[order]
            pairs = zip((lower, upper, slope), function(new), strict=True)
            lower, upper, slope = (np.concatenate(pair)[order] for pair in pairs)
        above = upper[:-1] + share * np.diff(upper)
        chord_slope = np.diff(upper) / np.diff(nodes)
        return cls(
            nodes=nodes,
            tangent_offset=lower - slope * nodes,
            tangent_slope=slope,
            chord_offset=upper[:-1] - chord_slope * nodes[:-1],
            chord_slope=chord_slope,
            crossing=crossing,
            gap=float(max((above - low).max(), (upper - lower).max())),
        )

    def lines(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Tangent offset and slope, then chord offset and slope, that hold at `x` (any shape, in [0, 1])."""
        i = np.minimum(np.searchsorted(self.nodes[1:], x, side="right"), len(self.crossing) - 1)
        j = i + (x > self.crossing[i])
        return self.tangent_offset[j], self.tangent_slope[j], self.chord_offset[i], self.chord_slope[i]

    def bounds(self, x: Array) -> tuple[Array, Array]:
        """The function's lower and upper bound at `x` (any shape, in [0, 1])."""
        below, below_slope, above, above_slope = self.lines(x)
        return below + below_slope * x, above + above_slope * x

    def between(self, x: float) -> Bounds:
        """`bounds` at one place, by bisection on lists, which for one place is faster than arrays."""
        inner, crossing, low, low_slope, high, high_slope = self._lists
        i = bisect_right(inner, x)
        j = i + (x > crossing[i])
        return low[j] + low_slope[j] * x, high[i] + high_slope[i] * x

    @cached_property
    def _lists(self) -> tuple[list[float], ...]:
        lines = (self.tangent_offset, self.tangent_slope, self.chord_offset, self.chord_slope)
        return tuple(part.tolist() for part in (self.nodes[1:-1], self.crossing, *lines))


def _named(d: Mapping[str, Any], name: str, field: str) -> Mapping[str, Any]:
    if name not in d:
        raise DataError(f"{field} is {name!r}; the parameters have {', '.join(map(repr, d))}")
    part: Mapping[str, Any] = d[name]
    return part


def _chance(d: Mapping[str, Any], model: str | float) -> float:
    if isinstance(model, str):
        return float(_named(published_part(d, "transition_params"), model, "model")["next_step_accuracy"])
    return float(model)
