"""Policies that look at the weak model's whole solution: kept, or begun anew by the strong model (cascades)."""

from __future__ import annotations

import copy
import dataclasses

from stepwise.routing.trim import FOR_GOOD, Solver
from stepwise.types import Step


class Reviewed(Solver):
    """One problem under a policy on the "solution"."""

    weak_solution: Solver | None = None  # once it was handed over

    async def _after_step(self) -> None:
        """Show the policy the weak model's solution, once; what it hands over is begun anew."""
        if self.finish in ("", "error", "budget") or self.ended:
            return
        self.ended, self.finish = self.finish, ""
        await self._decide()
        if self.strong_steps:
            self.strong_steps = FOR_GOOD
            self._restart()
        elif str(self.finish) != "error":
            self.finish = self.ended  # where the budget was spent on the way to a decision, the solution stands

    def _restart(self) -> None:
        """Throw the weak model's solution away; its steps become drafts of the first step to come."""
        self.weak_solution = copy.copy(self)
        drafts, evidence = list[Step](), list[Step]()
        for step in self.steps:
            evidence += step.evidence
            drafts += [*step.discarded, dataclasses.replace(step, discarded=(), evidence=())]
        self.steps, self.drafts, self.paid_evidence = [], [*drafts, *self.drafts], [*evidence, *self.paid_evidence]
        self.finish, self.note = "", ""

    async def _refused(self) -> None:
        """Put the weak model's solution back, where the strong model may not be asked for its first step."""
        before = self.weak_solution
        if before is None or self.steps:
            await super()._refused()
            return
        self.steps, self.drafts, self.paid_evidence = before.steps, before.drafts, before.paid_evidence
        self.finish, self.note = before.ended, f"not handed over: the budget is spent, {self.refused_by}"
