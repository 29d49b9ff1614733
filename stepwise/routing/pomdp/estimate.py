"""Estimating the routing model's parameters from traces: by counting where all steps are labelled, else by EM.

The chain goes from left to right: drafts are right with p_weak until the first wrong step that stands; a strong step in
a draft's place is right with p_strong; a draft's score depends on its state alone. A trace is solved iff no step that
stands is wrong (but for `recovery`). What a policy did on seeing the scores needs no model: it follows from what is
seen. With labels for all, one E-step counts and the estimate is the closed one; `evals/identify.py` shows what can be
told without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.pomdp.fit_data import FitTrace, lag_correlation

Array = NDArray[np.float64]
LEAST_STRONG = 30  # strong steps from which something can be said
MAX_CORRELATION = 0.1  # of neighbouring scores in the state "right", up to which EM needs no labels
_SHRINK = 1.0  # scores per bin that a law is shrunk by
_HAZARD_SHRINK = 2.0


class RouterEstimate(NamedTuple):
    """The parameters alone; `edges` of the score's bins go from 0 to 1, `rows` is P(bin | state), (3, bins)."""

    p_weak: float
    p_strong: float
    hazard: tuple[float, ...]
    edges: tuple[float, ...]
    rows: Array
    tokens_per_step: float
    counts: _Counts

    @property
    def law(self) -> ObservationLaw:
        """The observation law of the current score."""
        return law_of(self.edges, self.rows)


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
    """Whether scores of neighbouring right steps are hardly correlated: of labelled traces and of solved ones."""
    value = lag_correlation(traces)
    return value is not None and abs(value) <= MAX_CORRELATION


def _tokens(traces: Sequence[FitTrace]) -> float:
    """Mean tokens of a step: of the strong model's where enough are known, as they are paid for, else of all."""
    known = [(step.replaced, step.tokens) for t in traces for step in t.steps if step.tokens is not None]
    strong = [tokens for replaced, tokens in known if replaced]
    if not known:
        raise DataError("the traces do not say how many tokens their steps have; give tokens_per_step")
    return float(np.mean(strong if len(strong) >= LEAST_STRONG else [tokens for _, tokens in known]))


# The E-step, for all traces at once


class Padded(NamedTuple):
    """Traces as arrays (traces, steps), padded at the end; `bins` is -1 where there is no score.

    `draft` and `strong` are what is known: 1 right, 0 wrong, -1 not known or not written; likewise `solved` (traces,).
    """

    here: NDArray[np.bool_]  # whether the trace has this step
    bins: NDArray[np.int64]
    drafted: NDArray[np.bool_]
    replaced: NDArray[np.bool_]
    draft: NDArray[np.int64]
    strong: NDArray[np.int64]
    solved: NDArray[np.int64]


class Parameters(NamedTuple):
    """`rows` is P(bin | state), (3, bins): right, wrong earlier, wrong just now."""

    p_weak: float
    p_strong: float
    rows: Array


class _Counts(NamedTuple):
    """Expected counts: right and wrong drafts and strong steps after right steps, and scores by state (3, bins)."""

    weak_right: float
    weak_wrong: float
    strong_right: float
    strong_wrong: float
    rows: Array

    @property
    def p_weak(self) -> float:
        """Share of right drafts; nan without drafts."""
        return _share(self.weak_right, self.weak_wrong)

    @property
    def p_strong(self) -> float:
        """Share of right strong steps; nan without strong steps."""
        return _share(self.strong_right, self.strong_wrong)


def _share(right: float, wrong: float) -> float:
    return right / (right + wrong) if right + wrong else float("nan")


def pad(traces: Sequence[FitTrace], edges: Sequence[float]) -> Padded:
    """Traces as arrays; scores are binned at `edges` (inner ones, a score on an edge lies in the upper bin).

    Labels are used where a trace has them; else whether it was solved is, as labels say more than that.
    """
    shape = (len(traces), max(len(trace.steps) for trace in traces))
    here, drafted, replaced = (np.zeros(shape, dtype=bool) for _ in range(3))
    bins, draft, strong = (np.full(shape, -1) for _ in range(3))
    solved = np.full(len(traces), -1)
    for n, trace in enumerate(traces):
        if not trace.labelled and trace.solved is not None:
            solved[n] = trace.solved
        known = trace.labelled
        for t, step in enumerate(trace.steps):
            here[n, t], drafted[n, t], replaced[n, t] = True, step.drafted, step.replaced
            if step.score is not None:
                bins[n, t] = np.searchsorted(edges, step.score, side="right")
            if known and step.drafted and step.draft_right is not None:
                draft[n, t] = step.draft_right
            if known and step.replaced and step.strong_right is not None:
                strong[n, t] = step.strong_right
            known = known and step.right is True
    return Padded(here, bins, drafted, replaced, draft, strong, solved)


def expect(data: Padded, at: Parameters, recovery: float = 0.0) -> tuple[_Counts, float, Array]:
    """Expected counts, log-likelihood, and P(first wrong step that stands | all seen), (traces, steps + 1).

    The last column is that there is none. `recovery` is P(solved | a wrong step stands).
    """
    width = at.rows.shape[1]
    seen = data.bins >= 0
    law = np.where(seen[None], at.rows[:, np.clip(data.bins, 0, width - 1)], 1.0)  # (3, traces, steps)
    draft_right = at.p_weak * law[0] * (data.draft != 0)
    draft_wrong = (1 - at.p_weak) * law[2] * (data.draft != 1)
    either = np.where(data.drafted, draft_right + draft_wrong, 1.0)
    stays = np.where(data.replaced, either * at.p_strong * (data.strong != 0), draft_right)
    falls = np.where(data.replaced, either * (1 - at.p_strong) * (data.strong != 1), draft_wrong)
    after = np.where(data.drafted, law[1], 1.0)
    with np.errstate(divide="ignore"):
        log_stays, log_falls, log_after = (np.where(data.here, np.log(f), 0.0) for f in (stays, falls, after))
        wrong_end = np.log(np.select([data.solved == 1, data.solved == 0], [recovery, 1 - recovery], 1.0))[:, None]
        right_end = np.log(np.where(data.solved == 0, 0.0, 1.0))[:, None]
    # The first wrong step at t: right before it, wrong at it, wrong earlier from there on.
    before = np.cumsum(log_stays, axis=1)  # (traces, steps): log P(right up to and including step t)
    tail = np.cumsum(log_after[:, ::-1], axis=1)[:, ::-1]  # the same of all from t on, after a wrong step
    zero = np.zeros((len(data.here), 1))
    log_joint = np.hstack([zero, before[:, :-1]]) + log_falls + np.hstack([tail[:, 1:], zero])
    log_joint = np.where(data.here, log_joint, -np.inf) + wrong_end
    log_all = np.hstack([log_joint, before[:, -1:] + right_end])  # (traces, steps + 1)
    peak = log_all.max(axis=1, keepdims=True)
    if not np.isfinite(peak).all():
        raise DataError(
            f"{int((~np.isfinite(peak)).sum())} traces cannot be under the model; check labels and outcomes"
        )
    weight = np.exp(log_all - peak)
    total = weight.sum(axis=1, keepdims=True)
    first = weight / total
    reached = np.cumsum(first[:, ::-1], axis=1)[:, ::-1][:, :-1] * data.here  # prefix before this step is right
    error = first[:, :-1]
    gone = np.where(data.here, 1 - reached, 0.0)
    share = np.divide(draft_right, draft_right + draft_wrong, out=np.zeros_like(law[0]), where=either > 0)
    weak_right = np.where(data.replaced, reached * share, reached - error) * data.drafted
    weak_wrong = np.where(data.replaced, reached * (1 - share), error) * data.drafted
    by_state = (weak_right, gone * data.drafted, weak_wrong)
    rows = np.stack([np.bincount(data.bins[seen], n[seen], width).astype(float) for n in by_state])
    strong_right, strong_wrong = ((reached - error) * data.replaced).sum(), (error * data.replaced).sum()
    counts = _Counts(float(weak_right.sum()), float(weak_wrong.sum()), float(strong_right), float(strong_wrong), rows)
    return counts, float((peak + np.log(total)).sum()), first


def count(data: Padded, width: int) -> _Counts:
    """Counts of labelled traces: what is expected of them whatever the parameters."""
    return expect(data, Parameters(0.5, 0.5, np.full((3, width), 1 / width)))[0]


def learn(
    data: Padded,
    width: int,
    *,
    p_strong: float | None = None,
    monotone: bool = True,
    recovery: float = 0.0,
    strength: float = 5.0,
    wrong_rows: Array | None = None,
) -> Parameters:
    """EM from laws that fall and rise with the score. `p_strong` None: it is learned too.

    The smoothing is a prior, so what rises in each round is the likelihood times it; the ordering (`monotone`) is a
    projection after each round. `wrong_rows` (2, bins) are laws of the wrong states that are known. Stops when the
    log-likelihood per trace changes by less than 1e-7, after 500 rounds at the latest.
    """
    ramp = np.linspace(0.5, 1.5, width)
    at = Parameters(0.8, 0.95 if p_strong is None else p_strong, np.stack([ramp, 2 - ramp, 2 - ramp]) / width)
    last = -np.inf
    for _ in range(500):
        counts, value, _ = expect(data, at, recovery)
        rows = smoothed(counts.rows, strength)
        rows = _ordered(rows, counts.rows) if monotone else rows
        rows = rows if wrong_rows is None else np.concatenate([rows[:1], wrong_rows])
        strong = counts.p_strong if p_strong is None and counts.strong_right + counts.strong_wrong else at.p_strong
        at = Parameters(counts.p_weak, strong, rows)
        if abs(value - last) < 1e-7 * len(data.here):
            break
        last = value
    return at


# Laws of the score, as rows (3, bins)


def law_of(edges: Sequence[float], rows: Array, pair: bool = False) -> ObservationLaw:
    """The law with these edges and rows."""
    return ObservationLaw(tuple(edges), tuple(map(tuple, rows.tolist())), pair)  # type: ignore[arg-type]


def smoothed(counts: Array, strength: float) -> Array:
    """P(bin | state) from counts (3, bins): shrunk toward all states' pooled law by `strength` scores each.

    A bin that no state was seen in gets a little of every state alike, so it says nothing about the state.
    """
    pooled = counts.sum(axis=0) + 0.5
    pooled = pooled / pooled.sum()
    rows: Array = (counts + strength * pooled) / (counts.sum(axis=1, keepdims=True) + strength)
    return rows


def tempered(rows: Array, power: float) -> Array:
    """Laws whose likelihood ratios are those of `rows` (3, bins) to a `power` in (0, 1]; 1 leaves them as they are.

    Scores of one trace resemble one another, so a filter that takes each as news grows too sure; a power below 1 is the
    usual remedy where dependent evidence is multiplied (composite likelihood).
    """
    middle = rows.mean(axis=0)
    weakened = middle * np.divide(rows, middle, out=np.ones_like(rows), where=middle > 0) ** power
    result: Array = weakened / weakened.sum(axis=1, keepdims=True)
    return result


def _ordered(rows: Array, weights: Array) -> Array:
    """The nearest rows with a monotone likelihood ratio: the higher a score, the likelier the state "right".

    Isotonic regression of each wrong state's share against "right" over the bins (Dykstra, Kochar and Robertson, 1995,
    for two ordered laws); `weights` (3, bins) are the counts behind the rows.
    """
    right = rows[0]
    out = [right]
    for state in (1, 2):
        ratio = np.divide(rows[state], right, out=np.full_like(right, 1e6), where=right > 0)
        flat = _falling(ratio, weights[0] + weights[state] + 1e-9)
        out.append(right * flat / (right * flat).sum())
    return np.stack(out)


def _falling(values: Array, weights: Array) -> Array:
    """Weighted least-squares fit that never rises (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (u, x, m), (v, w, n) = blocks[-2:]
            blocks[-2:] = [((u * x + v * w) / (x + w), x + w, m + n)]
    return np.concatenate([np.full(n, v) for v, _, n in blocks])
