"""The controls of every comparison: never, always, at random.

They decide before the weak model has drafted, so they waste no draft; in TRIM's runs the target-only arm is a threshold
above every score and pays for all drafts.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.routing.policy import Action, Escalate, HandOver, Keep, Policy, View

_FROZEN = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_FROZEN)
class Never(Policy):
    """The weak model alone."""

    name: ClassVar[str] = "never"

    def decide(self, view: View) -> Action:
        """Keep."""
        return Keep("the weak model alone")


@dataclass(frozen=True, config=_FROZEN)
class Always(Policy):
    """The strong model alone; the weak one writes nothing."""

    name: ClassVar[str] = "always"

    def decide(self, view: View) -> Action:
        """Hand over."""
        return HandOver("the strong model alone")


@dataclass(frozen=True, config=_FROZEN)
class Random(Policy):
    """Each step goes to the strong model with probability `p`, decided before the weak model drafts it.

    With one seed the draws are shared between rates: a step escalated at p = 0.2 is also escalated at p = 0.4, at the
    same prefix.
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
