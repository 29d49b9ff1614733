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
6. A strong model may write several steps on end, or all that are left, and drafts may have a price (`runs`,
   `cost_per_draft_token`). Where drafts are free, as published, a longer run is never worth more than one step: what it
   would write can be asked for step by step, having seen more.

Bounds are rigorous up to rounding in double precision (about 1e-13 of the reward per step).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from stepwise.errors import DataError
from stepwise.routing.belief import StepFilter as StepFilter
from stepwise.routing.belief import check_probabilities, check_rows
from stepwise.routing.runs import Option, Run, run_lengths
from stepwise.routing.sandwich import Array, Known, Sandwich

Belief = Sequence[float]
Bounds = tuple[float, float]
_SUM = 1e-6  # how far probabilities may be from adding up to 1
_SHARE = (
    0.75  # of eps at each step: errors add up over steps, and so the default meets evals.pomdp's bar at every price
)


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
    """

    p_weak: float
    p_strong: tuple[float, ...]
    hazard: tuple[float, ...]
    observation: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
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
        defaults = _part(d, "defaults")
        table = next(iter(_part(d, "observation").values()))
        rows = np.asarray(table["prob"], dtype=float)
        if observation == "score":
            scores, which = np.unique([pair[1] for pair in table["pairs"]], return_inverse=True)
            rows = np.stack([np.bincount(which, row, len(scores)) for row in rows])
        elif observation != "pair":
            raise DataError(f'observation is {observation!r}; give "pair" or "score"')
        strong = defaults["p_llm"] if strong is None else strong
        several = [strong] if isinstance(strong, str | int | float) else strong
        return cls(
            p_weak=_chance(d, defaults["p_slm"] if weak is None else weak),
            p_strong=tuple(_chance(d, each) for each in several),
            hazard=tuple(map(float, _named(_part(d, "terminal"), hazard, "hazard")["hazard"])),
            observation=(tuple(rows[0].tolist()), tuple(rows[1].tolist()), tuple(rows[2].tolist())),
            tokens_per_step=float(defaults["avg_token_count"]),
            reward=float(defaults["task_reward"]),
            discount=float(defaults["discount"]),
        )

    def solve(
        self,
        cost_per_token: float | Sequence[float] = 0.25,
        eps: float = 3e-4,
        published_hazard: bool = False,
        *,
        runs: Sequence[int] = (1,),
        cost_per_draft_token: float = 0.0,
    ) -> Plan:
        """The optimal plan at a price per strong token (one for all strong models, or one for each), reward units.

        `eps` (reward units, 1e-8 to 1) bounds the error that each step adds; the plan's `gap` is what came of it over
        all steps, about 2 to 3 eps for 30 steps. `runs` are the numbers of steps that a strong model may be given on
        end, 1 always among them; len(hazard) or more is for good. No draft is written or scored during a run;
        `cost_per_draft_token` is the price of both. Raises `DataError` for a price below 0 and for an `eps` or a run
        outside its range.
        """
        prices = self._prices(cost_per_token)
        if not 1e-8 <= eps <= 1:
            raise DataError(f"eps is {eps!r}; give a number from 1e-8 to 1, in units of the reward")
        if not (math.isfinite(cost_per_draft_token) and cost_per_draft_token >= 0):
            raise DataError(f"cost_per_draft_token is {cost_per_draft_token!r}; give a finite number of at least 0")
        ends = self.hazard if published_hazard else (*self.hazard[1:], 1.0)
        fee, lengths = cost_per_draft_token * self.tokens_per_step, run_lengths(runs)
        curves: tuple[Sandwich, ...] = ()
        for n in reversed(range(len(self.hazard) - 1)):
            options = self._options(curves, ends[n + 2 :], prices, lengths)

            def function(x: Array, options: Sequence[Option] = options, end: float = ends[n + 1]) -> Known:
                return Known(*(self.discount * part for part in self._expect(x, options, end, fee)))

            curves = (Sandwich.around(function, _SHARE * eps), *curves)
        root = self._expect(np.ones(1), self._options(curves, ends[1:], prices, lengths), ends[0], fee)
        return Plan(self, prices, curves, (float(root.lower[0]), float(root.upper[0])), lengths, ends)

    def _options(
        self, later: Sequence[Sandwich], ends: Sequence[float], prices: Sequence[float], lengths: Sequence[int]
    ) -> tuple[Option, ...]:
        """What can be done at a draft that is not the last: `later` bounds the functions of its step and of those
        after it, none where there is no such draft; `ends` are the chances of the steps after it to be the last.
        """
        options = [Option(0, 1, None, 0.0, later[0] if later else None)]
        for writer, (q, price) in enumerate(zip(self.p_strong, prices, strict=True), start=1):
            fee = price * self.tokens_per_step
            for length in lengths:
                given = {"q": q, "fee": fee, "reward": self.reward, "discount": self.discount}
                then = Run.of(length, later, ends, **given) if length > 1 and later else options[0].then
                options.append(Option(writer, length, q, fee, then))
        return tuple(options)

    def _expect(self, x: Array, options: Sequence[Option], end: float, draft_fee: float) -> Known:
        """Value expected before the next step is drafted and scored, as bounds at each `x` (n).

        `end` is the chance that this step is the last. Sums over observations of values at unnormalised beliefs,
        (observations, n): values are homogeneous, so nothing is divided.
        """
        o = np.asarray(self.observation)[:, :, None]
        p = self.p_weak
        belief = np.stack([p * o[0] * x, o[1] * (1 - x), (1 - p) * o[2] * x])
        change = np.stack([p * o[0], -o[1], (1 - p) * o[2]])  # per unit of x
        mass, mass_change = belief.sum(0), change.sum(0)
        last, middle = _Best(mass.shape), _Best(mass.shape)
        for option in options:
            q, fee = option.q, option.fee
            y = belief[0] if q is None else q * (belief[0] + belief[2])
            y_change = change[0] if q is None else q * (change[0] + change[2])
            if end > 0 and option.length == 1:
                value = self.reward * y - fee * mass
                last.offer(value, value, self.reward * y_change - fee * mass_change)
            if end < 1 and option.then is not None:
                ratio = np.divide(y, mass, out=np.zeros_like(mass), where=mass > 0)
                below, below_slope, above, above_slope = option.then.lines(ratio)
                middle.offer(
                    (below - fee) * mass + below_slope * y,
                    (above - fee) * mass + above_slope * y,
                    (below - fee) * mass_change + below_slope * y_change,
                )
        known = (last if end == 1 else middle).summed()
        if 0 < end < 1:
            pairs = zip(last.summed(), known, strict=True)
            known = Known(*(end * at_last + (1 - end) * before for at_last, before in pairs))
        return Known(known.lower - draft_fee, known.upper - draft_fee, known.slope)

    def _prices(self, cost_per_token: float | Sequence[float]) -> tuple[float, ...]:
        several = [cost_per_token] * len(self.p_strong) if isinstance(cost_per_token, int | float) else cost_per_token
        if len(several) != len(self.p_strong):
            raise DataError(
                f"cost_per_token has {len(several)} entries for {len(self.p_strong)} strong models; give one for each"
            )
        if not all(math.isfinite(price) and price >= 0 for price in several):
            raise DataError(f"cost_per_token is {cost_per_token!r}; give finite numbers of at least 0")
        return tuple(map(float, several))


@dataclass(frozen=True, eq=False)
class Plan:
    """The solved POMDP: for each step n the value F_n(x) of going on, as bounds.

    F_n(x) is what is expected after step n is committed, x being the chance that all committed steps are right; it is
    convex and grows with x, and F_n(0) = 0 where drafts are free. Keeping a draft at belief b is worth F_n(b[0]);
    strong model j is worth F_n(q_j (b[0] + b[2])) - price_j tokens, and for several steps see `Run`. At the last step
    F(x) is reward x.

    Attributes:
        prices: per token of each strong model.
        curves: bounds of F_n for each step n.
        root_value: (lower, upper) after the first observation and before the first decision, from the true prior.
        runs: numbers of steps that a strong model may be given on end.
        ends: chance that step n is the last one if it is reached, for n = 0, 1, ...
    """

    model: RoutingPomdp
    prices: tuple[float, ...]
    curves: tuple[Sandwich, ...]
    root_value: Bounds
    runs: tuple[int, ...]
    ends: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Upper less lower bound of F_n, the largest over all steps and beliefs, in units of the reward."""
        return max(curve.gap for curve in self.curves)

    def continuation(self, step: int, x: float, *, last: bool = False) -> Bounds:
        """(lower, upper) of F_step(x): x is the chance that all steps up to and including this one are right."""
        if not 0 <= x <= 1:
            raise DataError(f"x is {x!r}; it is a probability")
        low, high = self._bounds(self._at(step)[0].then, np.asarray(x, dtype=float), last)
        return float(low), float(high)

    @cached_property
    def options(self) -> tuple[tuple[Option, ...], ...]:
        """What can be done at a draft of step n that is not the last, in the order of `action_values`."""
        return tuple(
            self.model._options(self.curves[n:], self.ends[n + 1 :], self.prices, self.runs)
            for n in range(len(self.curves))
        )

    def action_bounds(self, step: int, belief: Belief, tokens: float, *, last: bool = False) -> tuple[Bounds, ...]:
        """(lower, upper) of the value of keeping, then of each strong model, for each of `runs`.

        Args:
            step: 0-based index of the drafted step; steps after the last one of the hazard are taken as that one.
            belief: chances of right, wrong earlier, wrong just now.
            tokens: of this step, for the price of having it written anew.
            last: whether this is known to be the last step; all runs are then one step.
        """
        b = _belief(belief)
        if not (math.isfinite(tokens) and tokens >= 0):
            raise DataError(f"tokens is {tokens!r}; give a number of at least 0")
        values = list[Bounds]()
        for option in self._at(step):
            x = np.asarray(b[0] if option.q is None else option.q * (b[0] + b[2]))
            fee = 0.0 if option.q is None else self.prices[option.writer - 1] * tokens
            low, high = self._bounds(option.then, x, last)
            values.append((float(low) - fee, float(high) - fee))
        return tuple(values)

    def action_values(self, step: int, belief: Belief, tokens: float, *, last: bool = False) -> tuple[float, ...]:
        """Value of each action: the middles of `action_bounds`, so right within gap / 2."""
        return tuple((low + high) / 2 for low, high in self.action_bounds(step, belief, tokens, last=last))

    def critical_tokens(self, step: int, belief: Belief, *, last: bool = False) -> float:
        """Tokens of this step up to which some strong model is worth more than keeping it; 0 if none ever is."""
        keep, *others = self.action_values(step, belief, 0.0, last=last)
        gains = [value - keep for value in others]
        prices = [self.prices[option.writer - 1] for option in self._at(step)[1:]]
        return max(
            0.0 if gain <= 0 else math.inf if price == 0 else gain / price
            for gain, price in zip(gains, prices, strict=True)
        )

    def _at(self, step: int) -> tuple[Option, ...]:
        if step < 0:
            raise DataError(f"step is {step}; steps are counted from 0")
        return self.options[min(step, len(self.curves) - 1)]

    def _bounds(self, then: Sandwich | Run | None, x: Array, last: bool) -> tuple[Array, Array]:
        if last or then is None:
            return self.model.reward * x, self.model.reward * x
        return then.bounds(np.clip(x, 0.0, 1.0))


class _Best:
    """The largest of several lower and of several upper bounds, with the slope that belongs to the lower one."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.lower = np.full(shape, -np.inf)
        self.upper = np.full(shape, -np.inf)
        self.slope = np.zeros(shape)

    def offer(self, lower: Array, upper: Array, slope: Array) -> None:
        self.slope = np.where(lower > self.lower, slope, self.slope)
        self.lower = np.maximum(lower, self.lower)
        self.upper = np.maximum(upper, self.upper)

    def summed(self) -> Known:
        return Known(self.lower.sum(0), self.upper.sum(0), self.slope.sum(0))


def _belief(belief: Belief) -> tuple[float, float, float]:
    if len(belief) != 3 or not all(b >= 0 for b in belief) or not abs(sum(belief) - 1.0) <= _SUM:
        text = f"belief is {tuple(belief)!r}; give the chances of right, wrong earlier, wrong just now, adding up to 1"
        raise DataError(text)
    return belief[0], belief[1], belief[2]


def _part(d: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    for key, part in d.items():
        if key.startswith(prefix) and isinstance(part, Mapping) and part:
            return part
    raise DataError(f"the parameters have no {prefix!r}, only {', '.join(map(repr, d))}; give TRIM's published layout")


def _named(d: Mapping[str, Any], name: str, field: str) -> Mapping[str, Any]:
    if name not in d:
        raise DataError(f"{field} is {name!r}; the parameters have {', '.join(map(repr, d))}")
    part: Mapping[str, Any] = d[name]
    return part


def _chance(d: Mapping[str, Any], model: str | float) -> float:
    if isinstance(model, str):
        return float(_named(_part(d, "transition_params"), model, "model")["next_step_accuracy"])
    return float(model)
