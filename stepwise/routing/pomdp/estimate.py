"""Estimating the routing model's parameters from traces: by counting where all steps are labelled, else by EM.

The chain goes from left to right: drafts are right with p_weak until the first wrong step that stands; a strong step in
a draft's place is right with p_strong; a draft's score depends on its state alone. A trace is solved iff no step that
stands is wrong (but for `recovery`). What a policy did on seeing the scores needs no model: it follows from what is
seen. With labels for all, one E-step counts and the estimate is the closed one; `evals/identify.py` shows what can be
told without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError
from stepwise.routing.pomdp.em import (
    Padded,
    RouterEstimate,
    count,
    expect,
    learn,
    pad,
    smoothed,
    tempered,
)
from stepwise.routing.pomdp.fit_data import FitTrace, lag_correlation

Array = NDArray[np.float64]
LEAST_STRONG = 30  # strong steps from which something can be said
MAX_CORRELATION = 0.1  # of neighbouring scores in the state "right", up to which EM needs no labels
_SHRINK = 1.0  # scores per bin that a law is shrunk by
_HAZARD_SHRINK = 2.0


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
) -> RouterEstimate:
    """The parameters from traces, without checks of how many there are; nan where p_strong has nothing to go by.

    Counts where all traces are labelled, else EM over what is seen (scores, answers, and the labels there are). Where
    scores of right steps correlate within a trace, EM goes astray on the laws of wrong steps, and adding traces does
    not help (`evals/identify.py`); those laws are then counted on the labelled traces alone. `recovery` None: the share
    of labelled wrong traces that were solved all the same, 0 where there are none. `power`: see `tempered`. `padded`:
    the same traces as arrays with these `edges`, where they are at hand.

    >>> from stepwise.routing.pomdp.fit_data import FitStep
    >>> trace = FitTrace("p", (FitStep(score=0.9, draft_right=True), FitStep(score=0.2, draft_right=False)))
    >>> estimate([trace], edges=(0.0, 0.5, 1.0), p_strong=0.9, tokens_per_step=20.0).p_weak
    0.5
    """
    edges = tuple(edges) if edges is not None else _score_edges(traces, bins)
    width, strength = len(edges) - 1, _SHRINK * (len(edges) - 1)
    data = padded or pad(traces, edges[1:-1])
    labelled = [trace for trace in traces if trace.labelled]
    if len(labelled) == len(traces):
        counts = count(data, width)
        rows = smoothed(counts.rows, strength)
    else:
        wrong = None
        if labelled and not independent(traces):
            wrong = smoothed(count(pad(labelled, edges[1:-1]), width).rows, strength)[1:]
        if recovery is None:
            ends = [trace.solved for trace in labelled if trace.first_error is not None and trace.solved is not None]
            recovery = sum(ends) / len(ends) if ends else 0.0
        learned = learn(data, width, p_strong=p_strong, recovery=recovery, strength=strength, wrong_rows=wrong)
        counts, _, _ = expect(data, learned, recovery)
        rows = learned.rows
    drafted = [trace for trace in traces if any(step.drafted for step in trace.steps)]
    return RouterEstimate(
        counts.p_weak,
        counts.p_strong if p_strong is None else p_strong,
        _hazard_of(drafted, max_steps),
        edges,
        tempered(rows, power),
        _tokens(traces) if tokens_per_step is None else tokens_per_step,
        counts,
    )


def _score_edges(traces: Sequence[FitTrace], bins: int) -> tuple[float, ...]:
    """Edges from 0 to 1 that put about as many drafts into each of at most `bins` bins."""
    scores = [step.score for trace in traces for step in trace.steps if step.score is not None]
    inner = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]).round(6))
    return (0.0, *(float(e) for e in inner if 0 < e < 1), 1.0)


def _hazard_of(traces: Sequence[FitTrace], max_steps: int = 30) -> tuple[float, ...]:
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
    ends = np.bincount(natural)
    at_risk = np.asarray([(lengths >= k).sum() for k in range(len(ends))])
    mean = ends.sum() / at_risk[1:].sum()
    hazard = (ends + _HAZARD_SHRINK * mean) / (at_risk + _HAZARD_SHRINK)
    return (0.0, *(float(h) for h in hazard[1:-1]), 1.0)


def independent(traces: Sequence[FitTrace]) -> bool:
    """Whether scores of neighbouring right steps are hardly correlated: of labelled traces and of solved ones.

    >>> from stepwise.routing.pomdp.fit_data import FitStep
    >>> independent([FitTrace("p", (FitStep(score=0.9, draft_right=True),) * 2)])  # too few to tell
    False
    """
    value = lag_correlation(traces)
    return value is not None and abs(value) <= MAX_CORRELATION


def _tokens(traces: Sequence[FitTrace]) -> float:
    """Mean tokens of a step: of the strong model's where enough are known, as they are paid for, else of all."""
    known = [(step.replaced, step.tokens) for t in traces for step in t.steps if step.tokens is not None]
    strong = [tokens for replaced, tokens in known if replaced]
    if not known:
        raise DataError("the traces do not say how many tokens their steps have; give tokens_per_step")
    return float(np.mean(strong if len(strong) >= LEAST_STRONG else [tokens for _, tokens in known]))
