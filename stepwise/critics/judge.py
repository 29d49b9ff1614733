"""Judging one step, and deciding in words who writes it."""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from stepwise.critics import signatures
from stepwise.critics.inputs import Steps
from stepwise.critics.module import SingleCall
from stepwise.errors import DataError
from stepwise.types import Problem


class StepJudge(SingleCall):
    """Says whether the last of the steps is right, given the problem and the steps before it, with a reason.

        StepJudge("llamacpp/lab-critic")(problem="2 + 2 + 1?", steps=["2 + 2 = 4.", "4 + 1 = 6."]).right

    The prediction has `right` (None where `failure` is not) and `reason`.
    """

    asks = ("judge", signatures.JudgeStep)

    async def run(self, problem: Problem | str, steps: Steps, reference: str | None = None) -> dspy.Prediction:
        """Judge the last of `steps`; raises DataError for an empty attempt or question."""
        given, texts = self.prepared(problem, steps, reference)
        signature = signatures.fitting(self.judge.signature, given)
        reply = await self.call(self.judge, {**given, "attempt": signatures.numbered(texts)}, signature)
        return dspy.Prediction(right=reply.right, reason=reply.reason, failure=None)


class StepDecider(SingleCall):
    """Says whether the last of the steps, a small model's draft, is kept, or written anew by a strong model.

        StepDecider("openai/gpt-4.1")(problem="2 + 2 + 1?", steps=["2 + 2 = 5."], scores=[0.3], budget=200).decision

    The prediction has `decision` ("keep" or "escalate"; None where `failure` is not) and `reason`. The policy `Judged`
    routes by it.
    """

    asks = ("decide", signatures.DecideStep)

    async def run(
        self, problem: Problem | str, steps: Steps, scores: Sequence[float | None] = (), budget: int | None = None
    ) -> dspy.Prediction:
        """Decide on the last of `steps`. `scores`: probability that each is right, in [0, 1], None (or left out at the
        end) where it is unknown; `budget`: tokens of the strong model that are left, None where nothing caps them.
        """
        question = problem.question if isinstance(problem, Problem) else problem
        given, texts = self.prepared(question, steps)
        if len(scores) > len(texts):
            raise DataError(f"there are {len(scores)} scores for {len(texts)} steps; give at most one for each")
        for i, score in enumerate(scores):
            if score is not None and not 0 <= score <= 1:
                raise DataError(f"scores[{i}] is {score!r}; a probability lies in [0, 1], None where it is unknown")
        if budget is not None and budget < 0:
            raise DataError(f"budget is {budget}; give the tokens that are left, at least 0, or None for no cap")
        known = [*scores, *[None] * (len(texts) - len(scores))]
        inputs = {
            **given,
            "attempt": signatures.numbered(texts),
            "scores": " ".join(f"[{i}] {'?' if score is None else f'{score:.2f}'}" for i, score in enumerate(known)),
            "budget": "no limit" if budget is None else str(budget),
        }
        reply = await self.call(self.decide, inputs)
        return dspy.Prediction(decision=reply.decision, reason=reply.reason, failure=None)
