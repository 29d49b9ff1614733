"""What a model name stands for: a policy and its operating point, over the same loaded models."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from stepwise.config import POLICIES, Config
from stepwise.errors import StepwiseError, reason_of
from stepwise.routing.deciding import label_of
from stepwise.routing.names import ModelNames
from stepwise.routing.policy import Policy
from stepwise.routing.route import Models, check_models
from stepwise.routing.saved import load_policy, policy_from_config, policy_from_dict
from stepwise.routing.signal_policies import Signalled
from stepwise.routing.signals import SIGNALS
from stepwise.serve.requests import ApiError

DEFAULT = "router"
_NOT_BY_NAME = ("judged", "learned")  # one asks a model of DSPy's, outside of the caps; one reads a directory
_POINT = re.compile(r"-?\d{1,9}(?:\.\d{1,9})?(?:e-?\d{1,2})?", re.ASCII)
_NAME = re.compile(rf"router-(?P<policy>[a-z_]+)(?:-(?P<point>{_POINT.pattern}))?", re.ASCII)


class Served(NamedTuple):
    """A policy that answers, and what is known of it: whether it was set for these models and this prompt.

    Example:
        >>> Served(policy_from_dict({"policy": "never"}), False, "set by hand").label
        'Never (weak alone)'
    """

    policy: Policy
    calibrated: bool
    note: str

    @property
    def label(self) -> str:
        """Policy and operating point."""
        return label_of(self.policy)


class Policies:
    """The policies behind a server's model names:

        router                      the policy of [routing]
        router-POLICY, -SIGNAL      one by its name, such as router-never
        router-threshold-0.4        ... at an operating point
        router-probe-0.2            a threshold on the probe that [scorer] names
        router-saved-NAME           one of [serve.policies]; -0.4 moves it, without its promise

    No part of a name is read as a path or an import. Raises `ConfigError` or `DataError` for a saved policy that cannot
    be loaded, or is for other models; one that is for another prompt is marked as uncalibrated.
    """

    def __init__(self, config: Config, models: Models, card: ModelNames) -> None:
        self._config, self._models = config, models
        own = policy_from_config(config.routing)
        self._named = {DEFAULT: Served(self._checked(own), False, "set by hand")}
        for name, path in config.serve.policies.items():
            saved = load_policy(path, allow_import=config.serve.allow_import)
            saved.check(config, dataclasses.replace(card, prompt="", splitter=""))
            note = saved.promise and f"promise: {saved.promise}"
            try:
                saved.check(config, card)
            except StepwiseError as error:
                note = f"uncalibrated: {error}"
            calibrated = saved.card is not None and not str(note).startswith("uncalibrated")
            self._named[f"{DEFAULT}-saved-{name}"] = Served(self._checked(saved.policy), calibrated, str(note or ""))
        self.find = lru_cache(maxsize=1024)(self._find)

    def __iter__(self) -> Iterator[tuple[str, Served]]:
        """The names that are listed: own and saved ones, and each policy that needs no settings of its own."""
        yield from self._named.items()
        for name in ("never", "always", "threshold", "random", "probe"):
            try:
                yield f"{DEFAULT}-{name}", self._find(f"{DEFAULT}-{name}")
            except ApiError:  # it needs a scorer, say
                continue

    def _find(self, model: str) -> Served:
        """The policy of a model name; raises `ApiError` (404) where there is none."""
        if model in self._named:
            return self._named[model]
        reason = f"known are {', '.join(self._named)} and router-POLICY-POINT, such as router-threshold-0.4"
        match = _NAME.fullmatch(model)
        try:
            for name, served in self._named.items():
                if name != DEFAULT and model.startswith(f"{name}-") and _POINT.fullmatch(model[len(name) + 1 :]):
                    moved = served.policy.at(float(model[len(name) + 1 :]))
                    return Served(self._checked(moved), False, "moved from where it was set")
            if match is not None:
                return Served(self._checked(self._by_name(match["policy"], match["point"])), False, "set by hand")
        except (StepwiseError, ValueError, TypeError) as error:
            reason = reason_of(error)
        raise ApiError(404, f"the model {model!r:.200} does not exist: {reason}", code="model_not_found", param="model")

    def _by_name(self, name: str, point: str | None) -> Policy:
        if name in SIGNALS and name not in POLICIES:
            return Signalled(name, float(point or 0.0))
        routing, kind = self._config.routing, self._config.scorer.kind
        if name == "probe":
            if kind != "probe":
                raise ValueError(f'[scorer] is of kind "{kind}"; set kind = "probe" and model = "probe/DIRECTORY"')
            name = "threshold"
        own = {"threshold": routing.threshold, "p": routing.probability}
        if name in _NOT_BY_NAME and routing.policy != name:
            raise ValueError(f"policy {name!r} needs settings of its own; make it that of [routing]")
        options = {**own, **(routing.options if routing.policy == name else {})}
        policy = policy_from_dict({**options, "policy": name}, allowed=None)  # no import path is such a name
        if point is None:
            return policy
        if policy.point is None:
            raise ValueError(f"policy {name!r} has no operating point")
        return policy.at(float(point))

    def _checked(self, policy: Policy) -> Policy:
        return check_models(policy, self._models, self._config.allow_lab)
