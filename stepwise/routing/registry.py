"""The policies by their names in a config, and as plain JSON."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from stepwise.errors import ConfigError
from stepwise.routing.judged import Judged
from stepwise.routing.learned import Learned
from stepwise.routing.policy import Policy
from stepwise.routing.pomdp.policies import BeliefThreshold, Planned, Published
from stepwise.routing.query import Cascade, QueryClassifier, QueryRandom
from stepwise.routing.signal_policies import Signalled, TwoStage
from stepwise.routing.simple import Always, Never, Random, Threshold

_CLASSES: tuple[Any, ...] = (
    Never, Always, Random, Threshold, QueryRandom, QueryClassifier, Cascade, Signalled, TwoStage, Judged,
    BeliefThreshold, Planned, Published, Learned,
)  # fmt: skip
POLICIES: dict[str, Any] = {cls.name: cls for cls in _CLASSES}
_REMOVED = ("stay", "hand_over", "strong_law")  # of policies on the belief, before 0.1.0


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """`{"policy": name, **fields}`, plain JSON; the inverse of `policy_from_dict`."""
    return {"policy": policy.name, **dataclasses.asdict(policy)}  # type: ignore[call-overload]


def policy_from_dict(settings: Mapping[str, Any]) -> Policy:
    """The policy named by `settings["policy"]` with those of the other settings that are its fields.

    Raises `ConfigError` for an unknown policy (naming the nearest) and for a wrong value; settings of other policies
    are ignored, so one `[routing]` table can hold them all.
    """
    name = str(settings.get("policy", ""))
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.0)
        raise ConfigError(
            f"routing.policy is {name!r}; did you mean {near[0]!r}? Known policies: {', '.join(POLICIES)}"
        )
    cls = POLICIES[name]
    if removed := [key for key in _REMOVED if settings.get(key)]:
        raise ConfigError(
            f"routing.{removed[0]} is {settings[removed[0]]!r}: {name!r} had this option in a version before 0.1.0 and "
            "has it no more; set the policy again without it"
        )
    fields = {field.name for field in dataclasses.fields(cls)}
    try:
        policy: Policy = cls(**{key: value for key, value in settings.items() if key in fields})
        return policy
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"routing.{key} is {reprlib.repr(first['input'])}: {first['msg']} (policy {name!r})"
        ) from error


def policy_from_config(routing: Any) -> Policy:
    """The policy that a `RoutingConfig` asks for; raises `ConfigError` as `policy_from_dict` does."""
    settings = routing.model_dump()
    return policy_from_dict({**settings, "p": settings.get("probability")})
