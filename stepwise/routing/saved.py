"""The policies by their names in a config, and in files, with a card of the models that one was fitted or set for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stepwise.config import Config, RoutingConfig
from stepwise.errors import ConfigError, DataError, reason_of
from stepwise.io import read_json, write_text
from stepwise.plugins import check_choice, import_path, is_import_path, load_plugin, make_plugin, options_of
from stepwise.routing.deciding import check_policy, needs_scorer
from stepwise.routing.guarantee import Promise
from stepwise.routing.learned import Learned
from stepwise.routing.names import ModelNames
from stepwise.routing.policies import Always, Judged, Never, Random, Threshold
from stepwise.routing.policy import Policy, Signal
from stepwise.routing.pomdp.fit import RouterFit
from stepwise.routing.pomdp.policies import BeliefThreshold, Planned, Published
from stepwise.routing.query import Cascade, QueryClassifier, QueryRandom
from stepwise.routing.relay import Relay
from stepwise.routing.signal_policies import Signalled, TwoStage
from stepwise.routing.signals import SIGNALS, as_signal, signal_to_dict

_CLASSES: tuple[type[Policy], ...] = (
    Never, Always, Random, Threshold, QueryRandom, QueryClassifier, Cascade, Signalled, TwoStage, Judged,
    BeliefThreshold, Planned, Published, Learned, Relay,
)  # fmt: skip
POLICIES: dict[str, type[Policy]] = {cls.name: cls for cls in _CLASSES}
_REMOVED = ("stay", "hand_over", "strong_law")  # of policies on the belief, before 0.1.0


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """`{"policy": name, **fields}`, plain JSON; the inverse of `policy_from_dict`. A policy of a user is named by its
    import path. Raises `ConfigError` for one that has none, and for fields that are no plain JSON.

    Example:
        >>> policy_to_dict(Threshold(0.4))
        {'policy': 'threshold', 'threshold': 0.4}
    """
    name = policy.name if POLICIES.get(policy.name) is type(policy) else import_path(policy)
    row = {"policy": name, **_plain(options_of(policy))}
    try:
        json.dumps(row)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{type(policy).__name__} cannot be saved ({error}); keep numbers and texts in it") from None
    return row


def policy_from_dict(settings: Mapping[str, Any], *, allowed: Collection[str] | None = None) -> Policy:
    """The policy named by `settings["policy"]` with those of the other settings that are its fields.

    Settings of other policies are ignored, but not for a policy by its import path. `allowed` are the modules that
    settings from a saved file may have imported; None where the user wrote them himself. Raises `ConfigError` for an
    unknown policy (naming the nearest), a wrong value, and a module that is not allowed.

    Example:
        >>> policy_from_dict({"policy": "random", "p": 0.2})
        Random(p=0.2, seed=0)
    """
    name = str(settings.get("policy", ""))
    options = {key: value for key, value in settings.items() if key != "policy"}
    if not is_import_path(name):
        check_choice("routing.policy", name, POLICIES)
        if removed := [key for key in _REMOVED if options.get(key)]:
            raise ConfigError(
                f"routing.{removed[0]} is {options[removed[0]]!r}: {name!r} had this option in a version before 0.1.0 "
                "and has it no more; set the policy again without it"
            )
        fields = {field.name for field in dataclasses.fields(POLICIES[name])}  # type: ignore[arg-type]
        options = {key: value for key, value in options.items() if key in fields}
    return _policy(name, options, allowed)


def as_policy(value: Policy | type[Policy] | str | Mapping[str, Any], field: str = "policy") -> Policy:
    """A policy from an object, a class, a name or import path, or what `policy_from_dict` takes.

    Raises `ConfigError`, with the remedy, for anything else.

    Example:
        >>> as_policy("never"), as_policy(Threshold)
        (Never(), Threshold(threshold=0.5))
    """
    if isinstance(value, str | Path) and str(value).endswith(".json"):
        raise ConfigError(
            f"{field} is '{value}'; take it from the file by load_policy('{value}').policy of stepwise.routing"
        )
    if isinstance(value, str | Mapping):
        return policy_from_dict({"policy": value} if isinstance(value, str) else value)
    return check_policy(value, field=field)


def policy_from_config(routing: RoutingConfig) -> Policy:
    """The policy that a `RoutingConfig` asks for; raises `ConfigError` as `policy_from_dict` does, and for options that
    it does not have.

    Example:
        >>> policy_from_config(RoutingConfig(policy="threshold", threshold=0.3))
        Threshold(threshold=0.3)
    """
    defaults = {"threshold": {"threshold": routing.threshold}, "random": {"p": routing.probability}}
    return _policy(routing.policy, {**defaults.get(routing.policy, {}), **routing.options}, None)


def _policy(name: str, options: Mapping[str, Any], allowed: Collection[str] | None) -> Policy:
    path = is_import_path(name)
    cls = load_plugin(name, Policy, field="routing.policy", allowed=allowed) if path else POLICIES[name]
    signals = {
        key: as_signal(value, allowed)
        for key, value in options.items()
        if isinstance(value, Mapping) and (value.get("name") in SIGNALS or is_import_path(str(value.get("name", ""))))
    }
    return check_policy(make_plugin(cls, {**options, **signals}, field="routing.policy"), field="routing.policy")


def _plain(value: Any) -> Any:
    """`value` with signals and dataclasses as dictionaries, a signal with its name."""
    if isinstance(value, Signal):
        return signal_to_dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(options_of(value))
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value


_REMEDY = "give a saved policy, or the fit.json of `stepwise fit_router`"


class SavedPolicy(NamedTuple):
    """What a file holds: `card` has the models that it was made for, None where it says nothing of them; `promise` what
    was certified of it with these models, and with no others.

    Example:
        saved = load_policy("policy.json")
        saved.check(config, router.card)  # raises where it is for other models
    """

    policy: Policy
    card: ModelNames | None
    promise: Promise | None = None

    def check(self, config: Config, card: ModelNames) -> None:
        """Raise `ConfigError` where the policy is for other models than those of `config`, whose card is `card`."""
        if self.card is None:
            return
        if not self.card.prompt:  # it names the models as a configuration does
            names = config.models.weak.model, config.models.strong.model, config.scorer.title
            card = ModelNames(*names, splitter=config.prompt.splitter)
        self.card.check(card, scorer=not self.card.prompt or needs_scorer(self.policy))


def save_policy(path: str | Path, policy: Policy, card: ModelNames | None = None, **more: Any) -> None:
    """Write one JSON object with `policy`, `card` and whatever else is given, which must be plain JSON.

    Raises `ConfigError` for what is no policy.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "policy.json"
        >>> save_policy(path, Threshold(0.4))
        >>> load_policy(path).card is None
        True
    """
    check_policy(policy)
    shown = None if card is None else dataclasses.asdict(card)
    write_text(path, json.dumps({"policy": policy_to_dict(policy), "card": shown, **more}, indent=1) + "\n")


def load_policy(path: str | Path, *, allow_import: Collection[str] = ()) -> SavedPolicy:
    """The policy in a file that `save_policy` or `Calibrated.save` wrote, the plan of a `RouterFit`, or the policy
    whose card `stepwise train_router` wrote.

    A policy of a user stands there by its import path, and is imported only from the modules `allow_import` names.
    Raises `DataError` for a file that is missing or holds neither, `ConfigError` for a policy that is not known and for
    a module that is not allowed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "policy.json"
        >>> save_policy(path, Threshold(0.4))
        >>> load_policy(path).policy
        Threshold(threshold=0.4)
    """
    row = read_json(path, _REMEDY)
    if "p_weak" in row:
        fit = RouterFit.load(path)
        models = fit.card.models if fit.signal is None else dataclasses.replace(fit.card.models, scorer=None)
        return SavedPolicy(Planned(fit.pomdp(), fit.law, signal=fit.signal), models)
    if "runs" in row:
        learned = Learned(str(Path(path).parent), row.get("price"))
        return SavedPolicy(learned, learned.card.pair)
    settings, card = row.get("policy"), row.get("card")
    settings = row if isinstance(settings, str) else settings
    if not isinstance(settings, Mapping):
        raise DataError(f"{path} holds no policy; {_REMEDY}")
    try:
        names = None if card is None else ModelNames(**card)
    except (DataError, TypeError) as error:
        raise DataError(f"{path}, field card: {reason_of(error)}; give the file as it was written") from None
    try:
        promise = None if row.get("promise") is None else Promise(**row["promise"])
        return SavedPolicy(policy_from_dict(settings, allowed=allow_import), names, promise)
    except TypeError as error:
        raise DataError(f"{path}, field promise: {reason_of(error)}; give the file as it was written") from None
    except (ConfigError, DataError) as error:
        raise type(error)(f"{path}: {error}") from None
