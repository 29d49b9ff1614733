"""Learning the routing model's parameters by expectation-maximization, with step labels for all, some or no traces.

The chain goes from left to right: drafts are right with p_weak until the first wrong step that stands; a strong step in
a draft's place is right with p_strong; a draft's score depends on its state alone. A trace is solved iff no step that
stands is wrong (but for `recovery`). What a policy did on seeing the scores needs no model: it follows from what is
seen.

With labels for all, one pass counts and the estimate is the closed one. `evals/identify.py` shows what is found
without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError
from stepwise.routing.fit_data import FitTrace

Array = NDArray[np.float64]


class Padded(NamedTuple):
    """Traces as arrays (traces, steps), padded at the end; `bins` is -1 where there is no score.

    `draft` and `strong` are what is known: 1 right, 0 wrong, -1 not known or not written; likewise `solved` (traces,).
    """

    here: NDArray[np.bool_]
    bins: NDArray[np.int64]
    drafted: NDArray[np.bool_]
    replaced: NDArray[np.bool_]
    draft: NDArray[np.int64]
    strong: NDArray[np.int64]
    solved: NDArray[np.int64]

    def take(self, which: Sequence[int]) -> Padded:
        """The traces with these numbers, which may repeat."""
        at = list(which)
        return self._replace(**{name: part[at] for name, part in self._asdict().items()})


class Parameters(NamedTuple):
    """`rows` is P(bin | state), (3, bins): right, wrong earlier, wrong just now."""

    p_weak: float
    p_strong: float
    rows: Array


class Counts(NamedTuple):
    """Expected counts: right and wrong drafts and strong steps after right steps, and scores by state (3, bins)."""

    weak_right: float
    weak_wrong: float
    strong_right: float
    strong_wrong: float
    rows: Array

    @property
    def p_weak(self) -> float:
        """Share of right drafts; nan without drafts."""
        total = self.weak_right + self.weak_wrong
        return self.weak_right / total if total else float("nan")

    @property
    def p_strong(self) -> float:
        """Share of right strong steps; nan without strong steps."""
        total = self.strong_right + self.strong_wrong
        return self.strong_right / total if total else float("nan")


@dataclass(frozen=True, eq=False)
class Learned:
    """What EM came to: parameters, log-likelihood of all that was seen, and rounds until it stopped rising."""

    parameters: Parameters
    log_likelihood: float
    rounds: int
    converged: bool


def pad(traces: Sequence[FitTrace], edges: Sequence[float], *, outcomes: bool = True) -> Padded:
    """Traces as arrays; scores are binned at `edges` (inner ones, a score on an edge lies in the upper bin).

    Labels are used where a trace has them. `outcomes` False: whether it was solved is left out, as for labelled traces
    always: there the labels say more.
    """
    shape = (len(traces), max(len(trace.steps) for trace in traces))
    here, drafted, replaced = (np.zeros(shape, dtype=bool) for _ in range(3))
    bins, draft, strong = (np.full(shape, -1) for _ in range(3))
    solved = np.full(len(traces), -1)
    for n, trace in enumerate(traces):
        if outcomes and not trace.labelled and trace.solved is not None:
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


def expect(data: Padded, at: Parameters, recovery: float = 0.0) -> tuple[Counts, float, Array]:
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
    before = np.cumsum(log_stays, axis=1)
    tail = np.cumsum(log_after[:, ::-1], axis=1)[:, ::-1]
    zero = np.zeros((len(data.here), 1))
    log_joint = np.hstack([zero, before[:, :-1]]) + log_falls + np.hstack([tail[:, 1:], zero])
    log_joint = np.where(data.here, log_joint, -np.inf)
    none = before[:, -1:].copy()
    with np.errstate(divide="ignore"):
        log_joint += np.log(np.select([data.solved == 1, data.solved == 0], [recovery, 1 - recovery], 1.0))[:, None]
        none += np.log(np.where(data.solved == 0, 0.0, 1.0))[:, None]
    log_all = np.hstack([log_joint, none])
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
    counts = Counts(float(weak_right.sum()), float(weak_wrong.sum()), float(strong_right), float(strong_wrong), rows)
    return counts, float((peak + np.log(total)).sum()), first


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
    ratio = np.divide(rows, middle, out=np.ones_like(rows), where=middle > 0)
    weakened = middle * ratio**power
    result: Array = weakened / weakened.sum(axis=1, keepdims=True)
    return result


def ordered(rows: Array, weights: Array) -> Array:
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
    return np.stack([out[0], out[1], out[2]])


def _falling(values: Array, weights: Array) -> Array:
    """Weighted least-squares fit that never rises (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for value, weight in zip(values, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            v, w, n = blocks.pop()
            u, x, m = blocks.pop()
            blocks.append([(u * x + v * w) / (x + w), x + w, m + n])
    return np.concatenate([np.full(int(n), v) for v, _, n in blocks])


def learn(
    data: Padded,
    width: int,
    *,
    p_strong: float | None = None,
    monotone: bool = True,
    recovery: float = 0.0,
    strength: float = 5.0,
    rounds: int = 500,
    tolerance: float = 1e-7,
    wrong_rows: Array | None = None,
    start: Parameters | None = None,
) -> Learned:
    """EM from `start` (default: laws that fall and rise with the score). `p_strong` None: it is learned too.

    The smoothing is a prior, so what rises in each round is the likelihood times it; the ordering is a projection after
    each round. `wrong_rows` (2, bins) are laws of the wrong states that are known. Stops when the log-likelihood per
    trace changes by less than `tolerance`.
    """
    ramp = np.linspace(0.5, 1.5, width)
    at = start or Parameters(0.8, 0.95 if p_strong is None else p_strong, np.stack([ramp, 2 - ramp, 2 - ramp]) / width)
    if p_strong is not None:
        at = at._replace(p_strong=p_strong)
    last, done = -np.inf, 0
    value: Any = last
    for done in range(1, rounds + 1):
        counts, value, _ = expect(data, at, recovery)
        rows = smoothed(counts.rows, strength)
        rows = ordered(rows, counts.rows) if monotone else rows
        rows = rows if wrong_rows is None else np.concatenate([rows[:1], wrong_rows])
        learned = counts.p_strong if p_strong is None and counts.strong_right + counts.strong_wrong else at.p_strong
        at = Parameters(counts.p_weak, learned, rows)
        if abs(value - last) < tolerance * len(data.here):
            return Learned(at, value, done, True)
        last = value
    return Learned(at, value, done, False)
