"""One answer in the making: a routed problem under a request's limits, told step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepwise.errors import BackendError, ScorerError
from stepwise.models.base import Completion, Request
from stepwise.models.budget import Ledger
from stepwise.models.calls import held_back
from stepwise.models.failures import failure_of
from stepwise.routing.policy import Keep, Policy
from stepwise.routing.route import Models, Reviewed
from stepwise.routing.settings import RouteSettings
from stepwise.routing.trim import Role, Solver
from stepwise.steps import join_steps
from stepwise.types import Failure, Problem, Step, Trace

_REASONS = {"answer": "stop", "capped": "stop", "eos": "stop"}
"""Finish reasons as clients know them; every other end left the answer short: "length"."""
Tell = Callable[[str, Step], None]


@dataclass(frozen=True)
class Limits:
    """What a request asks for beside its question; `keep`: without strong model or scorer, weak steps stand.

    Example:
        >>> Limits(100, ("END",)).keep
        True
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    keep: bool = True


class ServedAnswer(Solver):
    """Solves a problem until it is done, or one of the request's limits is met; `tell` gets each new piece of text.

    A step is told once it is accepted; of a cascade nothing before it is decided who writes the solution.

    Example:
        answer = answer_for(policy, problem, models, settings, account, Limits(100), lambda text, step: print(text))
        trace = await answer.run()
    """

    def __init__(
        self, problem: Problem, models: Models, policy: Policy, settings: RouteSettings, account: Ledger,
        limits: Limits, tell: Tell,
    ) -> None:  # fmt: skip
        super().__init__(problem, models, policy, settings, account, self._stepped)
        self._limits, self._tell = limits, tell
        self._told = 0  # steps
        self.text = ""
        """what the client got"""
        self.stop_note = ""
        """why it is to end after the step that is being made"""
        self.failure: Failure | None = None
        """what the weak model failed of"""
        self.faults: list[str] = []
        """who was down while the answer went on without it"""

    @property
    def finish_reason(self) -> str:
        """As OpenAI has it."""
        return _REASONS.get(self.finish, "length")

    @property
    def tokens(self) -> int:
        """Of the steps that stand."""
        return sum(step.usage.generated_tokens for step in self.steps)

    def _stepped(self, trace: Trace) -> None:
        """Tell what is new, and end where the client wants no more."""
        text = trace.text
        cuts = [place for stop in self._limits.stop if (place := text.find(stop)) >= 0]
        if cuts:
            text = text[: min(cuts)]
            self._end("eos", "a stop string")
        elif not self.finish and self.tokens >= self._limits.max_tokens:
            self._end("length", f"max_tokens = {self._limits.max_tokens}")
        elif not self.finish and self.stop_note:
            self._end("interrupted", self.stop_note)
        undecided = self.policy.when == "solution" and not (self.ended or self.finish)
        safe = len(text) - (0 if self.finish else held_back(text, self._limits.stop))
        for number in range(self._told, len(self.steps)) if not undecided else ():
            upto = join_steps((step.text for step in self.steps[: number + 1]), self._splitter)
            self._send(text[: min(safe, len(upto))], self.steps[number])
            self._told = number + 1
        if not undecided and self.steps:
            self._send(text[:safe], self.steps[-1])

    def _send(self, text: str, step: Step) -> None:
        if len(text) > len(self.text):
            new, self.text = text[len(self.text) :], text
            self._tell(new, step)

    def step_request(self, role: Role) -> Request:
        """The next step, in no more tokens than the client wants."""
        request, left = super().step_request(role), self._limits.max_tokens - self.tokens
        if left >= request.max_tokens:
            return request
        return dataclasses.replace(
            request, max_tokens=max(1, left), least_tokens=min(request.least_tokens, max(1, left))
        )

    async def ask(self, role: Role, request: Request) -> Completion:
        """The completion; where the strong model is down and the weak one may go on, a refusal that says so."""
        try:
            result = await super().ask(role, request)
            failure = result.failed
        except BackendError as error:
            failure = failure_of(error)
            if role == "weak" or not self._limits.keep:
                self.failure = failure
                raise
        if failure is None or failure.kind == "budget":
            return result
        self.failure = failure
        if role == "weak" or not self._limits.keep:
            return result
        reason = f"the strong model is down: {failure.reason}"
        self.failure, self.faults = None, [*self.faults, reason]
        return Completion.of_failure(Failure("budget", reason), n=request.n)

    async def _decide(self) -> bool:
        """Let the policy decide; without a scorer the weak model's step stands, where it may."""
        try:
            return await super()._decide()
        except (BackendError, ScorerError) as error:
            self.failure = failure_of(error)
            if not self._limits.keep:
                raise
        self.faults.append(f"the scorer is down: {self.failure.reason}")
        self.failure = None
        return self._act(Keep(self.faults[-1]))


class _ReviewedAnswer(ServedAnswer, Reviewed):
    """An answer under a policy on whole solutions."""


def answer_for(policy: Policy, *given: Any) -> ServedAnswer:
    """An answer under `policy`, with what else a `ServedAnswer` takes; see there.

    Example:
        answer_for(policy, problem, models, settings, account, Limits(100), lambda text, step: print(text))
    """
    problem, models, *rest = given
    return (_ReviewedAnswer if policy.when == "solution" else ServedAnswer)(problem, models, policy, *rest)
