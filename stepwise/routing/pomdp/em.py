"""Traces as arrays, and the parameters from them: counted where all is labelled, else by EM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError
from stepwise.routing.pomdp.filter import ObservationLaw
from stepwise.routing.pomdp.fit_data import FitTrace

Array = NDArray[np.float64]

# The E-step, for all traces at once


class Padded(NamedTuple):
    """Traces as arrays (traces, steps), padded at the end; `bins` is -1 where there is no score.

    `draft` and `strong` are what is known: 1 right, 0 wrong, -1 not known or not written; likewise `solved` (traces,).

    >>> from stepwise.routing.pomdp.fit_data import FitStep
    >>> trace = FitTrace("p", (FitStep(score=0.9, draft_right=True), FitStep(score=0.2, draft_right=False)))
    >>> pad([trace], [0.5]).draft.tolist()
    [[1, 0]]
    """

    here: NDArray[np.bool_]  # whether the trace has this step
    bins: NDArray[np.int64]
    drafted: NDArray[np.bool_]
    replaced: NDArray[np.bool_]
    draft: NDArray[np.int64]
    strong: NDArray[np.int64]
    solved: NDArray[np.int64]


class Parameters(NamedTuple):
    """`rows` is P(bin | state), (3, bins): right, wrong earlier, wrong just now.

    >>> Parameters(0.8, 0.95, np.array([[0.2, 0.8], [0.7, 0.3], [0.9, 0.1]])).rows.shape
    (3, 2)
    """

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

    >>> from stepwise.routing.pomdp.fit_data import FitStep
    >>> trace = FitTrace("p", (FitStep(score=0.9, draft_right=True), FitStep(score=0.2, draft_right=False)))
    >>> pad([trace], [0.5]).bins.tolist()
    [[1, 0]]
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

    >>> from stepwise.routing.pomdp.fit_data import FitStep
    >>> data = pad([FitTrace("p", (FitStep(score=0.2),), solved=True, labelled=False)], [0.5])
    >>> at = Parameters(0.8, 0.95, np.array([[0.2, 0.8], [0.7, 0.3], [0.9, 0.1]]))
    >>> expect(data, at)[2].tolist()  # it was solved, so that no step is wrong
    [[0.0, 1.0]]
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
    """Counts of labelled traces: what is expected of them whatever the parameters.

    >>> from stepwise.routing.pomdp.fit_data import FitStep
    >>> trace = FitTrace("p", (FitStep(score=0.9, draft_right=True), FitStep(score=0.2, draft_right=False)))
    >>> count(pad([trace], [0.5]), 2).p_weak
    0.5
    """
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

    >>> from stepwise.routing.pomdp.fit_data import FitStep
    >>> right = FitTrace("p", (FitStep(score=0.9),) * 2, solved=True, labelled=False)
    >>> wrong = FitTrace("p", (FitStep(score=0.9), FitStep(score=0.1)), solved=False, labelled=False)
    >>> round(learn(pad([right] * 8 + [wrong] * 2, [0.5]), 2, p_strong=0.95).p_weak, 2)  # of 20 drafts 2 are wrong
    0.89
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
    """The law with these edges and rows.

    >>> law_of([0.0, 0.5, 1.0], np.array([[0.2, 0.8], [0.7, 0.3], [0.9, 0.1]])).rows[0]
    (0.2, 0.8)
    """
    return ObservationLaw(tuple(edges), tuple(map(tuple, rows.tolist())), pair)  # type: ignore[arg-type]


def smoothed(counts: Array, strength: float) -> Array:
    """P(bin | state) from counts (3, bins): shrunk toward all states' pooled law by `strength` scores each.

    A bin that no state was seen in gets a little of every state alike, so it says nothing about the state.

    >>> smoothed(np.array([[0.0, 10.0], [5.0, 5.0], [10.0, 0.0]]), 2.0).round(2).tolist()
    [[0.08, 0.92], [0.5, 0.5], [0.92, 0.08]]
    """
    pooled = counts.sum(axis=0) + 0.5
    pooled = pooled / pooled.sum()
    rows: Array = (counts + strength * pooled) / (counts.sum(axis=1, keepdims=True) + strength)
    return rows


def tempered(rows: Array, power: float) -> Array:
    """Laws whose likelihood ratios are those of `rows` (3, bins) to a `power` in (0, 1]; 1 leaves them as they are.

    Scores of one trace resemble one another, so a filter that takes each as news grows too sure; a power below 1 is the
    usual remedy where dependent evidence is multiplied (composite likelihood).

    >>> tempered(np.array([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]]), 0.5).round(2).tolist()
    [[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]
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


class RouterEstimate(NamedTuple):
    """The parameters alone; `edges` of the score's bins go from 0 to 1, `rows` is P(bin | state), (3, bins).

    Example:
        found = estimate(traces, bins=4)
        print(found.p_weak, found.p_strong, found.law.rows)
    """

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
