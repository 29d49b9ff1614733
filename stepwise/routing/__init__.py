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
    Look,
    Policy,
    Resample,
    Signal,
    View,
)

if TYPE_CHECKING:
    from stepwise.routing.calibration import calibrate
    from stepwise.routing.calibration_result import Calibrated
    from stepwise.routing.exploring import Exploring
    from stepwise.routing.learned import Learned
    from stepwise.routing.policies import Always, Judged, Never, Random, Threshold
    from stepwise.routing.pomdp import (
        BeliefThreshold,
        ObservationLaw,
        Plan,
        Planned,
        Published,
        RoutingPomdp,
        StepFilter,
    )
    from stepwise.routing.query import Cascade, QueryClassifier, QueryRandom, fit_query_classifier
    from stepwise.routing.relay import Relay
    from stepwise.routing.route import Models, RoutingInterrupted, route_all
    from stepwise.routing.router import StepRouter
    from stepwise.routing.saved import load_policy, policy_from_config, policy_from_dict, policy_to_dict, save_policy
    from stepwise.routing.settings import RouteSettings
    from stepwise.routing.signal_policies import Signalled, TwoStage, Watch, threshold_at
    from stepwise.routing.signals import (
        Agreement,
        CumulativeSum,
        FirstTokenEntropy,
        MaxLogit,
        MaxLogitMixture,
        ScoreDrop,
        StepScore,
        StrongRating,
        fit_mixture,
    )
    from stepwise.routing.token_signals import LeastLogprob, MeanLogprob, TokenEntropy


_LAZY = {
    "Agreement": "signals",
    "Always": "policies",
    "BeliefThreshold": "pomdp",
    "Calibrated": "calibration_result",
    "Cascade": "query",
    "CumulativeSum": "signals",
    "Exploring": "exploring",
    "FirstTokenEntropy": "signals",
    "Judged": "policies",
    "MaxLogit": "signals",
    "MaxLogitMixture": "signals",
    "MeanLogprob": "token_signals",
    "Learned": "learned",
    "LeastLogprob": "token_signals",
    "Models": "route",
    "Never": "policies",
    "ObservationLaw": "pomdp",
    "Plan": "pomdp",
    "Planned": "pomdp",
    "Published": "pomdp",
    "QueryClassifier": "query",
    "QueryRandom": "query",
    "Random": "policies",
    "Relay": "relay",
    "RouteSettings": "settings",
    "RoutingInterrupted": "route",
    "RoutingPomdp": "pomdp",
    "ScoreDrop": "signals",
    "Signalled": "signal_policies",
    "StepFilter": "pomdp",
    "StepRouter": "router",
    "StepScore": "signals",
    "StrongRating": "signals",
    "Threshold": "policies",
    "TokenEntropy": "token_signals",
    "TwoStage": "signal_policies",
    "Watch": "signal_policies",
    "calibrate": "calibration",
    "fit_mixture": "signals",
    "fit_query_classifier": "query",
    "load_policy": "saved",
    "policy_from_config": "saved",
    "policy_from_dict": "saved",
    "policy_to_dict": "saved",
    "route_all": "route",
    "save_policy": "saved",
    "threshold_at": "signal_policies",
}

__all__ = [
    "Action",
    "Agreement",
    "Always",
    "BeliefThreshold",
    "Calibrated",
    "Cascade",
    "CumulativeSum",
    "Escalate",
    "Exploring",
    "FirstTokenEntropy",
    "HandOver",
    "Judged",
    "Keep",
    "Learned",
    "LeastLogprob",
    "Look",
    "MaxLogit",
    "MaxLogitMixture",
    "MeanLogprob",
    "Models",
    "Never",
    "ObservationLaw",
    "Plan",
    "Planned",
    "Policy",
    "Published",
    "QueryClassifier",
    "QueryRandom",
    "Random",
    "Relay",
    "Resample",
    "RouteSettings",
    "RoutingInterrupted",
    "RoutingPomdp",
    "ScoreDrop",
    "Signal",
    "Signalled",
    "StepFilter",
    "StepRouter",
    "StepScore",
    "StrongRating",
    "Threshold",
    "TokenEntropy",
    "TwoStage",
    "View",
    "Watch",
    "calibrate",
    "fit_mixture",
    "fit_query_classifier",
    "load_policy",
    "policy_from_config",
    "policy_from_dict",
    "policy_to_dict",
    "route_all",
    "save_policy",
    "threshold_at",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'stepwise.routing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"stepwise.routing.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
