"""Signals that cost nothing: how sure the weak model was of the tokens of its draft (`Step.token_stats`).

They come with every draft of a model in this process, and of a server that tells log-probabilities; one that tells none
is refused. Steps that the strong model wrote do not count in the running forms: what its tokens are worth is another
scale.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, PlainSerializer

from stepwise.errors import ConfigError
from stepwise.plugins import check_choice, make_plugin
from stepwise.records import record
from stepwise.routing.policy import Evidence, Signal, View, Worse
from stepwise.types import Problem, Step

Over = Literal["step", "worst", "mean"]


@record()
class _OfTokens(Signal):
    """Reads one number of `TokenStats`, `field`, of the draft and, where `over` says so, of the weak steps before.

    `over`: "step" is the draft's own value; "worst" the worst and "mean" the mean of all weak steps so far, the draft
    included.
    """

    over: Over = "step"

    evidence: ClassVar[Evidence] = "token_logprobs"
    field: ClassVar[str]

    @property
    def title(self) -> str:
        """Its name, and over what."""
        return self.name if self.over == "step" else f"{self.name}, {self.over} so far"

    def value(self, view: View) -> float | None:
        """In nats; None where the draft has no statistics."""
        if view.draft is None or (now := self._of(view.draft)) is None:
            return None
        if self.over == "step":
            return now
        before = (self._of(step) for step in view.steps if step.author == "weak")
        values = [now, *(value for value in before if value is not None)]
        if self.over == "mean":
            return sum(values) / len(values)
        return min(values) if self.worse == "low" else max(values)

    def score(self, problem: Problem, before: Sequence[Step], draft: Step) -> float | None:
        """The signal at `draft` as a score in [0, 1], the higher the better: exp of a log-probability or of minus an
        entropy.
        """
        value = self.value(View(problem, tuple(before), draft))
        return None if value is None else math.exp(min(0.0, value if self.worse == "low" else -value))

    def scored(self, problem: Problem, steps: Sequence[Step]) -> tuple[Step, ...]:
        """The steps with the signal in place of the score of every draft of the weak model, thrown away or not."""
        made = list[Step]()
        for step in steps:
            drafts = tuple(
                dataclasses.replace(draft, score=self.score(problem, made, draft) if draft.author == "weak" else None)
                for draft in (*step.discarded, step)
            )
            made.append(dataclasses.replace(drafts[-1], discarded=drafts[:-1]))
        return tuple(made)

    def _of(self, step: Step) -> float | None:
        return None if step.token_stats is None else getattr(step.token_stats, self.field)


@record()
class LeastLogprob(_OfTokens):
    """Log-probability of the least likely token of the draft; on real attempts the best of those that cost nothing.

    >>> sure, torn = TokenStats(-0.1, -0.02), TokenStats(-2.5, -0.3)
    >>> steps = [Step("So 3.", "weak", token_stats=torn), Step("And 4.", "weak", token_stats=sure)]
    >>> view = View(Problem("p", "?"), (steps[0],), steps[1])
    >>> LeastLogprob().value(view), LeastLogprob("worst").value(view), LeastLogprob("mean").value(view)
    (-0.1, -2.5, -1.3)
    """

    name: ClassVar[str] = "least_logprob"
    field: ClassVar[str] = "least"


@record()
class MeanLogprob(_OfTokens):
    """Mean log-probability of the tokens of the draft.

    >>> MeanLogprob().value(View(Problem("p", "?"), draft=Step("So 3.", "weak", token_stats=TokenStats(-2.5, -0.3))))
    -0.3
    """

    name: ClassVar[str] = "mean_logprob"
    field: ClassVar[str] = "mean"


@record()
class TokenEntropy(_OfTokens):
    """Mean over the places of the draft of the entropy of the next token; needs a model in this process.

    >>> TokenEntropy().value(View(Problem("p", "?"), draft=Step("3", "weak", token_stats=TokenStats(-2.5, -0.3, 0.4))))
    0.4
    """

    name: ClassVar[str] = "entropy"
    field: ClassVar[str] = "entropy"
    worse: ClassVar[Worse] = "high"
    evidence: ClassVar[Evidence] = "entropy"


TOKEN_SIGNALS: dict[str, type[_OfTokens]] = {cls.name: cls for cls in (LeastLogprob, MeanLogprob, TokenEntropy)}


def as_token_signal(given: Any, field: str = "signal") -> Any:
    """A signal of this file as it is, by its name ("least_logprob", or with what it is taken over,
    "least_logprob:worst"), or from a dictionary of its fields; None as it is. Raises `ConfigError` for anything else.

    >>> as_token_signal("least_logprob:worst")
    LeastLogprob(over='worst')
    """
    if given is None or isinstance(given, _OfTokens):
        return given
    if isinstance(given, str):
        name, _, over = given.partition(":")
        given = {"name": name, **({"over": over} if over else {})}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{field} is {given!r}; give one of {', '.join(TOKEN_SIGNALS)}")
    options = dict(given)
    check_choice(field, name := options.pop("name", ""), TOKEN_SIGNALS)
    return make_plugin(TOKEN_SIGNALS[name], options, field=field)


AsScore = Annotated[
    Any,
    BeforeValidator(as_token_signal),
    PlainSerializer(lambda signal: None if signal is None else {"name": signal.name, "over": signal.over}),
]
"""A signal of this file that stands in for the score, None for the scorer's own."""
