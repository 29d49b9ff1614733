"""A scripted model that tells how sure it was and answers questions about steps and solutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from stepwise.models.base import Capabilities, Completion, Request
from stepwise.types import Problem, TokenStats
from tests.fakes import Line, Script, ScriptedBackend

SURE, TORN = (-0.01, -5.0), (-0.7, -0.7)  # log-probabilities of the two likeliest tokens


class TellingBackend(ScriptedBackend):
    """Torn at every token of the texts in `unsure`, sure at others; a glimpse is as unsure as the step it begins.

    `answers` maps a part of a question to what is answered: sample i gets entry i modulo their number.
    """

    def __init__(
        self,
        script: Script | Mapping[str, Sequence[str | Line]],
        unsure: Sequence[str] = (),
        answers: Mapping[str, Sequence[str]] | None = None,
        name: str = "telling",
    ):
        super().__init__(script, name)
        self.capabilities = Capabilities(prefill=True, batch=True, token_ids=True, logprobs=True, entropy=True)
        self._solve, self._unsure, self._answers = self._script, unsure, answers or {}

    def _one(self, at: int, sample: int, request: Request) -> Completion:
        replies = [replies for part, replies in self._answers.items() if part in request.problem.question]

        def script(problem: Problem, prefix: tuple[str, ...], seed: int) -> str | Line:
            return Line(replies[0][sample % len(replies[0])], "eos") if replies else self._solve(problem, prefix, seed)

        self._script = script
        made = super()._one(at, sample, request)
        line = script(request.problem, tuple(step.text for step in request.prefix), request.seed + sample)
        top = TORN if line in self._unsure else SURE
        made = dataclasses.replace(made, token_stats=TokenStats.of([top[0], -0.01], [-2 * top[0], 0.02]))
        if not request.top_logprobs:
            return made
        return dataclasses.replace(made, top_logprobs=(top,) * made.usage.generated_tokens)
