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

    >>> Drafts(np.array([[0.9, 0.2]]), np.array([[12.0, 8.0]]), 1, np.array([False]), np.array([2])).scores[:, -1]
    array([0.2])
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

    Example:
        episodes = world.play(lambda drafts: drafts.scores[:, -1] < 0.5, 100, runs=(0, 1), seed=1)
        print(len(episodes.decisions), episodes.decisions.strong_tokens.sum())
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
class _Episodes:
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

    >>> rows = ((0.2, 0.8), (0.7, 0.3), (0.9, 0.1))
    >>> model = RoutingPomdp(0.8, (1.0,), (0.0, 0.0, 1.0), rows, tokens_per_step=20)
    >>> world = RouterSimulator(model, ObservationLaw((0.0, 0.5, 1.0), rows))
    >>> float(world.play(lambda drafts: drafts.state == 2, 100, seed=1).right.mean())  # every wrong step escalated
    1.0
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

    def play(self, act: Act, n: int, *, runs: Sequence[int] = (0, 1), seed: Any = 0) -> _Episodes:
        """`n` episodes under `act`, all at the same step; those in which the strong model is writing on are not asked.

        `act(drafts)` gives, for each draft, the index of an action in `runs`: the number of steps that the strong model
        writes, 0 to keep the draft. `seed` is anything that numpy's `default_rng` takes; with one seed, all policies
        meet the same problems, drafts and scores as long as they do the same.
        """
        if n < 1:
            raise DataError(f"n is {n}; play at least one episode")
        if not runs or any(run < 0 for run in runs):
            raise DataError(f"runs is {tuple(runs)!r}; give numbers of steps, 0 to keep the draft")
        num_steps, rng = self.max_steps, np.random.default_rng(seed)
        # All random numbers are drawn beforehand, (steps, n) each, so that they do not depend on what is done.
        weak, strong, end, draft_bin, draft_place, own_bin, own_place = rng.random((7, num_steps, n))
        draft_length, strong_length = self._lengths((2, num_steps, n), rng)
        scores, tokens = np.full((n, num_steps), np.nan), np.zeros((n, num_steps))
        clean, alive = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
        left, steps, strong_steps = (np.zeros(n, dtype=np.int64) for _ in range(3))  # left: of the strong model's run
        # What was written because of the decision at each step, (steps, n); cause: the step of the latest decision.
        paid, next_draft, cause = np.zeros((num_steps, n)), np.zeros((num_steps, n)), np.full(n, -1)
        strong_tokens, draft_tokens = np.zeros(n), np.zeros(n)
        decided = []
        for step in range(num_steps):
            if not alive.any():
                break
            last = end[step] < self.model.hazard[step + 1]
            drafting = np.flatnonzero(alive & (left == 0))
            state = np.where(~clean, 1, np.where(weak[step] < self.model.p_weak, 0, 2))
            tokens[:, step] = draft_length[step]
            scores[:, step] = self._scores(state, draft_bin[step], draft_place[step])  # those of a run are set below
            if len(drafting):
                seen_scores, seen_tokens = scores[drafting], tokens[drafting]  # copies; nothing is after this step yet
                draft_tokens[drafting] += seen_tokens[:, step]
                if step:
                    next_draft[cause[drafting], drafting] = seen_tokens[:, step]
                shown = (seen_scores[:, : step + 1], seen_tokens[:, : step + 1])
                action = np.asarray(act(Drafts(*shown, step, last[drafting], state[drafting])), dtype=np.int64)
                left[drafting], cause[drafting] = np.asarray(runs, dtype=np.int64)[action], step
                decided.append((drafting, np.full(len(drafting), step), action, seen_scores, seen_tokens))
            # The strong model's steps: of the draft's tokens where there is one, else of their own.
            writing = np.flatnonzero(alive & (left > 0))
            on_end = np.setdiff1d(writing, drafting)
            tokens[on_end, step] = strong_length[step, on_end]
            right = strong[step, writing] < self.model.p_strong[0]
            state[writing] = np.where(~clean[writing], 1, np.where(right, 0, 2))
            own = self._scores(state[writing], own_bin[step, writing], own_place[step, writing])
            scores[writing, step] = own if self.strong_scored else np.nan
            paid[cause[writing], writing] += tokens[writing, step]
            strong_tokens[writing] += tokens[writing, step]
            strong_steps[writing] += 1
            left[writing] -= 1
            clean &= ~alive | (state == 0)
            steps += alive
            alive &= ~last
        episode, at, action, all_scores, all_tokens = (np.concatenate(parts) for parts in zip(*decided, strict=True))
        written = (paid[at, episode], next_draft[at, episode])
        decisions = Decisions(episode, at, action, *written, all_scores, all_tokens)
        return _Episodes(clean, steps, strong_tokens, strong_steps, draft_tokens, decisions)

    def _scores(self, state: Ints, which: Array, place: Array) -> Array:
        """Scores in these states, (n,), from numbers in [0, 1) that choose the bin and the place in it."""
        cumulative = np.cumsum(np.asarray(self.law.rows), axis=1)
        cumulative /= cumulative[:, -1:]
        edges = np.asarray(self.law.edges)
        bins = (which[:, None] >= cumulative[state]).sum(1)
        return np.asarray(edges[bins] + place * (edges[bins + 1] - edges[bins]))

    def _lengths(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        mean, spread = self.model.tokens_per_step, self.token_spread
        if self.tokens:
            return rng.choice(np.asarray(self.tokens, dtype=float), size=shape)
        if not spread:
            return np.full(shape, mean)
        return np.maximum(rng.gamma(spread**-2, mean * spread**2, size=shape), 1.0)
