"""What the routing loop knows of one problem while it is open."""

from __future__ import annotations

import copy
import dataclasses

from stepwise.models.budget import Ledger
from stepwise.types import Problem, Step, Trace, TraceFinish, Usage


@dataclasses.dataclass(slots=True)
class Looked:
    """The evidence that the policy has on the step being made; `done` names what it asked for."""

    done: set[str] = dataclasses.field(default_factory=set)
    # of the place in the solution
    first_token: tuple[float, ...] = ()
    resamples: tuple[Step, ...] = ()
    verification: tuple[bool | None, ...] = ()
    # of the draft
    logprobs: tuple[tuple[float, ...], ...] = ()
    rating: int | None = None

    def of_place(self) -> Looked:
        """What is left of it when the draft is replaced by another."""
        return Looked(self.done - {"draft", "scores", "logprobs", "rating"}, self.first_token, self.resamples)


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
    evidence: list[Step] = dataclasses.field(default_factory=list)
    looked: Looked = dataclasses.field(default_factory=Looked)
    undecided: bool = False  # the policy wants to see the draft first
    decision: str = ""
    refused_by: str = ""  # the cap that stood in the way of the last model
    # the weak model's whole solution, once it was reviewed
    ended: TraceFinish = ""
    weak_solution: OpenProblem | None = None

    def trace(self) -> Trace:
        """What there is of it so far."""
        return Trace(self.problem, tuple(self.steps), self.finish, self.scorer_usage, self.note, self._loose)

    def interrupted(self) -> Trace:
        """Its trace when the user stops the run: as it is if finished, else with finish "interrupted"."""
        if self.finish:
            return self.trace()
        lost = (*self._loose, *([self.current] if self.current else []))
        return Trace(self.problem, tuple(self.steps), "interrupted", self.scorer_usage, "stopped by the user", lost)

    @property
    def _loose(self) -> tuple[Step, ...]:
        return (*self.evidence, *self.drafts)

    def end(self, finish: TraceFinish, note: str = "") -> None:
        """Close the trace; what was written for a step that never came to be is kept as abandoned."""
        self.replace(None)
        self.finish, self.note = finish, note

    def replace(self, step: Step | None) -> None:
        """Put `step` in place of the draft, which joins the drafts thrown away."""
        if self.current is not None:
            self.drafts.append(self.current)
        self.current, self.looked = step, self.looked.of_place()

    def accept(self) -> Step:
        """The current draft becomes the next step, with the drafts before it and the evidence."""
        assert self.current is not None
        step = dataclasses.replace(
            self.current, discarded=tuple(self.drafts), decision=self.decision, evidence=tuple(self.evidence)
        )
        self.steps.append(step)
        self.current, self.drafts, self.evidence = None, [], []
        self.looked, self.undecided = Looked(), False
        return step

    def restart(self) -> None:
        """Throw the weak model's solution away; its steps become drafts of the first step to come."""
        self.weak_solution = copy.copy(self)
        drafts, evidence = list[Step](), list[Step]()
        for step in self.steps:
            evidence += step.evidence
            drafts += [*step.discarded, dataclasses.replace(step, discarded=(), evidence=())]
        self.steps, self.drafts, self.evidence = [], [*drafts, *self.drafts], [*evidence, *self.evidence]
        self.finish, self.note = "", ""

    def restore(self) -> None:
        """Put the weak model's solution back, where the strong model may not be asked for its first step."""
        before = self.weak_solution
        assert before is not None
        self.steps, self.drafts, self.evidence = before.steps, before.drafts, before.evidence
        self.finish, self.note = before.ended, f"not handed over: the budget is spent, {self.refused_by}"

    @property
    def texts(self) -> list[str]:
        """The steps so far and the draft, as a scorer gets them; an empty draft is left out."""
        draft = [self.current.text] if self.current is not None and self.current.text.strip() else []
        return [*(step.text for step in self.steps), *draft]
