"""What can be made of a trace's scores: statistics for "the first error is here" and for "there is an error so far".

Each arm is fitted on some traces and gives, for every step of another, a number for each of the two; higher is surer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwise.routing.pomdp.em import law_of as law_with
from stepwise.routing.pomdp.em import smoothed, tempered
from stepwise.routing.pomdp.filter import ObservationLaw, StepFilter
from stepwise.routing.pomdp.fit_check import BINS, EDGES, POWERS, kernel_law, log_likelihood
from stepwise.routing.pomdp.fit_data import EARLIER, NOW, RIGHT, FitTrace

Array = NDArray[np.float64]


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
    if smoothing == "kernel":
        return kernel_law(scores, states, least if pair else None)
    inner = np.arange(1, BINS) / BINS
    column = np.searchsorted(inner, scores, side="right")
    column = column + BINS * np.searchsorted(inner, least, side="right") if pair else column
    size = BINS**2 if pair else BINS
    counts = np.stack([np.bincount(column[states == s], minlength=size) for s in (RIGHT, EARLIER, NOW)])
    return law_with(EDGES, smoothed(counts.astype(float), size), pair)


def given_least(law: ObservationLaw) -> ObservationLaw:
    """The law of the score given the least earlier score and the state, as a law of pairs in which each least earlier
    score is as likely in every state: so a filter learns of the state from the current score alone, in its light.
    """
    rows = np.asarray(law.rows).reshape(3, law.bins, law.bins)
    return law_with(EDGES, (rows / rows.sum(axis=2, keepdims=True) / law.bins).reshape(3, -1), pair=True)


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
    return law_with(EDGES, tempered(np.asarray(law.rows), power), pair=False)


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
        low, current = np.asarray([divmod(int(rng.choice(BINS**2, p=pair[s])), BINS) for s in states]).T
        drawn[WORLDS[0]].append(Seen(_within(rng, current), _within(rng, low), states))
        scores = _within(rng, np.asarray([int(rng.choice(BINS, p=score[s])) for s in states]))
        drawn[WORLDS[1]].append(Seen(scores, _least(scores), states))
    return drawn


WORLDS = ("pair drawn anew", "least carried along")


def _shares(law: ObservationLaw) -> Array:
    rows = np.asarray(law.rows)
    shares: Array = rows / rows.sum(axis=1, keepdims=True)
    return shares


def _within(rng: np.random.Generator, bins: NDArray[np.int64]) -> Array:
    return np.asarray((bins + rng.random(len(bins))) / BINS)


def _least(scores: Array) -> Array:
    return np.minimum.accumulate(np.concatenate([[1.0], scores[:-1]]))
