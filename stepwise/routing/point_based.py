"""Finite-horizon POMDPs of any shape, with bounds on both sides: for models that `pomdp.RoutingPomdp` cannot reduce.

Below: alpha vectors, each the value of a plan that can be carried out (point-based value iteration; Pineau, Gordon and
Thrun, IJCAI 2003). Above: interpolation between values at the points of a regular grid (Lovejoy, Operations Research
39, 1991), with Freudenthal's triangulation of the simplex. Both use the same points.

What differs from those papers:
1. Decisions are counted, and each has its own vectors and values; the count is no part of state or observation.
2. Values are kept for beliefs between decisions: after an action, before the next observation. Routing has fewer
   states there than at a decision, and the number of points grows as a power of the number of states.
3. A decision may be announced as the last one. Its value is known exactly.
4. A backup looks for the best vector among those of the points around a belief only, and not among all.

Both bounds are rigorous up to rounding in double precision, however coarse the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError
from stepwise.routing.sandwich import Array

Bounds = tuple[float, float]
_SUM = 1e-6  # how far probabilities may be from adding up to 1
_LEAST = 1e-290  # masses below this cannot be divided by


@dataclass(frozen=True, eq=False)
class FinitePomdp:
    """A partially observed decision problem that ends: S states at a decision, R at rest between two, A actions.

    Args:
        sense: (Z, R, S), P(observation z, state s at the decision | state r at rest) at [z, r, s].
        acts: for each action (Z_a, S, R), P(what the action shows, state r at rest after it | state s).
        reward: (A, S), of an action at a decision that is not the last.
        final: (A, S), of an action at the last decision.
        ends: P(this decision is the last | it is made), known when it is made; the last entry must be 1.
        prior: (R), chances of the states before the first observation.
        discount: per decision.

    Raises `DataError` where shapes do not fit together, chances do not add up to 1, or the problem does not end.
    """

    sense: Array
    acts: tuple[Array, ...]
    reward: Array
    final: Array
    ends: tuple[float, ...]
    prior: Array
    discount: float = 1.0

    def __post_init__(self) -> None:
        if self.sense.ndim != 3 or self.sense.shape[1:2] != self.prior.shape:
            raise DataError(
                f"sense has shape {self.sense.shape}, prior {self.prior.shape}; give (observations, states at rest, "
                "states at a decision) and (states at rest)"
            )
        rest, states = self.sense.shape[1:]
        _chances("prior", self.prior[None])
        _chances("sense", self.sense.transpose(1, 0, 2).reshape(rest, -1))
        for action, act in enumerate(self.acts):
            if act.ndim != 3 or act.shape[1:] != (states, rest):
                raise DataError(f"acts[{action}] has shape {act.shape}; give (observations, {states}, {rest})")
            _chances(f"acts[{action}]", act.transpose(1, 0, 2).reshape(states, -1))
        for name in ("reward", "final"):
            table = getattr(self, name)
            if table.shape != (len(self.acts), states) or not np.isfinite(table).all():
                raise DataError(f"{name} has shape {table.shape}; give finite numbers, ({len(self.acts)}, {states})")
        if not self.ends or not all(0 <= end <= 1 for end in self.ends) or self.ends[-1] != 1.0:
            raise DataError(f"ends is {self.ends!r}; give chances, the last of them 1.0: no problem may go on for ever")
        if not 0 < self.discount <= 1:
            raise DataError(f"discount is {self.discount!r}; give a number in (0, 1]")

    def observed(self, rest: Sequence[float] | Array, observation: int) -> Array:
        """The belief (S) at a decision, from that at rest (R). Raises `DataError` for an impossible observation."""
        return _conditioned(rest, self.sense[observation], f"observation {observation} cannot be made")

    def acted(self, belief: Sequence[float] | Array, action: int, shown: int = 0) -> Array:
        """The belief (R) at rest after an action at a decision. Raises `DataError` for an impossible observation."""
        return _conditioned(belief, self.acts[action][shown], f"{shown} cannot be shown by action {action}")

    def solve(self, eps: float = 0.1, *, most: int = 4000) -> Solution:
        """Bounds of the value of every belief, on ever finer grids until those of the root value are within `eps`.

        It stops all the same where the next grid would have more than `most` points: `Solution.gap` says what was
        reached. Raises `DataError` for an `eps` that is not above 0, or `most` too small for any grid.
        """
        if not eps > 0:
            raise DataError(f"eps is {eps!r}; give a number above 0, in units of the reward")
        dimensions, resolution = len(self.prior) - 1, 4
        if comb(resolution + dimensions, dimensions) > most:
            raise DataError(f"most is {most}: too few points for {dimensions + 1} states; give more, or merge states")
        while True:
            solution = Solution(self, resolution)
            finer = 2 * resolution
            if solution.gap <= eps or comb(finer + dimensions, dimensions) > most or dimensions == 0:
                return solution
            resolution = finer


class Solution:
    """Bounds of the value function of a `FinitePomdp`: what acting at its best is worth, from any belief on.

    Attributes:
        model: what was solved.
        resolution: into how many parts the grid divides each edge of the simplex of beliefs.
        vectors: for each decision the lower bound, a vector for each point of the grid (N, R): value at rest before it.
        values: for each decision the upper bound at the points of the grid (N).
    """

    def __init__(self, model: FinitePomdp, resolution: int) -> None:
        if resolution < 1:
            raise DataError(f"resolution is {resolution}; give a whole number of at least 1")
        self.model, self.resolution = model, resolution
        self._grid = _Grid(len(model.prior), resolution)
        # Beliefs at a decision, and where each action leads, are the same for all decisions: (points x Z, S).
        beliefs = np.einsum("nr,zrs->nzs", self._grid.points, model.sense, optimize=True).reshape(
            -1, len(model.final.T)
        )
        cells = [[self._grid.cells(beliefs @ moved) for moved in act] for act in model.acts]
        following: tuple[Array, Array] | None = None
        found = []
        for n in reversed(range(len(model.ends))):
            following = self._backup(n, beliefs, cells, following)
            found.append(following)
        self.vectors = tuple(vectors for vectors, _ in reversed(found))
        self.values = tuple(values for _, values in reversed(found))

    @property
    def points(self) -> Array:
        """The points of the grid (N, R): chances of the states at rest."""
        return self._grid.points

    @property
    def root_value(self) -> Bounds:
        """(lower, upper) before the first observation, from the prior."""
        return self.value(0, self.model.prior)

    @property
    def gap(self) -> float:
        """Upper less lower bound of the root value."""
        low, high = self.root_value
        return high - low

    def value(self, step: int, rest: Sequence[float] | Array) -> Bounds:
        """(lower, upper) of a belief (R) at rest, before the observation of decision `step` (from 0)."""
        y = _belief(rest, len(self.model.prior))
        self._exists(step)
        return float((self.vectors[step] @ y).max()), float(self._grid.cells(y[None]).interpolate(self.values[step])[0])

    def action_bounds(self, step: int, belief: Sequence[float] | Array, *, last: bool = False) -> tuple[Bounds, ...]:
        """(lower, upper) of the value of each action at decision `step` (from 0), at a belief (S) there.

        `last` says that this decision is known to be the last one; the last of `ends` always is.
        """
        b = _belief(belief, self.model.final.shape[1])
        self._exists(step)
        if last or step == len(self.vectors) - 1:
            return tuple((float(value), float(value)) for value in self.model.final @ b)
        cells = [[self._grid.cells(b[None] @ moved) for moved in act] for act in self.model.acts]
        found = self._actions(b[None], cells, (self.vectors[step + 1], self.values[step + 1]))
        return tuple((float(low[0] @ b), float(high[0])) for low, high in found)

    def _backup(
        self, n: int, beliefs: Array, cells: list[list[_Cells]], following: tuple[Array, Array] | None
    ) -> tuple[Array, Array]:
        """Lower bound's vectors (N, R) and upper bound (N) at the points of the grid, before decision n."""
        model, end = self.model, self.model.ends[n]
        last = beliefs @ model.final.T  # beliefs are unnormalised: values are homogeneous, so nothing is divided
        vectors, high = end * model.final[last.argmax(1)], end * last.max(1)
        if end < 1 and following is not None:
            found = self._actions(beliefs, cells, following)
            best = np.stack([(low * beliefs).sum(1) for low, _ in found]).argmax(0)
            vectors = vectors + (1 - end) * np.stack([low for low, _ in found])[best, np.arange(len(beliefs))]
            high = high + (1 - end) * np.max([above for _, above in found], axis=0)
        seen = len(model.sense)
        before = np.einsum("zrs,nzs->nr", model.sense, vectors.reshape(-1, seen, vectors.shape[1]), optimize=True)
        return before, high.reshape(-1, seen).sum(1)

    def _actions(
        self, beliefs: Array, cells: list[list[_Cells]], following: tuple[Array, Array]
    ) -> list[tuple[Array, Array]]:
        """For each action at unnormalised beliefs (N, S): the lower bound's vectors (N, S), the upper bound (N)."""
        vectors, values = following
        result = []
        for reward, act, reached in zip(self.model.reward, self.model.acts, cells, strict=True):
            low, high = np.tile(reward, (len(beliefs), 1)), beliefs @ reward
            for moved, cell in zip(act, reached, strict=True):
                low += self.model.discount * cell.best(vectors) @ moved.T
                high = high + self.model.discount * cell.interpolate(values)
            result.append((low, high))
        return result

    def _exists(self, step: int) -> None:
        if not 0 <= step < len(self.vectors):
            raise DataError(f"step is {step}; decisions are counted from 0 to {len(self.vectors) - 1}")


class _Grid:
    """The points (N, R) of a regular grid on a simplex of R chances, and interpolation between them."""

    def __init__(self, size: int, resolution: int) -> None:
        self._resolution = resolution
        # A point is R - 1 whole numbers that fall from at most `resolution`: shares of all but the first few states.
        bars = np.array(list(combinations(range(resolution + size - 1), size - 1)), dtype=np.int64)
        falling = (bars - np.arange(size - 1))[:, ::-1]
        edges = np.hstack([np.full((len(falling), 1), resolution), falling, np.zeros((len(falling), 1), np.int64)])
        self.points = -np.diff(edges, axis=1) / resolution
        self._strides = (resolution + 2) ** np.arange(size - 1)
        self._where = np.zeros((resolution + 2) ** (size - 1), dtype=np.int32)
        self._where[falling @ self._strides] = np.arange(len(falling), dtype=np.int32)

    def cells(self, beliefs: Array) -> _Cells:
        """The cells of Freudenthal's triangulation in which unnormalised beliefs (M, R) lie."""
        mass = beliefs.sum(1)
        scale = np.divide(self._resolution, mass, out=np.zeros_like(mass), where=mass > _LEAST)
        tails = np.cumsum(beliefs[:, :0:-1], axis=1)[:, ::-1] * scale[:, None]
        tails = np.minimum(tails, self._resolution)
        floor = np.floor(tails)
        part = tails - floor
        order = np.argsort(-part, axis=1, kind="stable")  # stable: among equals the first, so that numbers still fall
        part = np.take_along_axis(part, order, 1)
        place = np.hstack([(floor.astype(np.int64) @ self._strides)[:, None], self._strides[order]]).cumsum(1)
        ones = np.ones((len(beliefs), 1))
        weights = np.hstack([ones, part]) - np.hstack([part, 0 * ones])
        return _Cells(beliefs, self._where[place], weights * mass[:, None])


@dataclass(frozen=True, eq=False)
class _Cells:
    """Unnormalised beliefs (M, R) and the R points of the grid around each, with their weights in it: (M, R) each."""

    beliefs: Array
    corners: NDArray[np.int32]
    weights: Array

    def interpolate(self, values: Array) -> Array:
        """Of `values` (N) at the points of the grid, what they are at the beliefs: (M)."""
        return np.asarray((values[self.corners] * self.weights).sum(1))

    def best(self, vectors: Array) -> Array:
        """Of `vectors` (N, R), one for each point, those of the corners that are best at the beliefs: (M, R)."""
        own = vectors[self.corners]
        which = np.einsum("mcr,mr->mc", own, self.beliefs).argmax(1)
        return np.asarray(own[np.arange(len(own)), which])


def _conditioned(belief: Sequence[float] | Array, table: Array, what: str) -> Array:
    joint = _belief(belief, len(table)) @ table
    if not joint.sum() > 0:
        raise DataError(f"{what} at belief {tuple(belief)!r}: it has no chance there")
    return np.asarray(joint / joint.sum())


def _belief(belief: Sequence[float] | Array, states: int) -> Array:
    b = np.asarray(belief, dtype=float)
    if b.shape != (states,):
        raise DataError(f"belief has shape {b.shape}; give a chance for each of {states} states")
    _chances("belief", b[None])
    return b


def _chances(name: str, rows: Array) -> None:
    if not (rows >= 0).all() or not (np.abs(rows.sum(1) - 1) <= _SUM).all():
        least, sums = rows.min(), rows.sum(1)
        text = f"{name} has {least:.9g} as its least entry and adds up to {sums.min():.9g} to {sums.max():.9g}"
        raise DataError(f"{text}; give probabilities that add up to 1 for each state")
