"""One problem, models that follow a list of steps, and a policy that follows a list of actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from stepwise.routing import Action, Keep, Models, Policy, Resample, Threshold, View, route_all
from stepwise.routing.policy import When
from stepwise.types import Problem, Trace
from tests.fakes import Line, ScriptedBackend, ScriptedScorer

P = Problem("p", "How many?", "4")


def one(
    weak: Sequence[str | Line], strong: Sequence[str | Line] = (), policy: Policy | None = None, **scores: float
) -> Trace:
    """Route the single problem with models that follow a list of steps."""
    made = Models(ScriptedBackend({"p": weak}), ScriptedBackend({"p": strong}), ScriptedScorer(scores))
    return route_all([P], made, policy or Threshold(0.5))[0]


@dataclasses.dataclass(frozen=True)
class Scripted(Policy):
    """Does the action listed for the step index; keeps elsewhere."""

    actions: tuple[tuple[int, Action], ...]
    when: When = "after"  # type: ignore[misc]
    needs_scores: bool = False  # type: ignore[misc]
    name: ClassVar[str] = "scripted"

    def decide(self, view: View) -> Action:
        action = dict(self.actions).get(view.index, Keep())
        return Keep("enough") if isinstance(action, Resample) and view.attempt >= 2 else action


WEAK = [f"w{i}" for i in range(5)] + ["w \\boxed{4}"]
STRONG = [f"s{i}" for i in range(5)] + ["s \\boxed{4}"]
