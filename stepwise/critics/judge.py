"""Judging one step."""

from __future__ import annotations

from typing import Any

import dspy

from stepwise.critics import signatures
from stepwise.critics.asking import Ask, Asking, Plan, failed
from stepwise.critics.formats import Format
from stepwise.critics.inputs import Steps, as_steps, fitted, fitting, question_and_reference
from stepwise.critics.parameters import Predictor
from stepwise.types import Problem


class StepJudge(Asking):
    """Says whether the last of the steps is right, given the problem and the steps before it, with a reason.

    The prediction has `right` (None where `failure` is not) and `reason`.
    """

    def __init__(
        self, lm: Any = None, *, adapter: Format | Any | None = None, bare: bool = False, max_chars: int = 40_000
    ) -> None:
        super().__init__(lm, adapter, bare=bare, max_chars=max_chars)

    def _make_predictors(self) -> None:
        self.judge = Predictor(signatures.JudgeStep)

    def forward(self, problem: Problem | str, steps: Steps, reference: str | None = None) -> dspy.Prediction:
        """Judge the last of `steps`; raises DataError for an empty attempt or question."""
        return self.run(self.plan(problem=problem, steps=steps, reference=reference))

    async def aforward(self, problem: Problem | str, steps: Steps, reference: str | None = None) -> dspy.Prediction:
        """`forward` for asyncio."""
        return await self.arun(self.plan(problem=problem, steps=steps, reference=reference))

    def plan(self, **inputs: Any) -> Plan:
        """See `Asking.plan`."""
        texts = as_steps(inputs["steps"])
        question, reference = question_and_reference(inputs["problem"], inputs["reference"])
        question, reference, texts, warnings = fitted(question, reference, texts, self.setting("max_chars"))
        given = {"problem": question, **({} if reference is None else {"reference": reference})}
        signature = fitting(self.judge.signature, given)
        (answer,) = yield [Ask(self.judge, {**given, "attempt": signatures.numbered(texts)}, signature)]
        if answer.prediction is None:
            return failed(answer.failure or "", warnings=warnings)
        made = answer.prediction
        return dspy.Prediction(right=made.right, reason=made.reason, failure=None, warnings=warnings)
