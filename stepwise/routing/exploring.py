"""A policy that now and then escalates what it would keep, so that what is learned from is not what it sees alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from stepwise.errors import ConfigError
from stepwise.routing.deciding import decide
from stepwise.routing.policy import Action, Escalate, Keep, Look, Policy, View
from stepwise.seeds import stable_hash


class Exploring(Policy):
    """`policy`, but for a share of the steps that it keeps, which are escalated; a draw a step, by the run's seed.

    Args:
        policy: whose decisions are taken.
        share: probability, in [0, 1), that a kept step is escalated; ConfigError for another.

    Example:
        >>> from stepwise.routing import Threshold
        >>> Exploring(Threshold(0.5), 0.05).needs_scores
        True
    """

    name: ClassVar[str] = "exploring"

    def __init__(self, policy: Policy, share: float) -> None:
        if not 0 <= share < 1:
            raise ConfigError(f"Exploring: share is {share}; give a probability below 1")
        self.policy, self.share = policy, share
        self.when, self.needs_scores = policy.when, policy.needs_scores  # type: ignore[misc]

    @property
    def looks(self) -> Any:
        """Those of `policy`."""
        return self.policy.looks

    @property
    def calls_per_step(self) -> Mapping[str, int]:
        """Those of `policy`."""
        return self.policy.calls_per_step

    async def decide(self, view: View) -> Action | Look:
        """What `policy` says; where that is to keep the step, it is escalated with probability `share`."""
        action = await decide(self.policy, view)
        draw = stable_hash(view.seed, view.problem.id, view.index, view.attempt, "explore") / 2**63
        if isinstance(action, Keep) and draw < self.share:
            return Escalate(reason=f"explored; {action.reason}")
        return action
