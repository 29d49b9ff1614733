"""Query-level baselines: one model for a whole problem, chosen at random, by the question, or by checking an answer.

What differs from the papers:
1. `QueryClassifier` has RouteLLM's idea (arXiv 2406.18665): a model of "the strong model is needed", trained on labels,
   from the question alone. RouteLLM learns from human preferences with embeddings or a language model; here it is a
   logistic regression on hashed word n-grams, fitted on the graded traces of the two models at hand.
2. `Cascade` has AutoMix's (arXiv 2310.12963): the weak model solves, the solution is checked, and below a threshold the
   strong model solves the problem anew. AutoMix's check has three examples in its prompt and its router may be a POMDP;
   here the check has none and the router is the threshold. The scorer's least score is a second kind of check.
3. The weak model's discarded solution is paid for, in tokens and in parameter-tokens.
4. Fits and operating points are always of other problems than those to measure on (`refuse_overlap`).
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stepwise.errors import DataError
from stepwise.models.scorers.judge import parse
from stepwise.records import record
from stepwise.routing.compare import verdict_of
from stepwise.routing.policies import Random
from stepwise.routing.policy import Action, HandOver, Keep, Look, Policy, View, When
from stepwise.routing.signal_policies import threshold_at
from stepwise.seeds import stable_hash
from stepwise.types import Problem, Trace

_WORD = re.compile(r"\d+|[^\W\d]+|\S")
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
_FOLDS = 5
_Array = NDArray[np.float64]


@record(allow_inf_nan=False)
class QueryRandom(Random):
    """Each problem goes to the strong model whole with probability `p`; with one seed a higher rate only adds.

    Example:
        >>> QueryRandom(1.0).decide(View(Problem("p", "?"))) == HandOver()
        True
    """

    name: ClassVar[str] = "query_random"
    when: ClassVar[When] = "question"

    def decide(self, view: View) -> Action:
        """Hand over with probability `p`."""
        action = super().decide(view)
        return action if isinstance(action, Keep) else HandOver(action.reason)


@record(allow_inf_nan=False)
class QueryClassifier(Policy):
    """Hands a problem over iff its chance to need the strong model, by its question, is above `threshold`, strictly.

    Args:
        weights: of the hashed n-grams, one for each bucket; `fit_query_classifier` makes them.
        bias: added to their sum.
        threshold: in [0, 1]; the operating point.
        fitted_on: keys of the questions that the weights were fitted on; see `refuse_overlap`.

    Example:
        >>> round(QueryClassifier((0.0,) * 8, bias=1.0).chance("How many?"), 3)
        0.731
    """

    weights: Annotated[tuple[float, ...], Field(min_length=1)] = dataclasses.field(repr=False)
    bias: float
    threshold: float = Field(default=0.5, ge=0, le=1)
    fitted_on: tuple[str, ...] = Field(default=(), repr=False)

    name: ClassVar[str] = "query_classifier"
    when: ClassVar[When] = "question"
    dial: ClassVar[str] = "threshold"

    def chance(self, question: str) -> float:
        """The chance that this question needs the strong model, in [0, 1]."""
        where, height = _buckets(question, len(self.weights))
        total = self.bias + height * sum(self.weights[i] for i in where)
        return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, total))))

    def decide(self, view: View) -> Action:
        """Hand over iff the chance is above the threshold."""
        chance = self.chance(view.problem.question)
        above = chance > self.threshold
        reason = f"needs the strong model with {chance:.3f} {'>' if above else '<='} {self.threshold:.3f}"
        return HandOver(reason) if above else Keep(reason)


@record(allow_inf_nan=False)
class Cascade(Policy):
    """The weak model solves; a solution whose check is below `threshold`, strictly, or that has no answer is handed
    over: the strong model solves the problem anew.

    Args:
        check: "verification", the share of `samples` answers of the weak model that call its own solution right (those
            that cannot be read count as no), or "least_score", the least of the scorer's scores.
        threshold: in [0, 1.01]; the operating point. Above 1 everything is handed over.
        samples: of the verification.

    Example:
        >>> Cascade(threshold=0.5).decide(View(Problem("p", "?"), ended="length")).reason
        "the weak model's solution ended in 'length'"
    """

    check: Literal["verification", "least_score"] = "verification"
    threshold: float = Field(default=0.5, ge=0, le=1.01)
    samples: int = Field(default=8, ge=1, le=64)

    name: ClassVar[str] = "cascade"
    when: ClassVar[When] = "solution"
    dial: ClassVar[str] = "threshold"

    @property
    def looks(self) -> Mapping[str, str]:
        """See `Policy`."""
        return {"verification" if self.check == "verification" else "scores": self.name}

    @property
    def calls_per_step(self) -> Mapping[str, int]:
        """See `Policy`; the verification, which comes once, counts as if it came at every step."""
        return {"weak": 1 + (self.samples if self.check == "verification" else 0)}

    @property
    def family(self) -> str:
        """What a comparison calls it at any threshold."""
        return f"{self.name} by {self.check.replace('_', ' ')}"

    def decide(self, view: View) -> Action | Look:
        """Check the solution, then keep it or hand the problem over."""
        if view.ended != "answer":
            return HandOver(f"the weak model's solution ended in {view.ended!r}")
        if not view.looked.issuperset(self.looks):
            return Look("verification", self.samples) if self.check == "verification" else Look("scores")
        if self.check == "verification":
            value = sum(said is True for said in view.verification) / self.samples
        else:
            value = min((score for score in view.scores if score is not None), default=0.0)
        below = value < self.threshold
        reason = f"{self.check.replace('_', ' ')} {value:.3f} {'<' if below else '>='} {self.threshold:.3f}"
        return HandOver(reason) if below else Keep(reason)


def question_key(problem: Problem) -> str:
    """Twelve hex digits of the words of a question: the same problem under another id is the same problem.

    Example:
        >>> question_key(Problem("a", "How  many?")) == question_key(Problem("b", "how many?"))
        True
    """
    return f"{stable_hash(' '.join(problem.question.lower().split())):016x}"[:12]


def refuse_overlap(fitted_on: Iterable[str], problems: Iterable[Problem], what: str = "this policy") -> None:
    """Raises `DataError` where a problem's question is among those that `what` was fitted on (their `question_key`).

    >>> refuse_overlap({question_key(Problem("a", "How many?"))}, [Problem("b", "How much?")])
    """
    keys = set(fitted_on)
    shared = [problem.id for problem in problems if question_key(problem) in keys]
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

    Example:
        weak, strong = (router.with_policy(name).solve_all(problems) for name in ("never", "always"))
        policy = fit_query_classifier(weak, strong, measured_on=test)
    """
    keys = [question_key(trace.problem) for trace in weak]
    fitted_on = sorted(set(keys))
    refuse_overlap(fitted_on, measured_on, "the classifier")
    needed = _needed(weak, strong)
    if len(fitted_on) < 20 or len(set(needed)) < 2:
        raise DataError(
            f"{len(fitted_on)} problems, of which {sum(needed)} of {len(needed)} traces need the strong model, are too "
            "few to tell apart: give at least 20 problems, some of them needing it and some not"
        )
    x, y = np.zeros((len(weak), size)), np.asarray(needed, dtype=np.float64)
    for row, trace in zip(x, weak, strict=True):
        where, height = _buckets(trace.problem.question, size)
        row[where] = height
    fold = np.asarray([stable_hash(key, "fold") % _FOLDS for key in keys])
    penalty = min(_PENALTIES, key=lambda penalty: _held_out_loss(x, y, fold, penalty))
    weights, bias = _logistic(x, y, penalty)
    rounded = tuple(round(float(value), 6) for value in weights)
    return QueryClassifier(rounded, round(bias, 6), fitted_on=tuple(fitted_on))


def _buckets(question: str, size: int) -> tuple[list[int], float]:
    """Which of `size` buckets the 1- and 2-grams of a question's words fall into, and the height 1 / sqrt(how many).

    Words are taken in lower case and numbers by their count of digits, so that it is the kind of question that counts.
    The numbers of sentences and of numbers are n-grams too: they say how long a solution will be.
    """
    words = [f"<{len(word)} digits>" if word.isdigit() else word for word in _WORD.findall(question.lower())]
    grams = {*words, *(f"{a} {b}" for a, b in pairwise(words))}
    grams |= {f"<{sum(word.endswith('digits>') for word in words)} numbers>", f"<{words.count('.')} sentences>"}
    where = sorted({zlib.crc32(gram.encode("utf-8", "replace")) % size for gram in grams})
    return where, 1.0 / math.sqrt(len(where))


def _needed(weak: Sequence[Trace], strong: Sequence[Trace] | None) -> list[bool]:
    """For each weak trace, whether its problem needs the strong model."""
    solved: dict[str, bool] = {}
    for trace in strong or ():
        key = question_key(trace.problem)
        solved[key] = _right(trace) or solved.get(key, False)
    lacking = [trace.problem.id for trace in weak if strong is not None and question_key(trace.problem) not in solved]
    if lacking:
        raise DataError(f"{len(lacking)} problems, such as {lacking[0]!r}, have no trace of the strong model; add them")
    return [not _right(trace) and solved.get(question_key(trace.problem), True) for trace in weak]


def _right(trace: Trace) -> bool:
    verdict = verdict_of(trace)
    if not verdict:
        raise DataError(f"problem {trace.problem.id!r} has no gold answer; a fit needs to know which answers are right")
    return verdict == "CORRECT"


def _logistic(x: _Array, y: _Array, penalty: float) -> tuple[_Array, float]:
    """Weights and bias of the ridge-penalised logistic regression: mean loss + penalty / 2 |weights|^2.

    By Newton's method in the span of the rows, since there are fewer problems than buckets: weights = x.T a.
    """
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


def _held_out_loss(x: _Array, y: _Array, fold: NDArray[np.int64], penalty: float) -> float:
    """Mean negative log-likelihood, nats, of each fold under a fit to the others."""
    loss = 0.0
    for number in range(_FOLDS):
        out = fold == number
        if not out.any() or out.all():
            continue
        weights, bias = _logistic(x[~out], y[~out], penalty)
        z = x[out] @ weights + bias
        loss += float((np.logaddexp(0, z) - y[out] * z).sum())
    return loss / len(y)


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

    Example:
        solved = router.with_policy(Cascade("least_score", 0.0)).solve_all(val)
        policy = at_share(Cascade("least_score", 0.0), solved, 0.3, measured_on=test)
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
    least = threshold_at("low", [_checked(policy, trace) for trace in traces], share)
    return dataclasses.replace(policy, threshold=min(1.01, max(0.0, least)))


def _checked(policy: Cascade, trace: Trace) -> float:
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
