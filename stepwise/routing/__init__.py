"""Who writes each step: policies, the loop that runs them, and figures of merit.

`StepRouter` (a DSPy module) and the loop are loaded when they are first used; the policies cost nothing to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stepwise.routing.policy import (
    Action,
    Escalate,
    HandOver,
    Keep,
    Policy,
    Resample,
    View,
    policy_from_config,
    policy_from_dict,
    policy_to_dict,
)
from stepwise.routing.simple import Always, Never, Random, Threshold

if TYPE_CHECKING:
    from stepwise.routing.belief import ObservationLaw, StepFilter
    from stepwise.routing.lockstep import Models, RouteSettings, RoutingInterrupted, route_all
    from stepwise.routing.planned import BeliefThreshold, Planned, Published
    from stepwise.routing.pomdp import Plan, RoutingPomdp
    from stepwise.routing.router import StepRouter

_LAZY = {
    "BeliefThreshold": "planned",
    "Models": "lockstep",
    "ObservationLaw": "belief",
    "Plan": "pomdp",
    "Planned": "planned",
    "Published": "planned",
    "RouteSettings": "lockstep",
    "RoutingInterrupted": "lockstep",
    "RoutingPomdp": "pomdp",
    "StepFilter": "belief",
    "StepRouter": "router",
    "route_all": "lockstep",
}

__all__ = [
    "Action",
    "Always",
    "BeliefThreshold",
    "Escalate",
    "HandOver",
    "Keep",
    "Models",
    "Never",
    "ObservationLaw",
    "Plan",
    "Planned",
    "Policy",
    "Published",
    "Random",
    "Resample",
    "RouteSettings",
    "RoutingInterrupted",
    "RoutingPomdp",
    "StepFilter",
    "StepRouter",
    "Threshold",
    "View",
    "policy_from_config",
    "policy_from_dict",
    "policy_to_dict",
    "route_all",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'stepwise.routing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"stepwise.routing.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
