"""How good a fit is: held-out likelihood and calibration of its beliefs, and intervals of its figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwise.records import record
from stepwise.routing.pomdp.em import Padded, RouterEstimate, law_of, pad
from stepwise.routing.pomdp.estimate import Array, estimate
from stepwise.routing.pomdp.filter import ObservationLaw, StepFilter
from stepwise.routing.pomdp.fit_data import EARLIER, NOW, RIGHT, FitTrace
from stepwise.stats import Interval, auroc, percentile, resamples, wilson

Ints = NDArray[np.int64]
BINS = 20  # of a kernel law, of equal width
EDGES = tuple(i / BINS for i in range(BINS + 1))
POWERS = (0.85, 0.7, 0.55, 0.4)  # of likelihood ratios, to choose from beside 1
_NUM_BINS = (4, 6, 8, 12, 16)  # numbers of score bins to choose from
_WORTH = 0.002  # nats per draft that a power below 1 must gain
_FOLDS = 5


@record()
class CalibrationBin:
    """Of `n` drafts whose belief in "wrong just now" was about `predicted`, the share that were, with its interval.

    >>> bin = CalibrationBin(predicted=0.2, share=wilson(3, 12), n=12)
    >>> bin.share.low <= bin.predicted <= bin.share.high
    True
    """

    predicted: float
    share: Interval
    n: int


@record()
class HeldOut:
    """The filter on problems that it was not fitted on.

    Attributes:
        steps: labelled drafts it was asked about.
        log_likelihood: mean log of its belief in the state that was true, nats per draft.
        without_scores: the same for the prior of each step, which looks at no score.
        auroc: of the belief in "wrong just now" for it, among all drafts.
        calibration: from low to high beliefs in "wrong just now".

    Example:
        figures = held_out(traces, bins=8)
        print(figures.log_likelihood - figures.without_scores)  # nats that the scores are worth
    """

    steps: int
    log_likelihood: float
    without_scores: float
    auroc: float
    calibration: tuple[CalibrationBin, ...]


def held_out(
    traces: Sequence[FitTrace], bins: int, power: float = 1.0, *, seed: int = 0, pair: bool = False
) -> HeldOut:
    """The filter (with `pair`, the memoryless belief) on labelled traces, each with a fit on problems of other folds.

    The power, and the number of bins where that was chosen, were chosen on the same traces in other folds, which
    flatters it a little.

    Example:
        print(held_out(traces, bins=8, power=0.5).auroc)
    """
    beliefs, states = _predicted(traces, bins, seed + 1, power=power, pair=pair)
    prior, _ = _predicted(traces, bins, seed + 1, scored=False)
    now = beliefs[:, NOW]
    return HeldOut(
        steps=len(states),
        log_likelihood=log_likelihood(beliefs, states),
        without_scores=log_likelihood(prior, states),
        auroc=auroc(now[states == NOW], now[states != NOW]),
        calibration=calibration(now, states == NOW),
    )


def choose(traces: Sequence[FitTrace], bins: int | None, *, seed: int = 0) -> tuple[int, float]:
    """The number of score bins, where none is given, and the power of likelihood ratios with which the filter foretells
    the states of held-out problems best; the power is 1 unless another is worth it.

    Example:
        bins, power = choose(traces, None)  # for example 8, 0.5
    """
    bins = bins or max(_NUM_BINS, key=lambda n: log_likelihood(*_predicted(traces, n, seed)))
    gains = {power: log_likelihood(*_predicted(traces, bins, seed, power=power)) for power in (1.0, *POWERS)}
    best = max(gains, key=lambda power: gains[power])
    return bins, best if gains[best] > gains[1.0] + _WORTH else 1.0


def _predicted(
    traces: Sequence[FitTrace], bins: int, seed: int, *, power: float = 1.0, scored: bool = True, pair: bool = False
) -> tuple[Array, Ints]:
    """Beliefs (drafts, 3) and true states (drafts,) of all drafts, each from a fit on other problems."""
    beliefs, states = [], []
    for fitted_on, measured_on in _folds(traces, seed):
        fitted = estimate(fitted_on, bins=bins, tokens_per_step=1.0, max_steps=10**6, power=power)
        strong = (1.0 if np.isnan(fitted.p_strong) else fitted.p_strong,)  # without strong steps it is never asked
        if pair:
            belief = StepFilter(pair_law(fitted_on), fitted.p_weak, strong, "memoryless")
        else:
            belief = StepFilter(fitted.law, fitted.p_weak, strong)
        for trace in measured_on:
            scores = [step.score if scored else None for step in trace.steps]
            drafted = np.asarray([step.drafted for step in trace.steps])
            beliefs.append(belief.beliefs(scores, [int(step.replaced) for step in trace.steps])[drafted])
            states.append(np.asarray(trace.states)[drafted])
    return np.concatenate(beliefs), np.concatenate(states)


def _folds(traces: Sequence[FitTrace], seed: int) -> Iterator[tuple[list[FitTrace], list[FitTrace]]]:
    """(fitted on, measured on) several times; all traces of a problem are on the same side."""
    problems = sorted({trace.problem for trace in traces})
    order = np.random.default_rng(seed).permutation(len(problems))
    fold = {problems[n]: place % _FOLDS for place, n in enumerate(order)}
    for i in range(_FOLDS):
        yield [t for t in traces if fold[t.problem] != i], [t for t in traces if fold[t.problem] == i]


def log_likelihood(beliefs: Array, states: Ints) -> float:
    """Mean log of the belief in the state that was true, nats per draft.

    >>> round(log_likelihood(np.array([[0.7, 0.1, 0.2]]), np.array([RIGHT])), 3)
    -0.357
    """
    return float(np.log(np.maximum(beliefs[np.arange(len(states)), states], 1e-12)).mean())


def calibration(predicted: Array, happened: NDArray[np.bool_], bins: int = 10) -> tuple[CalibrationBin, ...]:
    """What share happened among predictions of about the same size, in bins that expect about as many each; (n,) both.

    As what is foretold is rare, bins of as many predictions each would all but one lie near 0.

    >>> bins = calibration(np.full(20, 0.25), np.arange(20) < 5, bins=1)
    >>> bins[0].predicted, bins[0].share.value, bins[0].n
    (0.25, 0.25, 20)
    """
    order = np.argsort(predicted, kind="stable")
    expected = np.cumsum(predicted[order])
    cuts = np.searchsorted(expected, expected[-1] * np.arange(1, bins) / bins)
    parts = [part for part in np.split(order, cuts) if len(part)]
    return tuple(
        CalibrationBin(float(predicted[part].mean()), wilson(int(happened[part].sum()), len(part)), len(part))
        for part in parts
    )


def intervals_of(
    traces: Sequence[FitTrace], edges: Sequence[float], *, samples: int = 200, seed: int = 0, **settings: Any
) -> dict[str, Interval]:
    """95 % bootstrap intervals over problems of p_weak, p_strong, steps, tokens_per_step and auroc (wrong just now
    against right, of the binned score), without those that are nan. `settings` are those of `estimate`.

    Example:
        ends = intervals_of(traces, edges=(0.0, 0.5, 1.0), p_strong=0.95)
        print(ends["p_weak"].low, ends["p_weak"].high)
    """
    groups = defaultdict(list)
    for number, trace in enumerate(traces):
        groups[trace.problem].append(number)
    problems = list(groups.values())
    data = pad(traces, edges[1:-1])

    estimates = []
    for drawn in resamples(len(problems), samples, seed):
        rows = [number for i in drawn for number in problems[i]]
        padded = Padded(*(part[rows] for part in data))  # type: ignore[arg-type]
        estimates.append(estimate([traces[i] for i in rows], edges=edges, padded=padded, **settings))
    figures = [_figures(each) for each in estimates]
    out = {name: percentile([row[name] for row in figures]) for name in figures[0] if not np.isnan(figures[0][name])}
    counts = estimates[0].counts
    for name, right, wrong in (
        ("p_weak", counts.weak_right, counts.weak_wrong),
        ("p_strong", counts.strong_right, counts.strong_wrong),
    ):
        if name in out and round(right + wrong) and out[name].low == out[name].high:
            out[name] = wilson(round(right), round(right + wrong))  # a bootstrap knows nothing of what never happened
    return out


def _figures(fitted: RouterEstimate) -> dict[str, float]:
    low, high = fitted.counts.rows[NOW], fitted.counts.rows[RIGHT]  # scores by bin
    above = np.cumsum(high[::-1])[::-1] - high
    pairs = low.sum() * high.sum()
    return {
        "p_weak": fitted.p_weak,
        "p_strong": fitted.p_strong,
        "steps": float(np.cumprod([1.0 - h for h in fitted.hazard]).sum()),
        "tokens_per_step": fitted.tokens_per_step,
        "auroc": float((low * (above + high / 2)).sum() / pairs) if pairs else float("nan"),
    }


# Laws smoothed by kernels, as TRIM's published code does (arXiv 2601.10245)


def pair_law(traces: Sequence[FitTrace]) -> ObservationLaw:
    """The law of (least earlier score, score) in labelled traces, by kernels; a strong step has no score of its own.

    Example:
        law = pair_law(traces)  # labelled ones; for `Published` and `BeliefThreshold`
    """
    seen = []
    for trace in traces:
        least = 1.0
        for step, state in zip(trace.steps, trace.states, strict=True):
            if step.score is not None:
                seen.append((step.score, least, state))
                least = least if step.replaced else min(least, step.score)
    scores, earlier, states = np.asarray(seen).T
    return kernel_law(scores, states.astype(np.int64), earlier)


def kernel_law(scores: Array, states: Ints, least: Array | None = None) -> ObservationLaw:
    """The law of the score, or with `least` (least earlier scores) that of the pair; all (n,).

    Gaussian kernels with Scott's bandwidth, reflected at 0 and 1, read at the bins' middles. Each state needs at least
    two observations that differ.

    >>> scores, states = np.array([0.9, 0.8, 0.4, 0.3, 0.2, 0.1]), np.array([RIGHT, RIGHT, EARLIER, EARLIER, NOW, NOW])
    >>> law = kernel_law(scores, states)
    >>> law.rows[RIGHT][-1] > law.rows[NOW][-1]  # the highest scores
    True
    """
    points = np.stack([scores] if least is None else [least, scores])
    rows = np.stack([_kernel(points[:, states == state]) for state in (RIGHT, EARLIER, NOW)])
    return law_of(EDGES, rows, pair=least is not None)


def _kernel(points: Array) -> Array:
    """Density of `points` (1 or 2, n) at the middles of the bins, current score running fastest, adding up to 1."""
    size, n = points.shape
    bandwidth = np.atleast_2d(np.cov(points)) * n ** (-2 / (size + 4)) + 1e-6 * np.eye(size)
    inverse = np.linalg.inv(bandwidth)
    middles = (np.arange(BINS) + 0.5) / BINS
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*[middles] * size, indexing="ij")])
    density = np.zeros(grid.shape[1])
    for signs in product(*[((1, 0), (-1, 0), (-1, 2))] * size):
        mirrored = np.stack([sign * row + shift for (sign, shift), row in zip(signs, points, strict=True)])
        gaps = grid[:, :, None] - mirrored[:, None, :]
        density += np.exp(-0.5 * np.einsum("igs,ij,jgs->gs", gaps, inverse, gaps)).sum(axis=1)
    density += 1e-9 * density.sum()  # where no point is near, every state is as likely as another
    return np.asarray(density / density.sum())
