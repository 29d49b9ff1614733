"""TRIM's routing POMDP (arXiv 2601.10245): the belief, the exact plan, the policies that decide by it, and its fit.

`policies` is the method, from the scores of a solution to a decision; it stands on `filter` (the belief over right,
wrong earlier, wrong just now) and `solve` (what each action is worth at a belief). `fit` finds the parameters from
traces (`fit_data`, `fit_em`, `fit_check`), and `simulator` draws episodes of a fitted model.
"""

from stepwise.routing.pomdp.filter import Belief, ObservationLaw, StepFilter
from stepwise.routing.pomdp.policies import BeliefThreshold, Planned, Published
from stepwise.routing.pomdp.solve import Plan, RoutingPomdp

__all__ = [
    "Belief",
    "BeliefThreshold",
    "ObservationLaw",
    "Plan",
    "Planned",
    "Published",
    "RoutingPomdp",
    "StepFilter",
]
