"""Policies in a few lines: never, always, at random, TRIM's threshold, and a language model that is asked.

`Never`, `Always` and `Random` are the controls of every comparison. They decide before the weak model has drafted, so
they waste no draft; in TRIM's runs the target-only arm is a threshold above every score and pays for all drafts.
`Judged` is what an agent would do, as a baseline: no paper's policy, and one point of a frontier, not a curve.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

from pydantic import Field

from stepwise import critics
from stepwise.critics.formats import Format
from stepwise.errors import BackendError
from stepwise.models.provider import lm
from stepwise.records import record
from stepwise.routing.policy import Action, Escalate, HandOver, Keep, Look, Policy, View, When


@record()
class Never(Policy):
    """The weak model alone.

    Example:
        >>> Never().decide(View(Problem("p", "?")))
        Keep(reason='the weak model alone')
    """

    name: ClassVar[str] = "never"

    def decide(self, view: View) -> Action:
        """Keep."""
        return Keep("the weak model alone")


@record()
class Always(Policy):
    """The strong model alone; the weak one writes nothing.

    Example:
        >>> Always().decide(View(Problem("p", "?")))
        HandOver(reason='the strong model alone')
    """

    name: ClassVar[str] = "always"

    def decide(self, view: View) -> Action:
        """Hand over."""
        return HandOver("the strong model alone")


@record()
class Random(Policy):
    """Each step goes to the strong model with probability `p`, decided before the weak model drafts it.

    With one seed the draws are shared between rates: a step escalated at p = 0.2 is also escalated at p = 0.4, at the
    same prefix.

    Example:
        >>> Random(1.0).decide(View(Problem("p", "?"))) == Escalate()
        True
    """

    p: float = Field(default=0.3, ge=0, le=1)
    seed: int = 0

    name: ClassVar[str] = "random"
    dial: ClassVar[str] = "p"

    def decide(self, view: View) -> Action:
        """Escalate this step with probability `p`."""
        draw = view.uniform(self.seed)
        reason = f"draw {draw:.2f} {'<' if draw < self.p else '>='} {self.p:.2f}"
        return Escalate(reason=reason) if draw < self.p else Keep(reason)


@record()
class Threshold(Policy):
    """TRIM-Thr (arXiv 2601.10245): the strong model rewrites a drafted step iff its score is below `threshold`.

    Strictly below: 0 never escalates, and 1 keeps only steps scored exactly 1.0, so 1.01, the highest, is "always". An
    empty draft cannot be scored and counts as 0.0 here.

    Example:
        >>> Threshold(0.5).decide(View(Problem("p", "?"), (), Step("So 3.", "weak", 0.3)))
        Escalate(steps=1, reason='score 0.30 < 0.50')
    """

    threshold: float = Field(default=0.5, ge=0, le=1.01, allow_inf_nan=False, description="scores lie in [0, 1]")

    name: ClassVar[str] = "threshold"
    when: ClassVar[When] = "after"
    needs_scores: ClassVar[bool] = True
    dial: ClassVar[str] = "threshold"

    def decide(self, view: View) -> Action:
        """Escalate iff the draft's score is below the threshold."""
        score = view.scores[-1] if view.scores else None
        below = (score or 0.0) < self.threshold
        digits = 2 if score is None or f"{score:.2f}" != f"{self.threshold:.2f}" else 6
        shown = "empty draft, counted as 0.00" if score is None else f"score {score:.{digits}f}"
        reason = f"{shown} {'<' if below else '>='} {self.threshold:.{digits}f}"
        return Escalate(reason=reason) if below else Keep(reason)


@record()
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

    Example:
        >>> Judged("llamacpp/lab-critic", scored=True).looks
        ('scores',)
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
    def looks(self) -> tuple[str, ...]:
        """The scores, if they are wanted."""
        return ("scores",) if self.scored else ()

    async def decide(self, view: View) -> Action | Look:
        """Ask the model."""
        if self.scored and "scores" not in view.looked:
            return Look("scores")
        if view.draft is None or not view.draft.text.strip():
            return Escalate(reason="empty draft")
        import dspy
        from dspy.utils.exceptions import is_retryable_lm_error

        steps, scores = zip(*((step.text, step.score) for step in (*view.steps, view.draft)), strict=True)
        try:
            answer = await _decider(self).acall(view.problem, steps, scores, view.strong_tokens_left)
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
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    return critics.StepDecider(lm(policy.lm, **given) if policy.lm is not None else None, adapter=policy.format)


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
