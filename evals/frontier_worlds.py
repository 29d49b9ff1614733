"""The two worlds in which `evals.frontier` compares routing policies, and what a policy earns in them.

Both have TRIM's three states. In the world "drawn" the pair (least earlier score, current score) is drawn anew at every
step, given the state, as TRIM's POMDP has it. In the world "carried" the current score is drawn so, with the law that
the pairs imply for it, and the least earlier score is what the solution's own steps had. A strong model's step is
scored as a draft in the same state would be; no policy sees that score but through the least one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stepwise.routing.metrics import OperatingPoint
from stepwise.routing.pomdp import RoutingPomdp
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.pomdp.solve import Array

Actions = NDArray[np.bool_]
Decide = Callable[[int, Array, Actions], Actions]
Kind = Literal["drawn", "carried"]


@dataclass(frozen=True)
class World:
    """A kind of world with one strong model: `law` is of pairs, `model` has it as its observation.

    `ends` is the chance, for each step, that it is the last.
    """

    kind: Kind
    model: RoutingPomdp
    law: ObservationLaw
    published_hazard: bool

    @property
    def ends(self) -> tuple[float, ...]:
        """P(step n is the last | there is a step n)."""
        hazard = self.model.hazard
        return hazard if self.published_hazard else hazard[1:]

    @property
    def on_score(self) -> RoutingPomdp:
        """The model of who sees the current score alone."""
        return replace(self.model, observation=self.law.score_only().rows)

    @property
    def on_state(self) -> RoutingPomdp:
        """The model of who sees the state."""
        return replace(self.model, observation=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def pooled_pairs(model: RoutingPomdp) -> ObservationLaw:
    """The law of pairs that draft solutions alone would show: scores as in `model`, the least of them carried along.

    Pooled over steps, as TRIM's published tables are.
    """
    law = np.asarray(model.observation)
    bins, p = law.shape[1], model.p_weak
    joint = np.zeros((3, bins, bins))  # mass of (state of the draft, least earlier score, its score)
    committed = np.zeros((2, bins))  # of (right or not, least score), before a draft
    committed[0, -1] = 1.0
    for end in model.hazard[1:]:
        drafted = np.stack([p * committed[0], committed[1], (1 - p) * committed[0]])[:, :, None] * law[:, None, :]
        joint += drafted
        least = (1 - end) * _carry(drafted)
        committed = np.stack([least[0], least[1] + least[2]])
    rows = [tuple((part / part.sum()).ravel().tolist()) for part in joint]
    edges = tuple(i / bins for i in range(bins + 1))
    return ObservationLaw(edges, (rows[0], rows[1], rows[2]), pair=True)


def exact(world: World, actions: Actions, at_last: Actions | None = None) -> OperatingPoint:
    """What a memoryless policy earns: strong calls for each problem, and accuracy; by forward recursion, without noise.

    `actions` (steps, bins x bins): whether to call at a step, given the bins of the least earlier and the current
    score; `at_last` the same where the step is known to be the last, None for a policy that does not know.
    """
    law, bins = np.asarray(world.law.rows), world.law.bins
    pairs, scores = law.reshape(3, bins, bins), np.asarray(world.law.score_only().rows)
    p, q = world.model.p_weak, world.model.p_strong[0]
    committed = np.zeros((2, bins))
    committed[0, -1] = 1.0
    right = calls = 0.0
    for n, end in enumerate(world.ends):
        before = np.stack([p * committed[0], committed[1], (1 - p) * committed[0]])
        if world.kind == "drawn":
            drafted = before.sum(1)[:, None, None] * pairs
        else:
            drafted = before[:, :, None] * scores[:, None, :]
        for ending, table in ((True, actions if at_last is None else at_last), (False, actions)):
            share = (end if ending else 1 - end) * drafted
            called = share * table[n].reshape(bins, bins)
            least = called.sum(2)  # of the steps before the strong one
            written = np.stack([q * (least[0] + least[2]), least[1], (1 - q) * (least[0] + least[2])])
            after = _carry(share - called) + _carry(written[:, :, None] * scores[:, None, :])
            calls += float(called.sum())
            right += float(after[0].sum()) if ending else 0.0
        committed = np.stack([after[0], after[1] + after[2]])
    return OperatingPoint(calls, right)


def _carry(joint: Array) -> Array:
    """Mass of (state, least score so far), from that of (state, least earlier score, score): (3, bins)."""
    low, high = np.tril(joint), np.triu(joint, 1)  # score <= least earlier, score above it
    return np.asarray(low.sum(1) + high.sum(2))


@dataclass(frozen=True)
class Episodes:
    """What a policy did in simulated problems: strong calls and whether the solution was right, for each."""

    calls: Array
    right: Array

    @property
    def point(self) -> OperatingPoint:
        """Means over the problems."""
        return OperatingPoint(float(self.calls.mean()), float(self.right.mean()))

    def error(self, slope: float) -> float:
        """Standard error of accuracy less `slope` times calls: of a frontier of that slope at this point."""
        return float((self.right - slope * self.calls).std() / np.sqrt(len(self.right)))


def simulate(world: World, decide: Decide, episodes: int, seed: int, *, pair: bool) -> Episodes:
    """What a policy on the filtered belief earns in so many simulated problems.

    `decide(step, beliefs (3, n), ending (n)) -> (n)` says where to call the strong model; `ending` says which drafts
    are known to be the last of their solution. The filter is `StepFilter`'s, on the pair or on the current score, here
    for all problems at once.
    """
    rng = np.random.default_rng(seed)
    law, bins = np.asarray(world.law.rows), world.law.bins
    scores = np.asarray(world.law.score_only().rows)
    p, q = world.model.p_weak, world.model.p_strong[0]
    calls, right = np.zeros(episodes), np.zeros(episodes)
    who = np.arange(episodes)  # the problems that are not done
    wrong, x, least = np.zeros(episodes, dtype=bool), np.ones(episodes), np.full(episodes, bins - 1)
    for n, end in enumerate(world.ends):
        state = np.where(wrong, 1, np.where(rng.random(len(who)) < p, 0, 2))
        if world.kind == "drawn":
            column = _draw(rng, law, state)
            score = column % bins
        else:
            score = _draw(rng, scores, state)
            column = bins * least + score
        likelihood = law[:, column] if pair else scores[:, score]
        belief = np.stack([p * x, 1 - x, (1 - p) * x]) * likelihood
        belief /= belief.sum(0)
        ending = rng.random(len(who)) < end
        called = decide(n, belief, ending)
        wrong = np.where(called, (state == 1) | (rng.random(len(who)) >= q), state != 0)
        x = np.where(called, q * (belief[0] + belief[2]), belief[0])
        calls[who] += called
        right[who] = ~wrong  # the last one written is that of the last step
        written = np.where(wrong, np.where(state == 1, 1, 2), 0)
        least = np.minimum(least, np.where(called, _draw(rng, scores, written), score))
        going = ~ending
        who, wrong, x, least = who[going], wrong[going], x[going], least[going]
    return Episodes(calls, right)


def _draw(rng: np.random.Generator, law: Array, state: NDArray[np.int64]) -> NDArray[np.int64]:
    """An observation for each state, by its row of `law` (3, observations)."""
    drawn, made = rng.random(len(state)), np.zeros(len(state), dtype=np.int64)
    for s, row in enumerate(law):
        here = state == s
        made[here] = np.searchsorted(row.cumsum()[:-1] / row.sum(), drawn[here], side="right")
    return made
