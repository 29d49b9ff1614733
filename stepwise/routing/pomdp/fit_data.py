"""What a fit of the routing model takes from traces: scores of drafts, which were right, who wrote what, how it ended.

Traces come with step labels from the lab's checker or from a `label` column (the first wrong step), or without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from stepwise.data import processbench
from stepwise.errors import DataError
from stepwise.grading import Verdict, grade
from stepwise.lab.problems import SPLITS, LabProblem, make
from stepwise.routing.pomdp.filter import draft_score
from stepwise.types import Step, Trace

RIGHT, EARLIER, NOW = 0, 1, 2  # states, in the order of a belief
STATES = ("right", "wrong earlier", "wrong just now")
_NATURAL = ("answer", "capped", "eos")  # how a solution ends by itself; anything else cut it off


@dataclass(frozen=True)
class FitStep:
    """One place of a trace: the weak model's draft, and the strong model's step where that took its place.

    Attributes:
        drafted: whether the weak model wrote a draft here.
        score: of that draft, in [0, 1]; None where it was not scored.
        draft_right: whether it is right given the steps before it; None where that is not known.
        replaced: whether the strong model wrote the step that stands.
        strong_right: the same as `draft_right` for that step.
        tokens: of the step that stands; None where that is not known.

    >>> FitStep(score=0.2, draft_right=False, replaced=True, strong_right=True).right
    True
    """

    drafted: bool = True
    score: float | None = None
    draft_right: bool | None = None
    replaced: bool = False
    strong_right: bool | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.score is not None and not 0 <= self.score <= 1:
            raise DataError(f"score is {self.score!r}; a scorer gives a probability in [0, 1] for every step")

    @property
    def right(self) -> bool | None:
        """Whether the step that stands is right given the steps before it."""
        return self.strong_right if self.replaced else self.draft_right


@dataclass(frozen=True)
class FitTrace:
    """One trace as a fit sees it. `ended` says that it ended by itself and was not cut off; `solved` is None where its
    answer was not graded. `labelled`: the truth of every draft and strong step up to the first wrong one is known.

    >>> FitTrace("p", (FitStep(score=0.9, draft_right=True), FitStep(score=0.2, draft_right=False))).first_error
    1
    """

    problem: str
    steps: tuple[FitStep, ...]
    ended: bool = True
    solved: bool | None = None
    labelled: bool = True

    def __post_init__(self) -> None:
        if not self.steps:
            raise DataError(f"trace of {self.problem!r} has no steps; leave empty traces out")
        if not self.labelled:
            return
        for i, step in enumerate(self.steps):
            unknown = (step.drafted and step.draft_right is None) or (step.replaced and step.strong_right is None)
            if unknown:
                raise DataError(f"trace of {self.problem!r}, step {i}: it has no label; label every step or none")
            if not step.right:
                return

    @property
    def first_error(self) -> int | None:
        """Index of the first step that stands and is wrong, None where there is none."""
        return next((i for i, step in enumerate(self.steps) if step.right is False), None)

    @property
    def states(self) -> tuple[int, ...]:
        """State of each draft: 0 right, 1 after a wrong step that stands, 2 the first wrong one; for labelled traces.

        A place without a draft has the state that its step gave it.
        """
        error, out = self.first_error, list[int]()
        for i, step in enumerate(self.steps):
            right = step.draft_right if step.drafted else step.strong_right
            out.append(EARLIER if error is not None and i > error else RIGHT if right else NOW)
        return tuple(out)


def _trace_of(
    problem: str, scores: Sequence[float], first_error: int | None, *, solved: bool | None = None, ended: bool = True
) -> FitTrace:
    """A trace that the weak model wrote alone, from its scores and the index of its first wrong step (None: none).

    Raises `DataError` for a score that is missing, no number or outside [0, 1], and for an index that is no step.
    """
    if first_error is not None and not 0 <= first_error < len(scores):
        raise DataError(f"trace of {problem!r}: first_error is {first_error}; it has steps 0..{len(scores) - 1}")
    steps = tuple(
        FitStep(score=_score(score, f"trace of {problem!r}, step {i}"), draft_right=_truth(i, first_error))
        for i, score in enumerate(scores)
    )
    return FitTrace(problem, steps, ended, solved)


def from_row(row: Mapping[str, Any], where: str, prm: str | None = None) -> FitTrace:
    """A row in ProcessBench's columns with `scores` beside them: a list, or lists by the name of a reward model.

    A row whose `label` is missing or null is taken without labels. Raises `DataError` naming `where` and the field.

    >>> row = {"id": "gsm8k-1", "problem": "1 + 1?", "steps": ["One and one.", "That is 3."], "label": 1,
    ...        "final_answer_correct": False, "scores": [0.9, 0.2]}
    >>> from_row(row, "line 1").first_error
    1
    """
    known = row.get("label") is not None
    example = processbench.from_row(row if known else {**row, "label": -1}, where)
    scores = row.get("scores")
    if isinstance(scores, Mapping):
        if prm not in scores:
            names = ", ".join(map(repr, scores))
            raise DataError(f"{where}, field scores: it holds those of {names}, not of {prm!r}; name one of them")
        scores = scores[prm]
    if not isinstance(scores, list) or len(scores) != len(example.trace.steps):
        count = len(scores) if isinstance(scores, list) else "no"
        raise DataError(f"{where}, field scores: {count} scores for {len(example.trace.steps)} steps; give one each")
    # One problem may stand in several rows, each under an id of its own: its question is what they share.
    trace = _trace_of(
        example.problem.question,
        [_score(score, f"{where}, scores[{i}]") for i, score in enumerate(scores)],
        example.localization.first_error,
        solved=example.final_answer_correct,
        ended=example.trace.finish in _NATURAL,
    )
    return trace if known else unlabelled(trace)


def from_trace(trace: Trace, *, first_error: int | None = None, labelled: bool = False) -> FitTrace:
    """A trace of the router, with the index of its first wrong step where it is `labelled` (None: all are right).

    Raises `DataError` for one with drafts thrown away, where labelled: the label says nothing of them, and without them
    the drafts that were kept are those that a policy liked. Strong steps decided before the draft are no problem.

    >>> steps = Step("One and one.", "weak", 0.9), Step("That is 3.", "weak", 0.2)
    >>> from_trace(Trace(Problem("p", "1 + 1?", "2"), steps, "eos"), first_error=1, labelled=True).states
    (0, 2)
    """
    if labelled and any(step.discarded for step in trace.steps):
        raise DataError(
            f"trace of {trace.problem.id!r} has drafts thrown away, of which a label of the first error says nothing; "
            "label traces of the policies never, always or random, or lab traces (--labels lab)"
        )
    steps = tuple(_step(step, _truth(i, first_error) if labelled else None, None) for i, step in enumerate(trace.steps))
    return FitTrace(trace.problem.id, steps, trace.finish in _NATURAL, _solved(trace), labelled)


def from_lab_trace(trace: Trace) -> FitTrace:
    """A trace of a lab problem, every draft and step labelled by the lab's checker.

    Raises `DataError` for a problem that is none of the lab's, or was made with knobs of its own.

    >>> import random
    >>> from stepwise import lab
    >>> problem = lab.generate("test", 1)[0]
    >>> steps = tuple(Step(text, "weak", 0.9) for text in problem.solution(random.Random(1)))
    >>> from_lab_trace(Trace(problem.problem, steps, "answer")).first_error is None
    True
    """
    lab_problem = _lab_problem(trace)
    texts = [step.text for step in trace.steps]
    drafts = [
        lab_problem.check([*texts[:i], step.discarded[0].text])[-1] if step.discarded else None
        for i, step in enumerate(trace.steps)
    ]
    steps = tuple(map(_step, trace.steps, lab_problem.check(texts), drafts))
    return FitTrace(trace.problem.id, steps, trace.finish in _NATURAL, trace.answer == lab_problem.problem.answer)


def scored(scorer: Any, traces: Sequence[Trace]) -> list[Trace]:
    """The traces with a score for every step that has none.

    Example:
        traces = scored(router.models.scorer, router.with_policy("never").solve_all(problems))
    """
    result = list(traces)
    missing = [i for i, trace in enumerate(traces) if any(step.score is None for step in trace.steps)]
    items = [(traces[i].problem, [step.text for step in traces[i].steps]) for i in missing]
    for i, scores in zip(missing, scorer.score_batch(items) if items else [], strict=True):
        pairs = zip(traces[i].steps, scores, strict=True)
        steps = (step if step.score is not None else dataclasses.replace(step, score=score) for step, score in pairs)
        result[i] = dataclasses.replace(traces[i], steps=tuple(steps))
    return result


def unlabelled(trace: FitTrace) -> FitTrace:
    """The same trace with its labels taken away; scores and whether it was solved remain.

    >>> unlabelled(FitTrace("p", (FitStep(score=0.9, draft_right=True),), solved=True)).labelled
    False
    """
    steps = tuple(dataclasses.replace(step, draft_right=None, strong_right=None) for step in trace.steps)
    return dataclasses.replace(trace, steps=steps, labelled=False)


def lag_correlation(traces: Sequence[FitTrace], state: int = RIGHT) -> float | None:
    """Correlation of the scores of neighbouring drafts that are in `state`; None below 30 pairs.

    The routing model takes scores as independent given the state, so 0 is what it expects. A solved trace without
    labels counts as right throughout.

    >>> steps = [FitStep(score=score, draft_right=True) for score in (0.9, 0.9, 0.5, 0.5)]
    >>> round(lag_correlation([FitTrace(str(n), tuple(steps)) for n in range(20)]), 2)
    0.5
    """
    pairs = []
    for trace in traces:
        if not trace.labelled and not trace.solved:
            continue
        states = trace.states if trace.labelled else (RIGHT,) * len(trace.steps)
        for (a, z), (b, y) in pairwise(zip(trace.steps, states, strict=True)):
            if z == y == state and a.score is not None and b.score is not None:
                pairs.append((a.score, b.score))
    if len(pairs) < 30:
        return None
    first, second = np.asarray(pairs).T
    return float(np.corrcoef(first, second)[0, 1]) if first.std() and second.std() else None


def _truth(i: int, first_error: int | None) -> bool | None:
    """Whether step i is right, None after the first error."""
    return None if first_error is not None and i > first_error else i != first_error


def _step(step: Step, right: bool | None, draft_right: bool | None) -> FitStep:
    """A step of the router. Of several drafts only the first is taken: the others were asked for by a policy."""
    replaced = step.author == "strong"
    draft = step.discarded[0] if step.discarded else None if replaced else step
    return FitStep(
        drafted=draft is not None,
        score=None if draft is None else draft_score(draft),
        draft_right=draft_right if step.discarded else None if replaced else right,
        replaced=replaced,
        strong_right=right if replaced else None,
        tokens=step.usage.generated_tokens or None,
    )


def _solved(trace: Trace) -> bool | None:
    """Whether the answer is right, None without a gold answer."""
    gold = trace.problem.answer
    return None if gold is None else grade(trace.answer or "", gold) is Verdict.CORRECT


def _lab_problem(trace: Trace) -> LabProblem:
    parts = trace.problem.id.split("/")
    if len(parts) == 3 and parts[0] == "lab" and parts[1] in SPLITS and parts[2].isdecimal():
        problem = make(parts[1], int(parts[2]))
        if problem.problem.question == trace.problem.question:
            return problem
    raise DataError(
        f"problem {trace.problem.id!r} is none of the lab's own, so its checker has no truth for it; "
        "give a label column (--labels column) or fit without labels (--labels none)"
    )


def _score(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{where}: the score is {value!r}; it must be a number in [0, 1]; score the step again")
    return float(value)
