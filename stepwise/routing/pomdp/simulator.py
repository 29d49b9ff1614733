"""Episodes of step-level routing drawn from a fitted routing model, many at a time: no model is asked.

What differs from TRIM's training environment (arXiv 2601.10245), which runs the two models and the reward model on
every problem of every batch:
1. States, scores, lengths and tokens are drawn from a fit of the routing POMDP (`RouterFit`), so an episode costs
   microseconds. Scores are independent given the state, as the fit takes them to be; `tuning` goes on with real ones.
2. The solution's length is drawn step by step from the fit's hazard, whoever writes.
3. The strong model's own step is scored too, by the law of a right or of a first wrong step: the loop scores it
   together with the draft after it.
4. The strong model may write several steps on end, or all that are left; no draft is written or scored during that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.pomdp.fit import RouterFit
from stepwise.routing.pomdp.solve import RoutingPomdp

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Act = Callable[["Drafts"], Any]


@dataclass(frozen=True, eq=False)
class Drafts:
    """What is seen of B solutions at a drafted step: the committed steps and the draft.

    Attributes:
        scores: (B, step + 1), the draft's last; NaN where a step has no score.
        tokens: (B, step + 1), of the steps that stand, and of the draft.
        step: 0-based index of the draft.
        last: (B,), whether the solution ends with this step.
        state: (B,), 0 right so far, 1 wrong earlier, 2 wrong just now; for checks, no policy sees it.
    """

    scores: Array
    tokens: Array
    step: int
    last: NDArray[np.bool_]
    state: Ints


@dataclass(frozen=True, eq=False)
class Decisions:
    """D decisions of E episodes, ordered by step.

    Attributes:
        episode: (D,), index of the episode; `step`: (D,), of the draft; `action`: (D,), index in the simulator's runs.
        strong_tokens: (D,), written by the strong model because of this decision.
        draft_tokens: (D,), of the next draft, 0 where there is none.
        scores, tokens: (D, N), see `Drafts`, padded with NaN and 0 after the draft.
    """

    episode: Ints
    step: Ints
    action: Ints
    strong_tokens: Array
    draft_tokens: Array
    scores: Array
    tokens: Array

    def __len__(self) -> int:
        return len(self.episode)


@dataclass(frozen=True, eq=False)
class Episodes:
    """How E episodes went; all arrays (E,).

    Attributes:
        right: whether all committed steps are right; `steps`: how many there are.
        strong_tokens: written by the strong model; `strong_steps`: how many of its steps stand.
        draft_tokens: written by the weak model, thrown away or not, and scored.
        decisions: all of them.
    """

    right: NDArray[np.bool_]
    steps: Ints
    strong_tokens: Array
    strong_steps: Ints
    draft_tokens: Array
    decisions: Decisions

    def objective(self, price: float, draft_share: float = 0.0) -> Array:
        """For each, 1 if it is right, less `price` per strong token and `draft_share` of that per drafted token."""
        return self.right - price * (self.strong_tokens + draft_share * self.draft_tokens)


@dataclass(frozen=True)
class RouterSimulator:
    """Draws episodes of the routing POMDP.

    Args:
        model: chances of a right step, with one strong model, and the hazard.
        law: of the current score; a score is spread evenly over its bin.
        tokens: token counts of steps to draw from. Without any, they are drawn around `model.tokens_per_step`.
        token_spread: standard deviation over mean of those (gamma); 0: all steps are equally long.
        strong_scored: whether the strong model's own steps are scored.

    Raises `DataError` for a model with several strong models, a law of pairs, and values out of range.
    """

    model: RoutingPomdp
    law: ObservationLaw
    tokens: tuple[int, ...] = field(default=(), repr=False)
    token_spread: float = 0.5
    strong_scored: bool = True

    def __post_init__(self) -> None:
        if len(self.model.p_strong) != 1:
            raise DataError(
                f"model.p_strong has {len(self.model.p_strong)} entries, but a router has one strong model; "
                "give dataclasses.replace(model, p_strong=(that one,))"
            )
        if self.law.pair:
            raise DataError("law is of pairs; give that of the score alone (law.score_only())")
        if not (math.isfinite(self.token_spread) and self.token_spread >= 0):
            raise DataError(f"token_spread is {self.token_spread!r}; give a finite number of at least 0")
        if any(not count > 0 for count in self.tokens):
            raise DataError(f"tokens has {min(self.tokens)}; give token counts of steps, each above 0")

    @classmethod
    def from_fit(cls, fit: RouterFit, *, tokens: Sequence[int] = (), **settings: Any) -> Self:
        """The simulator of a fit."""
        return cls(fit.pomdp(1.0), fit.law, tokens=tuple(tokens), **settings)

    @property
    def max_steps(self) -> int:
        """No solution is longer."""
        return len(self.model.hazard) - 1

    def play(self, act: Act, n: int, *, runs: Sequence[int] = (0, 1), seed: Any = 0) -> Episodes:
        """`n` episodes under `act`.

        `act(drafts)` gives, for each draft, the index of an action in `runs`: the number of steps that the strong model
        writes, 0 to keep the draft. `seed` is anything that numpy's `default_rng` takes; with
        one seed, all policies meet the same problems, drafts and scores as long as they do the same.
        """
        if n < 1:
            raise DataError(f"n is {n}; play at least one episode")
        if not runs or any(run < 0 for run in runs):
            raise DataError(f"runs is {tuple(runs)!r}; give numbers of steps, 0 to keep the draft")
        return _Play(self, n, np.asarray(runs, dtype=np.int64), np.random.default_rng(seed)).all(act)


class _Play:
    """Episodes under way, all at the same step; those in which the strong model is writing on are not asked."""

    def __init__(self, world: RouterSimulator, n: int, runs: Ints, rng: np.random.Generator) -> None:
        self.world, self.runs = world, runs
        num_steps = world.max_steps
        self.cumulative = np.cumsum(np.asarray(world.law.rows), axis=1)
        self.cumulative /= self.cumulative[:, -1:]
        self.edges = np.asarray(world.law.edges)
        # All random numbers are drawn beforehand, (steps, n) each, so that they do not depend on what is done.
        drawn = rng.random((7, num_steps, n))
        self.weak, self.strong, self.end, self.bin, self.place, self.own_bin, self.own_place = drawn
        self.draft_length, self.strong_length = self._lengths((2, num_steps, n), rng)
        self.scores, self.tokens = np.full((n, num_steps), np.nan), np.zeros((n, num_steps))
        self.clean, self.alive = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
        self.left = np.zeros(n, dtype=np.int64)  # steps that the strong model still writes
        self.steps, self.strong_steps = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        # What was written because of the decision at each step, (steps, n), and the step of the latest decision.
        self.paid, self.drafted = np.zeros((num_steps, n)), np.zeros((num_steps, n))
        self.cause = np.full(n, -1)
        self.draft_tokens = np.zeros(n)
        self.decided = list[tuple[Ints, Ints, Ints, Array, Array]]()  # at each step: fields of `Decisions`

    def all(self, act: Act) -> Episodes:
        ends = (*self.world.model.hazard[1:], 1.0)
        for step in range(self.world.max_steps):
            if not self.alive.any():
                break
            self._step(step, self.end[step] < ends[step], act)
        episode, step_of, action, scores, tokens = (np.concatenate(parts) for parts in zip(*self.decided, strict=True))
        paid, drafted = self.paid[step_of, episode], self.drafted[step_of, episode]
        decisions = Decisions(episode, step_of, action, paid, drafted, scores, tokens)
        return Episodes(self.clean, self.steps, self.paid.sum(0), self.strong_steps, self.draft_tokens, decisions)

    def _step(self, step: int, last: NDArray[np.bool_], act: Act) -> None:
        drafting = np.flatnonzero(self.alive & (self.left == 0))
        state = np.where(~self.clean, 1, np.where(self.weak[step] < self.world.model.p_weak, 0, 2))
        self.tokens[:, step] = self.draft_length[step]
        self.scores[:, step] = self._score(state, self.bin[step], self.place[step])  # those of a run are set below
        if len(drafting):
            scores, tokens = self.scores[drafting], self.tokens[drafting]  # copies, and nothing is after this step yet
            self.draft_tokens[drafting] += tokens[:, step]
            if step:
                self.drafted[self.cause[drafting], drafting] = tokens[:, step]
            seen = Drafts(scores[:, : step + 1], tokens[:, : step + 1], step, last[drafting], state[drafting])
            action = np.asarray(act(seen), dtype=np.int64)
            self.left[drafting], self.cause[drafting] = self.runs[action], step
            self.decided.append((drafting, np.full(len(drafting), step), action, scores, tokens))
        self._strong(step, state, np.flatnonzero(self.alive & (self.left > 0)), drafting)
        self.clean &= ~self.alive | (state == 0)
        self.steps += self.alive
        self.alive &= ~last

    def _strong(self, step: int, state: Ints, writing: Ints, drafting: Ints) -> None:
        """The strong model's steps: of the draft's tokens where there is one, else of their own."""
        on_end = np.setdiff1d(writing, drafting)
        self.tokens[on_end, step] = self.strong_length[step, on_end]
        right = self.strong[step, writing] < self.world.model.p_strong[0]
        state[writing] = np.where(~self.clean[writing], 1, np.where(right, 0, 2))
        own = self._score(state[writing], self.own_bin[step, writing], self.own_place[step, writing])
        self.scores[writing, step] = own if self.world.strong_scored else np.nan
        self.paid[self.cause[writing], writing] += self.tokens[writing, step]
        self.strong_steps[writing] += 1
        self.left[writing] -= 1

    def _score(self, state: Ints, which: Array, place: Array) -> Array:
        bins = (which[:, None] >= self.cumulative[state]).sum(1)
        low = self.edges[bins]
        return np.asarray(low + place * (self.edges[bins + 1] - low))

    def _lengths(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        mean, spread = self.world.model.tokens_per_step, self.world.token_spread
        if self.world.tokens:
            return rng.choice(np.asarray(self.world.tokens, dtype=float), size=shape)
        if not spread:
            return np.full(shape, mean)
        return np.maximum(rng.gamma(spread**-2, mean * spread**2, size=shape), 1.0)
