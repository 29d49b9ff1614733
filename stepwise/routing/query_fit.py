"""Fitting the query-level baselines on graded traces, always of other problems than those to measure on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from stepwise.errors import DataError
from stepwise.routing.query import Cascade, QueryClassifier, QueryRandom, buckets
from stepwise.routing.signal_policies import threshold_at
from stepwise.seeds import stable_hash
from stepwise.types import Problem, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
_FOLDS = 5
AnyQuery = TypeVar("AnyQuery", QueryRandom, QueryClassifier, Cascade)


def question_key(problem: Problem) -> str:
    """Twelve hex digits of the words of a question: the same problem under another id is the same problem."""
    return f"{stable_hash(' '.join(problem.question.lower().split())):016x}"[:12]


def refuse_overlap(fitted_on: Iterable[str], problems: Iterable[Problem], what: str = "this policy") -> None:
    """Raises `DataError` where a problem's question is among those that `what` was fitted on (their `question_key`)."""
    known = set(fitted_on)
    shared = [problem.id for problem in problems if question_key(problem) in known]
    if shared:
        raise DataError(f"{what} was fitted on {len(shared)} of these problems, such as {shared[0]!r}; take others")


def fit_query_classifier(
    weak: Sequence[Trace],
    strong: Sequence[Trace] | None = None,
    *,
    measured_on: Iterable[Problem] = (),
    size: int = 1024,
) -> QueryClassifier:
    """A `QueryClassifier` from traces of the weak model alone and, where there are any, of the strong model alone.

    A problem needs the strong model iff the weak one's answer is wrong and, with `strong`, the strong one's right. The
    strength of the ridge penalty is that which foretells held-out fifths of these problems best.

    Args:
        weak: by "never", one or more for each problem.
        strong: by "always", for the same problems.
        measured_on: problems that the policy will be compared on; none of them may be among those of the traces.
        size: number of buckets.

    Raises `DataError` for an overlap, for problems without a gold answer, for a problem of `weak` that `strong` lacks,
    for fewer than 20 problems and where all or none of them need the strong model.
    """
    import numpy as np

    fitted_on = sorted({question_key(trace.problem) for trace in weak})
    refuse_overlap(fitted_on, measured_on, "the classifier")
    needed = _needed(weak, strong)
    if len(fitted_on) < 20 or len(set(needed)) < 2:
        raise DataError(
            f"{len(fitted_on)} problems, of which {sum(needed)} of {len(needed)} traces need the strong model, are too "
            "few to tell apart: give at least 20 problems, some of them needing it and some not"
        )
    x = np.zeros((len(weak), size))
    for row, trace in zip(x, weak, strict=True):
        where, row_height = buckets(trace.problem.question, size)
        row[where] = row_height
    y = np.asarray(needed, dtype=np.float64)
    fold = np.asarray([stable_hash(question_key(t.problem), "fold") % _FOLDS for t in weak])
    losses = {penalty: _held_out_loss(x, y, fold, penalty) for penalty in _PENALTIES}
    weights, bias = _logistic(x, y, min(losses, key=lambda penalty: losses[penalty]))
    rounded = tuple(round(float(value), 6) for value in weights)
    return QueryClassifier(rounded, round(bias, 6), fitted_on=tuple(fitted_on))


def calibrated(
    policy: AnyQuery, traces: Sequence[Trace], share: float, *, measured_on: Iterable[Problem] = ()
) -> AnyQuery:
    """The policy at the operating point that hands about `share` of the problems of `traces` over, at most that.

    Args:
        policy: a random mix, a classifier, or a cascade.
        traces: of other problems than those to measure on; for a cascade made by itself at threshold 0, so that the
            checks of its solutions are in them (a solution without an answer is handed over at any threshold). For the
            other two any traces of these problems, for a classifier other problems than it was fitted on.
        share: of the problems, in [0, 1].
        measured_on: problems that the policy will be compared on.

    Raises `DataError` for an overlap, a share out of range, no traces, and traces without the cascade's check.
    """
    problems = [trace.problem for trace in traces]
    keys = tuple(sorted({question_key(problem) for problem in problems}))
    refuse_overlap(keys, measured_on, "the operating point")
    if not traces or not 0 <= share <= 1:
        raise DataError(f"calibrated: share is {share} of {len(traces)} traces; give a share in [0, 1] and traces")
    if isinstance(policy, QueryRandom):
        return policy.at(share)
    if isinstance(policy, QueryClassifier):
        refuse_overlap(policy.fitted_on, problems, "the classifier")  # its chances there are bolder than elsewhere
        least = threshold_at("high", [policy.chance(problem.question) for problem in problems], share)
        return dataclasses.replace(policy, threshold=min(1.0, max(0.0, least)), calibrated_on=keys)
    least = threshold_at("low", [policy.checked(trace) for trace in traces], share)
    return dataclasses.replace(policy, threshold=min(1.01, max(0.0, least)), calibrated_on=keys)


def _needed(weak: Sequence[Trace], strong: Sequence[Trace] | None) -> list[bool]:
    """For each weak trace, whether its problem needs the strong model."""
    solved: dict[str, bool] = {}
    for trace in strong or ():
        solved[question_key(trace.problem)] = _right(trace) or solved.get(question_key(trace.problem), False)
    lacking = [trace.problem.id for trace in weak if strong is not None and question_key(trace.problem) not in solved]
    if lacking:
        raise DataError(f"{len(lacking)} problems, such as {lacking[0]!r}, have no trace of the strong model; add them")
    return [not _right(trace) and solved.get(question_key(trace.problem), True) for trace in weak]


def _right(trace: Trace) -> bool:
    from stepwise.routing.compare import verdict_of

    verdict = verdict_of(trace)
    if not verdict:
        raise DataError(f"problem {trace.problem.id!r} has no gold answer; a fit needs to know which answers are right")
    return verdict == "CORRECT"


def _logistic(x: NDArray[Any], y: NDArray[Any], penalty: float) -> tuple[NDArray[Any], float]:
    """Weights and bias of the ridge-penalised logistic regression: mean loss + penalty / 2 |weights|^2.

    By Newton's method in the span of the rows, since there are fewer problems than buckets: weights = x.T a.
    """
    import numpy as np

    n = len(y)
    gram = x @ x.T
    a, bias = np.zeros(n), 0.0
    for _ in range(100):
        p = 1.0 / (1.0 + np.exp(-np.clip(gram @ a + bias, -500, 500)))
        # At the optimum a = (y - p) / (n penalty); the step solves the linearised conditions.
        w = np.maximum(p * (1 - p), 1e-9)
        system = np.block([[gram * w[:, None] + n * penalty * np.eye(n), w[:, None]], [w[None] @ gram, w.sum()]])
        wrong = np.concatenate([y - p - n * penalty * a, [(y - p).sum()]])
        move = np.linalg.solve(system, wrong)
        scale = min(1.0, 5.0 / (np.abs(gram @ move[:-1] + move[-1]).max() + 1e-12))
        a, bias = a + scale * move[:-1], bias + scale * float(move[-1])
        if np.abs(wrong).max() < 1e-9:
            break
    return x.T @ a, bias


def _held_out_loss(x: NDArray[Any], y: NDArray[Any], fold: NDArray[Any], penalty: float) -> float:
    """Mean negative log-likelihood, nats, of each fold under a fit to the others."""
    import numpy as np

    loss = 0.0
    for number in range(_FOLDS):
        out = fold == number
        if not out.any() or out.all():
            continue
        weights, bias = _logistic(x[~out], y[~out], penalty)
        z = x[out] @ weights + bias
        loss += float((np.logaddexp(0, z) - y[out] * z).sum())
    return loss / len(y)
