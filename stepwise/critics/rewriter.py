"""Writing a failed attempt anew."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import dspy

from stepwise.config import Config
from stepwise.critics import signatures
from stepwise.critics.inputs import Steps
from stepwise.critics.module import SingleCall, critic_lm
from stepwise.types import Problem


class SolutionRewriter(SingleCall):
    """Rewrites a failed attempt as a whole, the reference in view: InT's baseline of self-reflections.

        SolutionRewriter("openai/gpt-4.1")(problem="2 + 2 + 1?", steps=["2 + 2 = 5."], reference="4 + 1 = 5").solution

    The prediction has `solution` (None where `failure` is not) and `reflection`, what the model says went wrong. A
    model that was trained on other tasks alone, such as lab-critic, cannot do it: see `interventions.reflection`.
    """

    asks = ("rewrite", signatures.RewriteAttempt)

    @classmethod
    def from_config(cls, config: Config | str | Path) -> Self:
        """The one that [critic] and models.critic describe."""
        config = Config.of(config, "config")
        return cls(critic_lm(config), adapter=config.critic.format, bare=config.critic_is_bare)

    async def run(self, problem: Problem | str, steps: Steps, reference: str | None = None) -> dspy.Prediction:
        """Rewrite one attempt; raises DataError for an empty attempt or question."""
        given, texts = self.prepared(problem, steps, reference)
        signature = signatures.fitting(self.rewrite.signature, given)
        reply = await self.call(self.rewrite, {**given, "attempt": signatures.numbered(texts)}, signature)
        return dspy.Prediction(solution=reply.solution, reflection=reply.reflection, failure=None)
