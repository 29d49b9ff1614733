"""The operating point at which a policy for whole problems hands a share of them over, read off traces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from stepwise.errors import DataError
from stepwise.models.scorers.judge import parse
from stepwise.routing.policy import Policy
from stepwise.routing.query import Cascade, QueryClassifier, QueryRandom, question_key, refuse_overlap
from stepwise.routing.signal_policies import threshold_at
from stepwise.types import Problem, Trace


def at_share(
    policy: QueryRandom | QueryClassifier | Cascade,
    traces: Sequence[Trace],
    share: float,
    *,
    measured_on: Iterable[Problem] = (),
) -> Policy:
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
    refuse_overlap(map(question_key, problems), measured_on, "the operating point")
    if not traces or not 0 <= share <= 1:
        raise DataError(f"at_share: share is {share} of {len(traces)} traces; give a share in [0, 1] and traces")
    if isinstance(policy, QueryRandom):
        return policy.at(share)
    if isinstance(policy, QueryClassifier):
        refuse_overlap(policy.fitted_on, problems, "the classifier")  # its chances there are bolder than elsewhere
        least = threshold_at("high", [policy.chance(problem.question) for problem in problems], share)
        return dataclasses.replace(policy, threshold=min(1.0, max(0.0, least)))
    least = threshold_at("low", [checked(policy, trace) for trace in traces], share)
    return dataclasses.replace(policy, threshold=min(1.01, max(0.0, least)))


def checked(policy: Cascade, trace: Trace) -> float:
    """The check of the weak model's solution as a trace of `policy` at threshold 0 has it; -1 without an
    answer. Raises `DataError` where there is none.
    """
    if trace.finish != "answer" or any(step.author == "strong" for step in trace.steps):
        return -1.0
    if policy.check == "least_score":
        values = [step.score for step in trace.steps if step.score is not None]
    else:
        texts = [part.text for part in trace.abandoned if part.decision.startswith("verification")]
        values = [float(parse(text, "verdict") == 1.0) for text in texts]
    if not values:
        raise DataError(
            f"the trace of problem {trace.problem.id!r} has no {policy.check.replace('_', ' ')}; make it with this "
            "cascade at threshold 0"
        )
    return min(values) if policy.check == "least_score" else sum(values) / policy.samples
