"""Whether a step succeeds more often than the draft that it replaced, by rollouts of the weak model from both."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.config import Config
from stepwise.grading import Verdict, grade
from stepwise.interventions import stages
from stepwise.interventions.rows import Candidate, Failure, GuidedRollout
from stepwise.interventions.settings import CollectSettings
from stepwise.interventions.work import every
from stepwise.models.base import Backend
from stepwise.steps import boxed, extract_answer
from stepwise.types import Problem

Kind = Literal["intervention", "distillation", "no success"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Comparison:
    """What followed the strong model's step, and what followed the draft; `id` is the candidate's.

    `helps` is the probability that the step's success is higher than the draft's, given the counts.
    """

    id: str
    problem: str
    successes: int
    guided: int
    draft_successes: int
    draft_guided: int
    helps: float
    kind: Kind


def compare(
    candidates: Sequence[Candidate],
    failures: Mapping[str, Failure],
    problems: Mapping[str, Problem],
    weak: Backend,
    config: Config,
    settings: CollectSettings,
    confident: float = 0.95,
) -> tuple[list[Comparison], list[GuidedRollout]]:
    """Rollouts of the weak model behind each step and, where one of them ended right, behind its draft.

    `settings.guided` of each, without an early end after successes, which would bias the comparison. A draft that
    closes a box is graded as it is. Raises BackendError where most of a batch fails.
    """
    whole = every(settings, settings.guided)
    how = whole.model_copy(update={"miss": settings.miss})  # a step without a success may be given up
    guided = stages.guide(candidates, failures, problems, weak, config, how)
    steps = _outcomes(guided)
    tried = [row for row in candidates if any(steps[row.id])]
    drafts = [_draft(row, failures[row.failure]) for row in tried]
    behind = stages.guide([d for d in drafts if not boxed(d.content)], failures, problems, weak, config, whole)
    outcomes = _outcomes(behind)
    for draft in drafts:
        if boxed(draft.content):
            right = grade(extract_answer(draft.content), problems[draft.problem].answer or "") is Verdict.CORRECT
            outcomes[draft.id] = [right] * settings.guided
    rows = []
    for row in candidates:
        step, draft_ = steps[row.id], outcomes[_draft_id(row)]
        helps = more_often(sum(step), len(step), sum(draft_), len(draft_))
        kind: Kind = "intervention" if helps >= confident else "distillation"
        rows.append(Comparison(row.id, row.problem, sum(step), len(step), sum(draft_), len(draft_), helps,
                               kind if any(step) else "no success"))  # fmt: skip
    return rows, [*guided, *behind]


def more_often(successes: int, n: int, others: int, m: int) -> float:
    """Probability that a chance with `successes` of `n` is larger than one with `others` of `m`, under uniform priors.

    Exact: the sum over the first Beta's integer parameter. Raises ValueError for counts that are none.
    """
    if not (0 <= successes <= n and 0 <= others <= m):
        raise ValueError(f"{successes} of {n} and {others} of {m} are no counts of successes")
    a, b, c, d = 1 + others, 1 + m - others, 1 + successes, 1 + n - successes
    terms = (
        math.exp(_log_beta(a + i, b + d) - math.log(d + i) - _log_beta(1 + i, d) - _log_beta(a, b)) for i in range(c)
    )
    return min(1.0, math.fsum(terms))


def _draft(row: Candidate, failure: Failure) -> Candidate:
    return dataclasses.replace(row, id=_draft_id(row), content=failure.steps[row.location])


def _draft_id(row: Candidate) -> str:
    return f"{row.failure}/draft"


def _outcomes(guided: Sequence[GuidedRollout]) -> defaultdict[str, list[bool]]:
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for row in guided:
        if row.verdict is not None:
            found[row.candidate].append(row.verdict is Verdict.CORRECT)
    return found


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
