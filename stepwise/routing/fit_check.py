"""How good a fit is: held-out likelihood and calibration, intervals, and whether problems differ in difficulty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwise.routing.belief import ObservationLaw, StepFilter
from stepwise.routing.fit import Estimate, estimate
from stepwise.routing.fit_data import NOW, RIGHT, FitTrace
from stepwise.routing.fit_em import pad
from stepwise.routing.kernel_law import kernel_law
from stepwise.routing.router_fit import CalibrationBin, Difficulty, HeldOut
from stepwise.stats import Interval, wilson

Array = NDArray[np.float64]
BINS = (4, 6, 8, 12, 16)  # numbers of score bins to choose from
POWERS = (0.85, 0.7, 0.55, 0.4)  # of likelihood ratios, to choose from beside 1
_WORTH = 0.002  # nats per draft that a power below 1 must gain
_FOLDS = 5


def folds(traces: Sequence[FitTrace], seed: int, k: int = _FOLDS) -> Iterator[tuple[list[FitTrace], list[FitTrace]]]:
    """(fitted on, measured on) k times; all traces of a problem are on the same side."""
    problems = sorted({trace.problem for trace in traces})
    order = np.random.default_rng(seed).permutation(len(problems))
    fold = {problems[n]: place % k for place, n in enumerate(order)}
    for i in range(k):
        yield [t for t in traces if fold[t.problem] != i], [t for t in traces if fold[t.problem] == i]


def beliefs_of(found: StepFilter, trace: FitTrace, scored: bool = True) -> tuple[Array, NDArray[np.int64]]:
    """Beliefs (drafts, 3) at the drafts of a labelled trace, and their true states (drafts,)."""
    scores = [step.score if scored else None for step in trace.steps]
    beliefs = found.beliefs(scores, [int(step.replaced) for step in trace.steps])
    drafted = np.asarray([step.drafted for step in trace.steps])
    return beliefs[drafted], np.asarray(trace.states)[drafted]


def filter_of(found: Estimate, pair: ObservationLaw | None = None) -> StepFilter:
    """The filter on the current score with these parameters; with the law of a `pair`, the memoryless belief."""
    strong = found.p_strong if found.p_strong == found.p_strong else 1.0  # without strong steps it is never asked
    if pair is not None:
        return StepFilter(pair, found.p_weak, (strong,), "memoryless")
    return StepFilter(found.law, found.p_weak, (strong,))


def pair_law(traces: Sequence[FitTrace]) -> ObservationLaw:
    """The law of (least earlier score, score) in labelled traces, by kernels; a strong step has no score of its own."""
    seen = []
    for trace in traces:
        least = 1.0
        for step, state in zip(trace.steps, trace.states, strict=True):
            if step.score is not None:
                seen.append((step.score, least, state))
                least = least if step.replaced else min(least, step.score)
    scores, earlier, states = np.asarray(seen).T
    return kernel_law(scores, states.astype(np.int64), earlier)


def _predicted(
    traces: Sequence[FitTrace], bins: int, seed: int, *, power: float = 1.0, scored: bool = True, pair: bool = False
) -> tuple[Array, NDArray[np.int64]]:
    """Beliefs and true states of all drafts, each from a fit on other problems."""
    beliefs, states = [], []
    for fitted_on, measured_on in folds(traces, seed):
        found = estimate(fitted_on, bins=bins, tokens_per_step=1.0, max_steps=10**6, power=power)
        made = filter_of(found, pair_law(fitted_on) if pair else None)
        for trace in measured_on:
            b, z = beliefs_of(made, trace, scored)
            beliefs.append(b)
            states.append(z)
    return np.concatenate(beliefs), np.concatenate(states)


def log_likelihood(beliefs: Array, states: NDArray[np.int64]) -> float:
    """Mean log of the belief in the state that was true, nats per draft."""
    return float(np.log(np.maximum(beliefs[np.arange(len(states)), states], 1e-12)).mean())


def choose_bins(traces: Sequence[FitTrace], *, seed: int = 0) -> int:
    """The number of score bins with which the filter foretells the states of held-out problems best."""
    return max(BINS, key=lambda bins: log_likelihood(*_predicted(traces, bins, seed)))


def choose_power(traces: Sequence[FitTrace], bins: int, *, seed: int = 0) -> float:
    """The power of likelihood ratios with which the filter foretells held-out states best, 1 unless it is worth it."""
    gains = {power: log_likelihood(*_predicted(traces, bins, seed, power=power)) for power in (1.0, *POWERS)}
    best = max(gains, key=lambda power: gains[power])
    return best if gains[best] > gains[1.0] + _WORTH else 1.0


def held_out(
    traces: Sequence[FitTrace], bins: int, power: float = 1.0, *, seed: int = 0, pair: bool = False
) -> HeldOut:
    """The filter (with `pair`, the memoryless belief) on labelled traces, each with a fit on problems of other folds.

    The power, and the number of bins where that was chosen, were chosen on the same traces in other folds, which
    flatters it a little.
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


def calibration(predicted: Array, happened: NDArray[np.bool_], bins: int = 10) -> tuple[CalibrationBin, ...]:
    """What share happened among predictions of about the same size, in bins that expect about as many each; (n,) both.

    As what is foretold is rare, bins of as many predictions each would all but one lie near 0.
    """
    order = np.argsort(predicted, kind="stable")
    expected = np.cumsum(predicted[order])
    cuts = np.searchsorted(expected, expected[-1] * np.arange(1, bins) / bins)
    parts = [part for part in np.split(order, cuts) if len(part)]
    return tuple(
        CalibrationBin(float(predicted[part].mean()), wilson(int(happened[part].sum()), len(part)), len(part))
        for part in parts
    )


def auroc(positive: Sequence[float] | Array, negative: Sequence[float] | Array) -> float:
    """Chance that a positive lies above a negative, ties counting half; nan where one side is empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    _, place, counts = np.unique(np.concatenate([positive, negative]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place][: len(positive)]
    n = len(positive)
    return float((ranks.sum() - n * (n + 1) / 2) / (n * len(negative)))


def figures(found: Estimate) -> dict[str, float]:
    """The figures that get intervals; `auroc` is of the binned score for wrong just now against right."""
    survival = np.cumprod([1.0 - h for h in found.hazard])
    return {
        "p_weak": found.p_weak,
        "p_strong": found.p_strong,
        "steps": float(survival.sum()),
        "tokens_per_step": found.tokens_per_step,
        "auroc": _law_auroc(found.counts.rows[NOW], found.counts.rows[RIGHT]),
    }


def _law_auroc(low: Array, high: Array) -> float:
    """Chance that one of `low` (counts by bin) lies in a lower bin than one of `high`, the same bin counting half."""
    above = np.cumsum(high[::-1])[::-1] - high
    pairs = low.sum() * high.sum()
    return float((low * (above + high / 2)).sum() / pairs) if pairs else float("nan")


def bootstrap(
    traces: Sequence[FitTrace], edges: Sequence[float], *, samples: int = 200, seed: int = 0, **settings: Any
) -> dict[str, Interval]:
    """95 % percentile intervals of `figures` over problems drawn with replacement, without those that are nan.

    `settings` are those of `estimate`.
    """
    groups = defaultdict(list)
    for number, trace in enumerate(traces):
        groups[trace.problem].append(number)
    problems = list(groups.values())
    rng = np.random.default_rng(seed)
    data = pad(traces, edges[1:-1])
    found = estimate(traces, edges=edges, padded=data, **settings)
    value = figures(found)
    drawn: list[dict[str, float]] = []
    for _ in range(samples):
        which = [number for i in rng.integers(0, len(problems), len(problems)) for number in problems[i]]
        drawn.append(figures(estimate([traces[i] for i in which], edges=edges, padded=data.take(which), **settings)))
    out = {}
    for name, mean in value.items():
        known = [row[name] for row in drawn if row[name] == row[name]]
        if mean == mean and known:
            low, high = np.quantile(known, [0.025, 0.975])
            out[name] = Interval(mean, float(low), float(high))
    counts = found.counts
    for name, right, wrong in (
        ("p_weak", counts.weak_right, counts.weak_wrong),
        ("p_strong", counts.strong_right, counts.strong_wrong),
    ):
        if name in out and round(right + wrong) and out[name].low == out[name].high:
            out[name] = wilson(round(right), round(right + wrong))  # a bootstrap knows nothing of what never happened
    return out


def _trials(traces: Sequence[FitTrace]) -> Array:
    """Right and wrong drafts after right steps, for each problem: (problems, 2)."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for trace in traces:
        for state, step in zip(trace.states, trace.steps, strict=True):
            if step.drafted and state in (RIGHT, NOW):
                found[trace.problem][state == NOW] += 1
    return np.asarray(list(found.values()), dtype=float).reshape(-1, 2)


def difficulty_classes(trials: Array, classes: int, rounds: int = 500) -> tuple[tuple[float, float], ...]:
    """(share, chance of a right draft) of each class of problems, by EM over `trials` (problems, 2), from low to high.

    One beta(1.5, 1.1) worth of prior keeps chances off 0 and 1.
    """
    chances = np.linspace(0.5, 0.98, classes) if classes > 1 else np.asarray([0.9])
    shares = np.full(classes, 1 / classes)
    for _ in range(rounds):
        log = _class_logs(trials, shares, chances)
        weight = np.exp(log - log.max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        good, bad = weight.T @ trials[:, 0] + 0.5, weight.T @ trials[:, 1] + 0.1
        new = good / (good + bad)
        shares = (weight.sum(axis=0) + 0.5) / (len(trials) + 0.5 * classes)
        done = np.abs(new - chances).max() < 1e-6
        chances = new
        if done:
            break
    order = np.argsort(chances)
    return tuple((float(shares[i]), float(chances[i])) for i in order)


def _class_logs(trials: Array, shares: Array, chances: Array) -> Array:
    logs: Array = np.log(shares) + trials[:, :1] * np.log(chances) + trials[:, 1:] * np.log1p(-chances)
    return logs


def compare_difficulty(traces: Sequence[FitTrace], classes: int, *, seed: int = 0) -> Difficulty:
    """A mixture of `classes` classes of problems against one class, by the likelihood of held-out problems' labels."""
    gains = []
    for fitted_on, measured_on in folds(traces, seed):
        values = []
        for k in (1, classes):
            found = np.asarray(difficulty_classes(_trials(fitted_on), k))
            values.append(np.logaddexp.reduce(_class_logs(_trials(measured_on), found[:, 0], found[:, 1]), axis=1))
        gains.append(values[1] - values[0])
    gain = np.concatenate(gains)
    rng = np.random.default_rng(seed)
    means = [gain[rng.integers(0, len(gain), len(gain))].mean() for _ in range(1000)]
    low, high = np.quantile(means, [0.025, 0.975])
    interval = Interval(float(gain.mean()), float(low), float(high))
    return Difficulty(difficulty_classes(_trials(traces), classes), interval)
