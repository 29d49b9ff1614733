"""The routing POMDP where problems differ in difficulty, or a strong step's success depends on the draft it replaces.

What is known of a problem's class matters beside the chance that all committed steps are right, so the reduction to one
dimension of `pomdp` does not hold. `point_based` solves it, and both bounds are reported.

What differs from TRIM's POMDP (arXiv 2601.10245):
1. A hidden class of the problem, which never changes, sets the chances of a right step. Errors then correlate within
   a problem, and a draft that looks wrong is evidence that later ones will be wrong too.
2. The strong model may do worse (or better) where the draft was wrong than where it was right.
3. The strong model's own step may be scored too (`strong_scored`), and the policy sees that score before the next one.
4. The hazard is indexed by the number of steps unless `published_hazard=True`; see `pomdp`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepwise.errors import DataError
from stepwise.routing.point_based import Bounds, FinitePomdp, Solution
from stepwise.routing.pomdp import RoutingPomdp
from stepwise.routing.sandwich import Array


@dataclass(frozen=True)
class DifficultyPomdp:
    """A mixture of K routing models, one for each class of problems.

    There are 2 K + 1 states at a decision: right so far, for each class; wrong earlier (the class then matters no
    more); wrong just now, for each class. With one class this is the order of `RoutingPomdp`.

    Args:
        base: everything but the chances of a right step; its own are not used.
        shares: chance of each of K classes of problems.
        p_weak: for each class, the chance that the weak model's next step is right after right ones.
        p_strong: for each strong model, the same for each class, where the draft that it replaces was right.
        p_strong_after_wrong: the same where the draft was wrong; None: as `p_strong`.
        strong_scored: whether the score of a strong model's own step is seen, beside that of the draft after it.

    Raises `DataError` where a chance is none or a number of entries does not fit.
    """

    base: RoutingPomdp
    shares: tuple[float, ...]
    p_weak: tuple[float, ...]
    p_strong: tuple[tuple[float, ...], ...]
    p_strong_after_wrong: tuple[tuple[float, ...], ...] | None = None
    strong_scored: bool = False

    def __post_init__(self) -> None:
        classes = len(self.shares)
        after_wrong = self.p_strong if self.p_strong_after_wrong is None else self.p_strong_after_wrong
        if not self.p_strong or len(after_wrong) != len(self.p_strong):
            raise DataError(
                f"p_strong has {len(self.p_strong)} and p_strong_after_wrong {len(after_wrong)} strong models; "
                "give as many in both, at least one"
            )
        rows = [("shares", self.shares), ("p_weak", self.p_weak)]
        rows += [("p_strong", row) for row in self.p_strong]
        rows += [("p_strong_after_wrong", row) for row in after_wrong]
        for name, row in rows:
            if len(row) != classes or not all(0 <= value <= 1 for value in row):
                raise DataError(f"{name} has {row!r}; give a probability for each of the {classes} classes of shares")
        if not abs(sum(self.shares) - 1) <= 1e-6:
            raise DataError(f"shares adds up to {sum(self.shares):.9g}; give probabilities that add up to 1")

    def pomdp(self, cost_per_token: float | Sequence[float] = 0.25, *, published_hazard: bool = False) -> FinitePomdp:
        """The model at a price per strong token; action 0 keeps the draft, action j has strong model j - 1 write.

        At rest there are K + 1 states: all committed steps right, for each class, then some wrong. What an action
        shows is the strong step's score with `strong_scored`, else nothing.
        """
        prices = self._prices(cost_per_token)
        base, classes = self.base, len(self.shares)
        law, weak = np.asarray(base.observation), np.asarray(self.p_weak)
        right, earlier, wrong = np.arange(classes), classes, classes + 1 + np.arange(classes)
        sense = np.zeros((law.shape[1], classes + 1, 2 * classes + 1))
        sense[:, right, right] = law[0][:, None] * weak
        sense[:, right, wrong] = law[2][:, None] * (1 - weak)
        sense[:, classes, earlier] = law[1]
        kept = np.zeros((1, 2 * classes + 1, classes + 1))
        kept[:, right, right] = kept[:, earlier, classes] = kept[:, wrong, classes] = 1.0
        acts, reward = [kept], [np.zeros(2 * classes + 1)]
        final = [base.reward * kept[0, :, :classes].sum(1)]
        others = self.p_strong if self.p_strong_after_wrong is None else self.p_strong_after_wrong
        scores = law if self.strong_scored else np.ones((3, 1))
        for after_right, after_wrong, price in zip(self.p_strong, others, prices, strict=True):
            act = np.zeros((scores.shape[1], 2 * classes + 1, classes + 1))
            for states, chance in ((right, np.asarray(after_right)), (wrong, np.asarray(after_wrong))):
                act[:, states, right] = scores[0][:, None] * chance
                act[:, states, classes] = scores[2][:, None] * (1 - chance)
            act[:, earlier, classes] = scores[1]
            fee = price * base.tokens_per_step
            acts.append(act)
            reward.append(np.full(2 * classes + 1, -fee))
            final.append(base.reward * act[:, :, :classes].sum((0, 2)) - fee)
        return FinitePomdp(
            sense=sense,
            acts=tuple(acts),
            reward=np.stack(reward),
            final=np.stack(final),
            ends=base.hazard if published_hazard else (*base.hazard[1:], 1.0),
            prior=np.asarray([*self.shares, 0.0]),
            discount=base.discount,
        )

    def solve(
        self,
        cost_per_token: float | Sequence[float] = 0.25,
        eps: float = 0.1,
        *,
        published_hazard: bool = False,
        most: int = 4000,
    ) -> DifficultyPlan:
        """The plan at a price per strong token, in units of the reward; see `FinitePomdp.solve` for the rest."""
        model = self.pomdp(cost_per_token, published_hazard=published_hazard)
        return DifficultyPlan(self, self._prices(cost_per_token), model.solve(eps, most=most))

    def _prices(self, cost_per_token: float | Sequence[float]) -> tuple[float, ...]:
        count = len(self.p_strong)
        several = [cost_per_token] * count if isinstance(cost_per_token, int | float) else list(cost_per_token)
        if len(several) != count or not all(math.isfinite(price) and price >= 0 for price in several):
            text = (
                f"cost_per_token is {cost_per_token!r}; give a number of at least 0 for each of {count} strong models"
            )
            raise DataError(text)
        return tuple(map(float, several))


@dataclass(frozen=True, eq=False)
class DifficultyPlan:
    """A solved `DifficultyPomdp`; beliefs are over its 2 K + 1 states.

    Attributes:
        prices: per token of each strong model.
        solution: bounds of the value function, for steps of `base.tokens_per_step` tokens.
    """

    model: DifficultyPomdp
    prices: tuple[float, ...]
    solution: Solution

    @property
    def gap(self) -> float:
        """Upper less lower bound of the root value."""
        return self.solution.gap

    @property
    def root_value(self) -> Bounds:
        """(lower, upper) after the first observation and before the first decision, from the true prior."""
        return self.solution.root_value

    def action_bounds(
        self, step: int, belief: Sequence[float] | Array, tokens: float, *, last: bool = False
    ) -> tuple[Bounds, ...]:
        """(lower, upper) of the value of keeping, then of each strong model, for a drafted step of so many `tokens`.

        `step` is 0-based; steps after the last one of the hazard are taken as that one.
        """
        if not (math.isfinite(tokens) and tokens >= 0):
            raise DataError(f"tokens is {tokens!r}; give a number of at least 0")
        bounds = self.solution.action_bounds(min(step, len(self.model.base.hazard) - 2), belief, last=last)
        more = tokens - self.model.base.tokens_per_step
        fees = (0.0, *(price * more for price in self.prices))
        return tuple((low - fee, high - fee) for (low, high), fee in zip(bounds, fees, strict=True))
