"""Names that are not part of the public contract, by the places where a tree may have them: the new one, then the old.

When a module moves, add its new place in front. Everything else in this package uses the public names alone.
"""

from __future__ import annotations

import importlib
from typing import Any

PLACES = {
    "fit_router": ("stepwise.routing.pomdp", "stepwise.routing.pomdp.fit", "stepwise.routing.fit"),
    "from_lab_trace": ("stepwise.routing.pomdp", "stepwise.routing.pomdp.fit_data", "stepwise.routing.fit_data"),
    "RoutingPomdp": ("stepwise.routing.pomdp", "stepwise.routing"),
    "ObservationLaw": ("stepwise.routing", "stepwise.routing.pomdp", "stepwise.routing.belief"),
    "CollectSettings": ("stepwise.interventions", "stepwise.interventions.settings"),
    "Group": ("stepwise.credit", "stepwise.training.credit", "stepwise.credit.group"),
    "SCHEMES": ("stepwise.credit", "stepwise.training.credit"),
}


def resolve(name: str) -> Any:
    """The object of that name in the tree that runs. Raises `ImportError` where none of its places has it."""
    for place in PLACES[name]:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not place.startswith(error.name):
                raise
            continue
        if hasattr(module, name):
            return getattr(module, name)
    raise ImportError(f"{name} is in none of {', '.join(PLACES[name])}; add its new place in {__file__}")
