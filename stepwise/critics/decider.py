"""Deciding in words who writes a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy

from stepwise.critics import signatures
from stepwise.critics.asking import Ask, Asking, Plan, failed
from stepwise.critics.formats import Format
from stepwise.critics.inputs import Steps, as_steps, fitted, question_and_reference
from stepwise.critics.parameters import Predictor
from stepwise.errors import DataError
from stepwise.types import Problem


class StepDecider(Asking):
    """Says whether the last of the steps, a small model's draft, is kept, or written anew by a strong model.

    The prediction has `decision` ("keep" or "escalate"; None where `failure` is not) and `reason`. The policy `Judged`
    routes by it.
    """

    def __init__(
        self, lm: Any = None, *, adapter: Format | Any | None = None, bare: bool = False, max_chars: int = 40_000
    ) -> None:
        super().__init__(lm, adapter, bare=bare, max_chars=max_chars)

    def _make_predictors(self) -> None:
        self.decide = Predictor(signatures.DecideStep)

    def forward(
        self, problem: Problem | str, steps: Steps, scores: Sequence[float | None] = (), budget: int | None = None
    ) -> dspy.Prediction:
        """Decide on the last of `steps`. `scores`: probability that each is right, in [0, 1], None (or left out at the
        end) where it is unknown; `budget`: tokens of the strong model that are left, None where nothing caps them.
        """
        return self.run(self.plan(problem=problem, steps=steps, scores=scores, budget=budget))

    async def aforward(
        self, problem: Problem | str, steps: Steps, scores: Sequence[float | None] = (), budget: int | None = None
    ) -> dspy.Prediction:
        """`forward` for asyncio."""
        return await self.arun(self.plan(problem=problem, steps=steps, scores=scores, budget=budget))

    def plan(self, **inputs: Any) -> Plan:
        """See `Asking.plan`."""
        texts, budget, scores = as_steps(inputs["steps"]), inputs["budget"], list(inputs["scores"])
        if len(scores) > len(texts):
            raise DataError(f"there are {len(scores)} scores for {len(texts)} steps; give at most one for each")
        for i, score in enumerate(scores):
            if score is not None and not 0 <= score <= 1:
                raise DataError(f"scores[{i}] is {score!r}; a probability lies in [0, 1], None where it is unknown")
        if budget is not None and budget < 0:
            raise DataError(f"budget is {budget}; give the tokens that are left, at least 0, or None for no cap")
        question, _ = question_and_reference(inputs["problem"], None)
        question, _, texts, warnings = fitted(question, None, texts, self.setting("max_chars"))
        known = [*scores, *[None] * (len(texts) - len(scores))]
        given = {
            "problem": question,
            "attempt": signatures.numbered(texts),
            "scores": " ".join(f"[{i}] {'?' if score is None else f'{score:.2f}'}" for i, score in enumerate(known)),
            "budget": "no limit" if budget is None else str(budget),
        }
        (answer,) = yield [Ask(self.decide, given)]
        if answer.prediction is None:
            return failed(answer.failure or "", decision=None, warnings=warnings)
        made = answer.prediction
        return dspy.Prediction(decision=made.decision, reason=made.reason, failure=None, warnings=warnings)
