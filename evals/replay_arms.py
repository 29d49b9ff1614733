"""What can be made of a trace's scores: statistics for "the first error is here" and for "there is an error so far".

Each arm is fitted on some traces and gives, for every step of another, a number for each of the two; higher is surer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwise.routing.belief import ObservationLaw, StepFilter
from stepwise.routing.fit_check import POWERS, log_likelihood
from stepwise.routing.fit_data import EARLIER, NOW, RIGHT, FitTrace
from stepwise.routing.fit_em import smoothed, tempered

Array = NDArray[np.float64]
_BINS = 20  # as published


class Seen(NamedTuple):
    """One trace: scores, least earlier score (1 at the first step), true states; each (steps,)."""

    scores: Array
    least: Array
    states: NDArray[np.int64]


class Signal(NamedTuple):
    """For each step: how sure an arm is of "the first error is here", and of "there is an error so far"."""

    here: Array
    so_far: Array


Arm = Callable[[Seen], Signal]


def seen_of(trace: FitTrace) -> Seen:
    scores = np.asarray([step.score for step in trace.steps], dtype=float)
    return Seen(scores, _least(scores), np.asarray(trace.states))


def law_of(traces: Sequence[Seen], *, pair: bool = False, smoothing: str = "kernel") -> ObservationLaw:
    """The law of the score, or of (least earlier score, score), in 20 bins of equal width or 400 of them.

    "kernel": Gaussian kernels, Scott's bandwidth, reflected at 0 and 1, read at the bins' middles, as TRIM's published
    code does. "counts": shares, shrunk toward the pooled law by one observation per bin.
    """
    states = np.concatenate([t.states for t in traces])
    scores, least = np.concatenate([t.scores for t in traces]), np.concatenate([t.least for t in traces])
    points = np.stack([least, scores] if pair else [scores])
    inner = np.arange(1, _BINS) / _BINS
    if smoothing == "kernel":
        rows = np.stack([_kernel(points[:, states == s]) for s in (RIGHT, EARLIER, NOW)])
    else:
        column = np.searchsorted(inner, scores, side="right")
        column = column + _BINS * np.searchsorted(inner, least, side="right") if pair else column
        size = _BINS ** len(points)
        counts = np.stack([np.bincount(column[states == s], minlength=size) for s in (RIGHT, EARLIER, NOW)])
        rows = smoothed(counts.astype(float), size)
    return _as_law(rows, pair)


def _kernel(points: Array) -> Array:
    """Density of `points` (1 or 2, n) at the middles of the bins, current score running fastest, adding up to 1."""
    size, n = points.shape
    bandwidth = np.atleast_2d(np.cov(points)) * n ** (-2 / (size + 4)) + 1e-6 * np.eye(size)
    inverse = np.linalg.inv(bandwidth)
    middles = (np.arange(_BINS) + 0.5) / _BINS
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*[middles] * size, indexing="ij")])
    density = np.zeros(grid.shape[1])
    for signs in product(*[((1, 0), (-1, 0), (-1, 2))] * size):
        mirrored = np.stack([sign * row + shift for (sign, shift), row in zip(signs, points, strict=True)])
        gaps = grid[:, :, None] - mirrored[:, None, :]
        density += np.exp(-0.5 * np.einsum("igs,ij,jgs->gs", gaps, inverse, gaps)).sum(axis=1)
    density += 1e-9 * density.sum()  # where no point is near, every state is as likely as another
    result: Array = density / density.sum()
    return result


def _as_law(rows: Array, pair: bool) -> ObservationLaw:
    first, second, third = (tuple(row.tolist()) for row in rows)
    return ObservationLaw(tuple(i / _BINS for i in range(_BINS + 1)), (first, second, third), pair)


def given_least(law: ObservationLaw) -> ObservationLaw:
    """The law of the score given the least earlier score and the state, as a law of pairs in which each least earlier
    score is as likely in every state: so a filter learns of the state from the current score alone, in its light.
    """
    rows = np.asarray(law.rows).reshape(3, law.bins, law.bins)
    return _as_law((rows / rows.sum(axis=2, keepdims=True) / law.bins).reshape(3, -1), pair=True)


def p_weak_of(traces: Sequence[Seen]) -> float:
    states = np.concatenate([t.states for t in traces])
    return float((states == RIGHT).sum() / (states != EARLIER).sum())


def arms(traces: Sequence[Seen], smoothing: str = "kernel") -> dict[str, Arm]:
    """All arms, fitted on `traces`; those of `BELIEFS` give probabilities."""
    p = p_weak_of(traces)
    score, pair = law_of(traces, smoothing=smoothing), law_of(traces, pair=True, smoothing=smoothing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a filter on the pair counts the least score again is what is measured
        on_pair, on_given = StepFilter(pair, p), StepFilter(given_least(pair), p)
    return {
        "score": lambda seen: Signal(1 - seen.scores, 1 - seen.scores),
        "score drop": _drop,
        "cumulative sum": lambda seen: Signal(*[cumulative_sum(seen, score)] * 2),
        PUBLISHED: _filtering(StepFilter(pair, p, history="published")),
        MEMORYLESS: _filtering(StepFilter(pair, p, history="memoryless")),
        PAIR: _filtering(on_pair),
        SCORE: _filtering(StepFilter(score, p)),
        GIVEN: _filtering(on_given),
        TEMPERED: _filtering(StepFilter(_weakened(score, best_power(traces, smoothing)), p)),
    }


PUBLISHED, MEMORYLESS = "published belief (pair)", "memoryless, true prior (pair)"
PAIR, SCORE, GIVEN = "filter on the pair", "filter on the score", "filter, score given the least"
TEMPERED = "filter on the score, tempered"
BELIEFS = (PUBLISHED, MEMORYLESS, PAIR, SCORE, GIVEN, TEMPERED)


def best_power(traces: Sequence[Seen], smoothing: str) -> float:
    """The power of the score's likelihood ratios that foretells states best, each half of `traces` fitted on the other.

    1 where scores are independent given the state; below it where a trace's scores repeat one another.
    """
    halves = (traces[::2], traces[1::2])
    gains = dict.fromkeys((1.0, *POWERS), 0.0)
    for fitted_on, measured_on in (halves, halves[::-1]):
        law, p = law_of(fitted_on, smoothing=smoothing), p_weak_of(fitted_on)
        states = np.concatenate([seen.states for seen in measured_on])
        for power in gains:
            made = StepFilter(_weakened(law, power), p)
            beliefs = np.concatenate([made.beliefs(seen.scores.tolist()) for seen in measured_on])
            gains[power] += log_likelihood(beliefs, states)
    return max(gains, key=lambda power: gains[power])


def _weakened(law: ObservationLaw, power: float) -> ObservationLaw:
    return _as_law(tempered(np.asarray(law.rows), power), pair=False)


def _drop(seen: Seen) -> Signal:
    """How much lower the score is than the one before, 1 before the first."""
    drop = np.concatenate([[1.0], seen.scores[:-1]]) - seen.scores
    return Signal(drop, drop)


def cumulative_sum(seen: Seen, law: ObservationLaw, alarm: float = np.inf) -> Array:
    """Page's statistic: log P(score | wrong just now) / P(score | right), summed up, never below 0; shape (steps,).

    After a step at which it is at least `alarm` it starts again from 0.
    """
    total, out = 0.0, []
    for score in seen.scores:
        right, _, wrong = law.likelihoods(float(score))
        total = max(0.0, total + float(np.log(wrong / right)))
        out.append(total)
        total = 0.0 if total >= alarm else total
    return np.asarray(out)


def _filtering(made: StepFilter) -> Arm:
    def arm(seen: Seen) -> Signal:
        x, beliefs = 1.0, []
        for score, least in zip(seen.scores, seen.least, strict=True):
            belief = made.drafted(x, float(score), float(least))
            beliefs.append(belief)
            x = made.p_weak * x if made.history == "memoryless" else belief[0]
        b = np.asarray(beliefs)
        return Signal(b[:, NOW], 1 - b[:, RIGHT])

    return arm


def worlds(traces: Sequence[Seen], n: int, seed: int) -> dict[str, list[Seen]]:
    """Traces drawn from two models fitted to `traces`: (least earlier, score) drawn anew at every step given the state,
    and scores drawn given the state with the least carried along. Lengths are those of `traces`.
    """
    rng = np.random.default_rng(seed)
    p = p_weak_of(traces)
    pair, score = _shares(law_of(traces, pair=True)), _shares(law_of(traces))
    drawn: dict[str, list[Seen]] = {world: [] for world in WORLDS}
    for _ in range(n):
        length = len(traces[int(rng.integers(len(traces)))].scores)
        wrong = np.flatnonzero(rng.random(length) >= p)
        first = int(wrong[0]) if len(wrong) else length
        at = np.arange(length)
        states = np.where(at < first, RIGHT, np.where(at == first, NOW, EARLIER))
        low, current = np.asarray([divmod(int(rng.choice(_BINS**2, p=pair[s])), _BINS) for s in states]).T
        drawn[WORLDS[0]].append(Seen(_within(rng, current), _within(rng, low), states))
        scores = _within(rng, np.asarray([int(rng.choice(_BINS, p=score[s])) for s in states]))
        drawn[WORLDS[1]].append(Seen(scores, _least(scores), states))
    return drawn


WORLDS = ("pair drawn anew", "least carried along")


def _shares(law: ObservationLaw) -> Array:
    rows = np.asarray(law.rows)
    shares: Array = rows / rows.sum(axis=1, keepdims=True)
    return shares


def _within(rng: np.random.Generator, bins: NDArray[np.int64]) -> Array:
    return np.asarray((bins + rng.random(len(bins))) / _BINS)


def _least(scores: Array) -> Array:
    return np.minimum.accumulate(np.concatenate([[1.0], scores[:-1]]))
