"""The weak model asks for help itself: RelayLLM (arXiv 2601.05167), one step at a time.

What differs from RelayLLM:
1. The call is one token, a spare one of the vocabulary, and stands for one step. RelayLLM's model writes
   `<call>n</call>` anywhere and says how many tokens it wants.
2. Where a step begins the probability of that token is read from the logits and compared, so that one trained model has
   a whole frontier: `bias` is added to its log-odds. RelayLLM draws it, and has the one point that its reward led to.
3. The call is in no text and no prefix: neither model ever reads it, and no draft can hold it. Whatever a problem or a
   step says, also the marker's own text, changes nothing but the model's mind.
4. The training (`data.calls`, `training.relay`): the warm start takes steps that were routed by another policy and that
   helped, RelayLLM's inserts calls at random; the reward is right less a price for each strong token, RelayLLM's has
   three cases by how a group went.
"""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from stepwise.records import record
from stepwise.routing.policy import Action, Escalate, Keep, Look, Policy, View

MARKER = "<|reserved_0|>"
"""A spare token of the lab's vocabulary."""


@record(allow_inf_nan=False)
class Relay(Policy):
    """Escalates a step, before it is drafted, where the weak model would rather ask for help than write it.

    Args:
        marker: the token by which it asks, with which it was trained.
        bias: added to the log-odds of the call, which escalates above 0; the operating point, in nats.

    Needs a weak model in this process whose adapter was trained to ask (`CapabilityError` else); any other hardly ever
    asks.

    Example:
        >>> Relay(bias=2.0).decide(View(Problem("p", "?"), call=math.log(0.2), looked=frozenset({"call"})))
        Escalate(steps=1, reason='P(call) 0.2: log-odds -1.39 + 2.00 > 0')
    """

    marker: str = Field(default=MARKER, min_length=1)
    bias: float = 0.0

    name: ClassVar[str] = "relay"
    dial: ClassVar[str] = "bias"

    @property
    def looks(self) -> tuple[str, ...]:
        """How likely the weak model asks."""
        return ("call",)

    @property
    def calls_per_step(self) -> dict[str, int]:
        """A glimpse and a draft."""
        return {"weak": 2}

    def decide(self, view: View) -> Action | Look:
        """Look at the probability, then compare."""
        if "call" not in view.looked:
            return Look("call", token=self.marker)
        if view.call is None:
            return Keep("the weak model could not be asked whether it wants help")
        odds = log_odds(view.call)
        called = odds + self.bias > 0
        reason = f"P(call) {math.exp(view.call):.3g}: log-odds {odds:.2f} {'-' if self.bias < 0 else '+'} "
        reason += f"{abs(self.bias):.2f} {'>' if called else '<='} 0"
        return Escalate(reason=reason) if called else Keep(reason)


def log_odds(logprob: float) -> float:
    """log(p / (1 - p)) of a log-probability; where p rounds to 1, at most 36.

    >>> round(log_odds(math.log(0.5)), 6)
    0.0
    """
    logprob = min(logprob, -(2.0**-52))
    return logprob - math.log(-math.expm1(logprob))
