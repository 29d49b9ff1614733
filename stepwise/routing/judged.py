"""Routing by a language model that is shown the draft and says keep or escalate: what an agent would do, as a baseline.

It is no paper's policy. It has no operating point, so it is one point of a frontier, not a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise import critics
from stepwise.critics.formats import Format
from stepwise.errors import BackendError
from stepwise.models.provider import lm
from stepwise.routing.policy import Action, Escalate, Keep, Look, Policy, View, When

_FROZEN = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_FROZEN)
class Judged(Policy):
    """Escalates a drafted step where a language model says so (the signature `DecideStep`).

    The model sees the problem, the steps so far and the draft, their scores and what is left of the strong model's
    tokens. Where its answer cannot be read, also when asked again, or it does not answer, the draft is kept, and the
    decision says why. A draft without text is escalated without a question.

    What the model costs is in DSPy's usage, history and callbacks. It is not in the trace and counts for no cap of the
    budget: add it when policies are compared.

    Args:
        lm: a model's name, as `stepwise.lm` takes it; None: the model that DSPy is configured with.
        api_base: address of an OpenAI-compatible endpoint, with `lm`.
        api_key_env: name of the environment variable that holds the key, with `lm`.
        temperature: of the decisions, with `lm`; None: the model's default.
        format: how it is asked (see `stepwise.critics.formats`).
        scored: whether a scorer is called before each decision (and paid for); without one the model sees the scores
            of earlier steps where there are some.

    Deciding raises ConfigError for a model that cannot be had, BackendError where its provider refuses (a wrong key).
    """

    lm: str | None = None
    api_base: str | None = None
    api_key_env: str | None = None
    temperature: float | None = 0.0
    format: Format = "compact"
    scored: bool = False

    name: ClassVar[str] = "judged"
    when: ClassVar[When] = "after"

    @property
    def looks(self) -> Mapping[str, str]:
        """The scores, if they are wanted."""
        return {"scores": "policy 'judged' with scored=true"} if self.scored else {}

    async def decide(self, view: View) -> Action | Look:
        """Ask the model."""
        if self.scored and "scores" not in view.looked:
            return Look("scores")
        if view.draft is None or not view.draft.text.strip():
            return Escalate(reason="empty draft")
        import dspy
        from dspy.utils.exceptions import is_retryable_lm_error

        steps = [step.text for step in (*view.steps, view.draft)]
        try:
            answer = await _decider(self).acall(view.problem, steps, view.scores, view.strong_tokens_left)
        except dspy.LMError as error:
            if not is_retryable_lm_error(error) and not isinstance(error, dspy.ContextWindowExceededError):
                raise BackendError(f"the judge {self.lm or 'that DSPy is configured with'}: {error}") from error
            return Keep(f"the judge did not answer: {_line(str(error))}")
        if answer.failure is not None:
            return Keep(f"the judge's answer cannot be read: {_line(answer.failure)}")
        return (Escalate if answer.decision == "escalate" else Keep)(reason=f"the judge: {_line(answer.reason)}")


@lru_cache(maxsize=8)
def _decider(policy: Judged) -> Any:
    """The module that asks, made at the first decision: a policy is loaded and saved without its model."""
    settings = {"api_base": policy.api_base, "api_key_env": policy.api_key_env, "temperature": policy.temperature}
    given = {name: value for name, value in settings.items() if value is not None}
    return critics.StepDecider(lm(policy.lm, **given) if policy.lm is not None else None, adapter=policy.format)


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
