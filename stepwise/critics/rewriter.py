"""Writing a failed attempt anew."""

from __future__ import annotations

from typing import Any, Self

import dspy

from stepwise.config import Config
from stepwise.critics import signatures
from stepwise.critics.asking import Ask, Asking, Plan, critic_lm, failed
from stepwise.critics.formats import Format
from stepwise.critics.inputs import Steps, as_steps, fitted, fitting, question_and_reference
from stepwise.critics.parameters import Predictor
from stepwise.types import Problem


class SolutionRewriter(Asking):
    """Rewrites a failed attempt as a whole, the reference in view: InT's baseline of self-reflections.

    The prediction has `solution` (None where `failure` is not) and `reflection`, what the model says went wrong. A
    model that was trained on other tasks alone, such as lab-critic, cannot do it: see `interventions.reflection`.
    """

    def __init__(
        self, lm: Any = None, *, adapter: Format | Any | None = None, bare: bool = False, max_chars: int = 40_000
    ) -> None:
        super().__init__(lm, adapter, bare=bare, max_chars=max_chars)

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The one that [critic] and models.critic describe."""
        return cls(critic_lm(config), adapter=config.critic.format, bare=config.critic_is_bare)

    def _make_predictors(self) -> None:
        self.rewrite = Predictor(signatures.RewriteAttempt)

    def forward(self, problem: Problem | str, steps: Steps, reference: str | None = None) -> dspy.Prediction:
        """Rewrite one attempt; raises DataError for an empty attempt or question."""
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
        signature = fitting(self.rewrite.signature, given)
        (answer,) = yield [Ask(self.rewrite, {**given, "attempt": signatures.numbered(texts)}, signature)]
        if answer.prediction is None:
            return failed(answer.failure or "", solution=None, reflection="", warnings=warnings)
        made = answer.prediction
        return dspy.Prediction(solution=made.solution, reflection=made.reflection, failure=None, warnings=warnings)
