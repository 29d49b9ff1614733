"""The policies that need no fitting: never, always, at random, and TRIM's score threshold.

1. `Always`, `Never` and `Random` decide before the weak model has drafted, so they waste no draft; in TRIM's runs the
   target-only arm is a threshold above every score and pays for all drafts.
2. `Threshold` compares strictly: a score equal to the threshold is kept.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.routing.policy import Action, Escalate, HandOver, Keep, Policy, View, When

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


@dataclass(frozen=True, config=_FROZEN)
class Threshold(Policy):
    """TRIM-Thr (arXiv 2601.10245): the strong model rewrites a drafted step iff its score is below `threshold`.

    Strictly below: 0 never escalates, and 1 keeps only steps scored exactly 1.0, so use anything above 1 (say 1.01) for
    "always". An empty draft cannot be scored and counts as 0.0 here.
    """

    threshold: float = Field(default=0.5, ge=0, allow_inf_nan=False)

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
