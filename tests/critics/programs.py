"""Programs as users write them: our modules beside and inside theirs."""

from __future__ import annotations

from typing import Any

import dspy

from stepwise import ErrorLocalizer, InterventionProposer, StepJudge


class Repair(dspy.Module):  # type: ignore[misc]
    """Finds the first error with one model, and has another write a step in its place."""

    def __init__(self, critic: Any = None, author: Any = None, **settings: Any) -> None:
        super().__init__()
        self.find = ErrorLocalizer(critic, **settings)
        self.propose = InterventionProposer(author, solve_first=False, revisions=0)

    def forward(self, problem: str, steps: list[str]) -> dspy.Prediction:
        found = self.find(problem=problem, steps=steps)
        if found.first_error is None:
            return found
        step = self.propose(problem=problem, steps=steps, first_error=found.first_error)
        return dspy.Prediction(**found, intervention=step.intervention)


class Panel(dspy.Module):  # type: ignore[misc]
    """Modules in a list, in a dict and in a module within."""

    def __init__(self, form: Any = None) -> None:
        super().__init__()
        self.judges = [StepJudge(adapter=form), StepJudge(adapter=form, max_chars=900)]
        self.by_name = {"vote": ErrorLocalizer(method="vote", samples=2, adapter=form)}
        self.repair = Repair(adapter=form)

    def forward(self, problem: str, steps: list[str]) -> dspy.Prediction:
        given = {"problem": problem, "steps": steps}
        return dspy.Prediction(
            judged=[judge(**given) for judge in self.judges],
            voted=self.by_name["vote"](**given),
            repaired=self.repair(**given),
        )
