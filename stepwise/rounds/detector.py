"""The scorer of a router as a detector of errors, where it is known which steps are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from stepwise.models.scorers.calibration import calibration_error
from stepwise.records import record
from stepwise.types import Problem, Trace


@record()
class Detection:
    """The weak model's drafts in solutions that were right so far: how many there are, are `wrong`, were `escalated`,
    and were both (`caught`). `ece` is the calibration error of their scores, in [0, 1], None without any.

    >>> found = Detection(drafts=100, wrong=10, escalated=16, caught=8, ece=0.02)
    >>> found.precision, found.recall, found.missed
    (0.5, 0.8, 2)
    """

    drafts: int
    wrong: int
    escalated: int
    caught: int
    ece: float | None

    @property
    def precision(self) -> float | None:
        """Share of the escalated drafts that are wrong, None without any."""
        return self.caught / self.escalated if self.escalated else None

    @property
    def recall(self) -> float | None:
        """Share of the wrong drafts that were escalated, None without any."""
        return self.caught / self.wrong if self.wrong else None

    @property
    def missed(self) -> int:
        """Wrong drafts that were kept."""
        return self.wrong - self.caught


def detection(traces: Iterable[Trace], first_error: Callable[[Problem, Sequence[str]], int | None]) -> Detection:
    """What became of the weak model's drafts in routed solutions; `first_error` says of a problem and steps which is
    the first wrong one. A solution is looked at up to the first wrong step that stayed in it.

    Example:
        known = {made.problem: made for made in sw.lab.generate("test", 100)}
        detection(traces, lambda problem, steps: known[problem].first_error(steps)).recall
    """
    found: list[tuple[bool, bool, float | None]] = []  # wrong, escalated, score
    for trace in traces:
        before: list[str] = []
        for step in trace.steps:
            escalated = step.author != "weak"
            draft = next((d for d in step.discarded if d.author == "weak"), None) if escalated else step
            if draft is not None:
                wrong = first_error(trace.problem, [*before, draft.text]) is not None
                found.append((wrong, escalated, draft.score))
            before.append(step.text)
            if first_error(trace.problem, before) is not None:
                break
    scored = [(score, float(not wrong)) for wrong, _, score in found if score is not None]
    scores, labels = [score for score, _ in scored], [label for _, label in scored]
    return Detection(
        len(found),
        sum(wrong for wrong, *_ in found),
        sum(escalated for _, escalated, _ in found),
        sum(wrong and escalated for wrong, escalated, _ in found),
        calibration_error(scores, labels) if scored else None,
    )
