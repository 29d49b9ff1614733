"""Fitting TRIM's routing POMDP (arXiv 2601.10245) to traces: which parameters, how sure, and for which models.

What differs from the published fit:
1. p_weak and p_strong are counted on step labels, after right steps only; published takes the first step that the
   reward model scores below 0.35 for the first error, so the scorer is judged by itself.
2. Scores are binned at quantiles and shrunk toward the pooled law; published smears a kernel density over [0, 1].
3. Everything has an interval (bootstrap over problems), and what the filter makes of it is measured on problems that it
   was not fitted on.
4. The hazard is counted with traces that were cut off taken as cut off; published clips them to 30 steps.
5. Too little data is refused, with what is missing.
6. Scores of one trace resemble one another, which the model denies; the laws are tempered where held-out labels ask for
   it, so that the filter is not surer than it should be.
7. A fit without labels is refused where it cannot be told (see `evals/identify.py` for where that is).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stepwise.errors import DataError
from stepwise.routing.belief import ObservationLaw
from stepwise.routing.fit_data import FitTrace, check_scored, lag_correlation, states_of
from stepwise.routing.fit_em import Counts, Padded, Parameters, expect, learn, pad, smoothed, tempered
from stepwise.routing.router_fit import FitCard, RouterFit

LEAST = {"right": 100, "wrong earlier": 50, "wrong just now": 50}  # labelled drafts in each state
LEAST_STRONG, LEAST_ENDED, LEAST_PROBLEMS = 30, 30, 30
LEAST_LABELLED_WRONG = 50  # labelled traces with a wrong step that make up for labels missing elsewhere
LEAST_OUTCOMES = 300  # solved and failed traces each, where there are fewer labels than that
MOST_CORRELATION = 0.1  # of neighbouring scores in the state "right", up to which EM needs no labels
_SHRINK = 1.0  # scores per bin that a law is shrunk by
_HAZARD_SHRINK = 2.0


class Estimate(NamedTuple):
    """The parameters alone, as `estimate` finds them; `edges` of the score's bins go from 0 to 1."""

    p_weak: float
    p_strong: float
    hazard: tuple[float, ...]
    edges: tuple[float, ...]
    rows: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    tokens_per_step: float
    counts: Counts

    @property
    def law(self) -> ObservationLaw:
        """The observation law of the current score."""
        first, second, third = (tuple(row.tolist()) for row in self.rows)
        return ObservationLaw(self.edges, (first, second, third))


def score_edges(traces: Sequence[FitTrace], bins: int) -> tuple[float, ...]:
    """Edges from 0 to 1 that put about as many drafts into each of at most `bins` bins."""
    scores = [step.score for trace in traces for step in trace.steps if step.score is not None]
    inner = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]).round(6))
    return (0.0, *(float(e) for e in inner if 0 < e < 1), 1.0)


def hazard_of(traces: Sequence[FitTrace], max_steps: int = 30) -> tuple[float, ...]:
    """P(a solution has k steps | at least k) for k = 0, 1, ..., from how long traces are; the last entry is 1.

    A trace that was cut off was longer than it is. Each entry is shrunk a little toward the mean. Raises `DataError`
    where no trace ended by itself within `max_steps`.
    """
    lengths = np.asarray([len(trace.steps) for trace in traces])
    ended = np.asarray([trace.ended for trace in traces])
    natural = lengths[ended & (lengths <= max_steps)]
    if not len(natural):
        raise DataError(
            f"none of {len(traces)} traces ended by itself within {max_steps} steps, so the hazard does not end; "
            "give traces that were not cut off, or raise max_steps"
        )
    longest = int(natural.max())
    ends = np.bincount(natural, minlength=longest + 1)
    at_risk = np.asarray([(lengths >= k).sum() for k in range(longest + 1)])
    mean = ends.sum() / at_risk[1:].sum()
    hazard = (ends + _HAZARD_SHRINK * mean) / (at_risk + _HAZARD_SHRINK)
    return (0.0, *(float(h) for h in hazard[1:-1]), 1.0)


def estimate(
    traces: Sequence[FitTrace],
    *,
    bins: int = 8,
    edges: Sequence[float] | None = None,
    p_strong: float | None = None,
    tokens_per_step: float | None = None,
    max_steps: int = 30,
    recovery: float | None = None,
    power: float = 1.0,
    padded: Padded | None = None,
) -> Estimate:
    """The parameters from traces, without checks of how many there are; nan where p_strong has nothing to go by.

    Counts where all traces are labelled, else EM over what is seen (scores, answers, and the labels there are). Where
    scores of right steps correlate within a trace, EM goes astray on the laws of wrong steps, and adding traces does
    not help (`evals/identify.py`); those laws are then counted on the labelled traces alone. `recovery` None: the share
    of labelled wrong traces that were solved all the same, 0 where there are none. `power`: see `fit_em.tempered`.
    `padded`: the same traces as arrays with these `edges`, where they are at hand.
    """
    edges = tuple(edges) if edges is not None else score_edges(traces, bins)
    width = len(edges) - 1
    strength = _SHRINK * width
    data = pad(traces, edges[1:-1]) if padded is None else padded
    labelled = [trace for trace in traces if trace.labelled]
    if len(labelled) == len(traces):
        counts = _counted(data, width)
        rows = smoothed(counts.rows, strength)
    else:
        wrong = None
        if labelled and not _independent(traces):
            wrong = smoothed(_counted(pad(labelled, edges[1:-1]), width).rows, strength)[1:]
        recovery = _recovered(labelled) if recovery is None else recovery
        found = learn(data, width, p_strong=p_strong, recovery=recovery, strength=strength, wrong_rows=wrong)
        counts, _, _ = expect(data, found.parameters, recovery)
        rows = found.parameters.rows
    drafted = [trace for trace in traces if any(step.drafted for step in trace.steps)]
    return Estimate(
        counts.p_weak,
        counts.p_strong if p_strong is None else p_strong,
        hazard_of(drafted, max_steps),
        edges,
        tempered(rows, power),
        _tokens(traces) if tokens_per_step is None else tokens_per_step,
        counts,
    )


def _counted(data: Padded, width: int) -> Counts:
    """Counts of labelled traces: what EM expects of them whatever its parameters."""
    return expect(data, Parameters(0.5, 0.5, np.full((3, width), 1 / width)))[0]


def _independent(traces: Sequence[FitTrace]) -> bool:
    """Whether scores of neighbouring right steps are hardly correlated: of labelled traces and of solved ones."""
    value = lag_correlation(traces)
    return value is not None and abs(value) <= MOST_CORRELATION


def _recovered(labelled: Sequence[FitTrace]) -> float:
    """Share of the labelled traces with a wrong step that were solved all the same; 0 where none says."""
    ends = [trace.solved for trace in labelled if trace.first_error is not None and trace.solved is not None]
    return sum(ends) / len(ends) if ends else 0.0


def _tokens(traces: Sequence[FitTrace]) -> float:
    """Mean tokens of a step: of the strong model's where 30 are known, as it is they that are paid for, else all."""
    known = [(step.replaced, step.tokens) for t in traces for step in t.steps if step.tokens is not None]
    strong = [tokens for replaced, tokens in known if replaced]
    if not known:
        raise DataError("the traces do not say how many tokens their steps have; give tokens_per_step")
    return float(np.mean(strong if len(strong) >= LEAST_STRONG else [tokens for _, tokens in known]))


def fit_router(
    traces: Sequence[FitTrace],
    *,
    weak: str,
    strong: str,
    scorer: str,
    config: str = "",
    labels: str = "column",
    p_strong: float | None = None,
    tokens_per_step: float | None = None,
    bins: int | None = None,
    max_steps: int = 30,
    recovery: float | None = None,
    difficulty: int = 1,
    samples: int = 200,
    seed: int = 0,
) -> RouterFit:
    """Fit the routing POMDP to traces of one weak model, one strong model and one scorer.

    Args:
        traces: labelled, or some of them (the rest by EM from scores and answers).
        weak: name of the weak model; like the next four, for the card.
        strong: name of the strong model.
        scorer: name of the scorer.
        config: hash of the configuration.
        labels: where labels came from.
        p_strong: where it is known; else it is counted on strong steps after right ones.
        tokens_per_step: where the traces do not say.
        bins: of the score; None picks the number that predicts held-out labels best.
        max_steps: solutions end there at the latest.
        recovery: P(solved | a wrong step stands), used where traces without labels say whether they were solved; None
            takes it from labelled traces. It cannot be told from answers, so without labels it must be given.
        difficulty: classes of problems to compare with one class.
        samples: of the bootstrap over problems.
        seed: of folds and bootstrap.

    Raises `DataError` where there is too little data (the message says what is missing), where a draft has no score,
    and where labels are missing and the rest cannot make up for them.
    """
    from stepwise.routing.fit_check import bootstrap, choose_bins, choose_power, compare_difficulty, held_out, pair_law

    if p_strong is not None and not 0 <= p_strong <= 1:
        raise DataError(f"p_strong is {p_strong!r}; a probability lies in [0, 1]")
    if recovery is not None and not 0 <= recovery < 1:
        raise DataError(f"recovery is {recovery!r}; give a share of at least 0 and below 1")
    if tokens_per_step is not None and not tokens_per_step > 0:
        raise DataError(f"tokens_per_step is {tokens_per_step!r}; give a number above 0")
    if bins is not None and bins < 2:
        raise DataError(f"bins is {bins}; with fewer than 2 the score says nothing, so give at least 2")
    check_scored(traces)
    check_enough(traces, p_strong=p_strong, recovery=recovery)
    labelled = [trace for trace in traces if trace.labelled]
    measurable = sum(trace.first_error is not None for trace in labelled) >= LEAST_LABELLED_WRONG
    bins = bins or (choose_bins(labelled, seed=seed) if measurable else 8)
    power = choose_power(labelled, bins, seed=seed) if measurable else 1.0
    given: dict[str, Any] = {
        "p_strong": p_strong,
        "tokens_per_step": tokens_per_step,
        "max_steps": max_steps,
        "recovery": recovery,
        "power": power,
    }
    found = estimate(traces, bins=bins, **given)
    intervals = bootstrap(traces, found.edges, samples=samples, seed=seed, **given)
    card = FitCard(
        weak,
        strong,
        scorer,
        config,
        labels,
        problems=len({trace.problem for trace in traces}),
        traces=len(traces),
        drafts=states_of(labelled),
        strong_steps=round(found.counts.strong_right + found.counts.strong_wrong),
        p_strong_given=p_strong is not None,
        intervals={name: value for name, value in intervals.items() if given.get(name) is None},
        lag_correlation=lag_correlation(labelled),
        power=power,
        held_out=held_out(labelled, bins, power, seed=seed) if measurable else None,
        held_out_pair=held_out(labelled, bins, seed=seed, pair=True) if measurable else None,
        difficulty=compare_difficulty(labelled, difficulty, seed=seed) if measurable and difficulty > 1 else None,
    )
    pair = pair_law(labelled) if measurable else None
    return RouterFit(found.p_weak, (found.p_strong,), found.hazard, found.law, found.tokens_per_step, card, pair)


def check_enough(traces: Sequence[FitTrace], *, p_strong: float | None = None, recovery: float | None = None) -> None:
    """Raise `DataError` that names each thing there is too little of, what is missing, and about how many traces."""
    if not traces:
        raise DataError("no traces to fit on; route some problems first (python -m programs.route)")
    labelled = [trace for trace in traces if trace.labelled]
    some_missing = len(labelled) < len(traces)
    if some_missing and recovery is None and all(trace.first_error is None for trace in labelled):
        raise DataError(
            "without labels it cannot be told how many wrong traces end right all the same, and p_weak depends on it; "
            "give recovery (0.0 where a wrong step always spoils the answer)"
        )
    has = _labels_needed(traces, labelled) if some_missing else _labels_there_are(labelled)
    if p_strong is None:
        has += _strong_steps(traces)
    has.append(("traces that ended by themselves", sum(trace.ended for trace in traces), LEAST_ENDED))
    has.append(("problems", len({trace.problem for trace in traces}), LEAST_PROBLEMS))
    short = [(name, count, least) for name, count, least in has if count < least]
    if short:
        parts = "; ".join(f"{name}: {count} of {least}, {least - count} missing" for name, count, least in short)
        about = ""
        if all(count for _, count, _ in short):
            more = max((least - count) * len(traces) / count for _, count, least in short)
            about = f"; at this rate about {int(np.ceil(more))} more traces like these"
        raise DataError(f"too little data to fit on: {parts}{about}")


Has = list[tuple[str, int, int]]  # what, how many there are, how many there must be


def _labels_there_are(labelled: Sequence[FitTrace]) -> Has:
    seen = states_of(labelled)
    return [(f"drafts {name}", n, least) for (name, least), n in zip(LEAST.items(), seen, strict=True)]


def _labels_needed(traces: Sequence[FitTrace], labelled: Sequence[FitTrace]) -> Has:
    """What a fit with labels missing needs: labelled wrong traces, or many outcomes and independent scores."""
    wrong = sum(trace.first_error is not None for trace in labelled)
    others = [trace for trace in traces if not trace.labelled and trace.solved is not None]
    solved = sum(trace.solved is True for trace in others)
    if wrong < LEAST_LABELLED_WRONG and not _independent(traces):
        value = lag_correlation(traces)
        seen = "too few solved traces to tell" if value is None else f"{value:.2f}, above {MOST_CORRELATION}"
        raise DataError(
            f"without labels the laws of wrong steps cannot be told: scores of neighbouring right steps correlate ("
            f"{seen}), and EM then takes a trace's own level for an error; label traces with a wrong step: {wrong} of "
            f"{LEAST_LABELLED_WRONG}, {LEAST_LABELLED_WRONG - wrong} missing"
        )
    least = LEAST_OUTCOMES if wrong < LEAST_LABELLED_WRONG else 0
    return [
        ("solved traces without labels", solved, least),
        ("failed traces without labels", len(others) - solved, least),
    ]


def _strong_steps(traces: Sequence[FitTrace]) -> Has:
    """Strong steps that say something of p_strong."""
    labelled = [trace for trace in traces if trace.labelled]
    usable = sum(
        step.replaced and (trace.first_error is None or i <= trace.first_error)
        for trace in labelled
        for i, step in enumerate(trace.steps)
    )
    if usable >= LEAST_STRONG or len(labelled) == len(traces):
        return [("labelled strong steps after right ones (or give p_strong)", usable, LEAST_STRONG)]
    with_strong = [t for t in traces if any(s.replaced for s in t.steps) and t.solved is not None]
    solved = sum(trace.solved is True for trace in with_strong)
    name = "{} traces with strong steps at random places (or give p_strong)"
    return [
        (name.format("solved"), solved, LEAST_STRONG),
        (name.format("failed"), len(with_strong) - solved, LEAST_STRONG),
    ]
