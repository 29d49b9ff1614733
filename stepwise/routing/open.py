"""What the routing loop knows of one problem while it is open."""

from __future__ import annotations

import dataclasses

from stepwise.budget import Ledger
from stepwise.types import Problem, Step, Trace, TraceFinish, Usage


@dataclasses.dataclass(slots=True, eq=False)
class OpenProblem:
    """One problem while it is routed: the steps so far, and the step that is being made."""

    problem: Problem
    account: Ledger
    steps: list[Step] = dataclasses.field(default_factory=list)
    scorer_usage: Usage = dataclasses.field(default_factory=Usage)
    finish: TraceFinish = ""
    note: str = ""
    strong_steps: int = 0  # steps that the strong model still writes before the policy is asked again
    # the step being made
    current: Step | None = None
    current_finish: str = ""
    drafts: list[Step] = dataclasses.field(default_factory=list)
    decision: str = ""
    refused_by: str = ""  # the cap that stood in the way of the last model

    def trace(self) -> Trace:
        """What there is of it so far."""
        return Trace(self.problem, tuple(self.steps), self.finish, self.scorer_usage, self.note, tuple(self.drafts))

    def interrupted(self) -> Trace:
        """Its trace when the user stops the run: as it is if finished, else with finish "interrupted"."""
        if self.finish:
            return self.trace()
        lost = [*self.drafts, *([self.current] if self.current else [])]
        return Trace(
            self.problem, tuple(self.steps), "interrupted", self.scorer_usage, "stopped by the user", tuple(lost)
        )

    def end(self, finish: TraceFinish, note: str = "") -> None:
        """Close the trace; what was written for a step that never came to be is kept as abandoned."""
        self.replace(None)
        self.finish, self.note = finish, note

    def replace(self, step: Step | None) -> None:
        """Put `step` in place of the draft, which joins the drafts thrown away."""
        if self.current is not None:
            self.drafts.append(self.current)
        self.current = step

    @property
    def texts(self) -> list[str]:
        """The steps so far and the draft, as a scorer gets them; an empty draft is left out."""
        draft = [self.current.text] if self.current is not None and self.current.text.strip() else []
        return [*(step.text for step in self.steps), *draft]
