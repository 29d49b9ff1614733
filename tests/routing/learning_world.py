"""A small routing problem to learn in, and short trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stepwise.routing.learned import Learned
from stepwise.routing.names import ModelNames
from stepwise.routing.pomdp import RoutingPomdp
from stepwise.routing.pomdp.filter import ObservationLaw, StepFilter
from stepwise.routing.pomdp.simulator import Drafts, RouterSimulator
from stepwise.routing.ppo import PpoSettings, train

MODEL = RoutingPomdp(
    p_weak=0.8,
    p_strong=(0.97,),
    hazard=(0.0, 0.0, 0.0, 0.2, 0.2, 0.3, 0.4, 0.5, 1.0),
    observation=((0.04, 0.08, 0.18, 0.70), (0.40, 0.35, 0.15, 0.10), (0.55, 0.30, 0.10, 0.05)),
    tokens_per_step=20.0,
    reward=1.0,
    discount=1.0,
)
LAW = ObservationLaw((0.0, 0.25, 0.5, 0.75, 1.0), MODEL.observation)
WORLD = RouterSimulator(MODEL, LAW, token_spread=0.0, strong_scored=False)
PAIR = ModelNames("llamacpp/lab-weak", "llamacpp/lab-strong", "llamacpp/lab-scorer")


def trained(directory: Path, world: RouterSimulator = WORLD, **settings: Any) -> Learned:
    """A training of a few small batches, unless `settings` say otherwise."""
    given = {"batches": 6, "problems": 16, "validate_every": 2, "validation": 50, "test": 50, **settings}
    return train(world, PpoSettings(**given), PAIR, directory)


class Optimal:
    """Acts in the simulator as the exact plan does on the filtered belief."""

    def __init__(self, world: RouterSimulator, **plan: Any) -> None:
        self.plan = world.model.solve(eps=1e-6, **plan)
        self.filter = StepFilter(world.law, world.model.p_weak, world.model.p_strong)
        self.x = np.empty(0)

    def __call__(self, drafts: Drafts) -> list[int]:
        """0 to keep, 1 to rewrite; every draft of the step before that did not end the solution is here again."""
        before = np.ones(len(drafts.scores)) if drafts.step == 0 else self.x
        actions, after = list[int](), list[float]()
        for x, scores, tokens, last in zip(before, drafts.scores, drafts.tokens, drafts.last, strict=True):
            belief = self.filter.drafted(min(x, 1.0), scores[-1])
            keep, rewrite = self.plan.action_values(drafts.step, belief, tokens[-1], last=bool(last))
            actions.append(int(rewrite > keep))
            if not last:
                after.append(self.filter.committed(belief, actions[-1]))
        self.x = np.asarray(after)
        return actions
