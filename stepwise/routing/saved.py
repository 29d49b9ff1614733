"""The policies by their names in a config, and in files, with a card of the models that one was fitted or set for."""

from __future__ import annotations

import dataclasses
import difflib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from stepwise.config import Config
from stepwise.errors import ConfigError, DataError
from stepwise.io import write_text
from stepwise.routing.judged import Judged
from stepwise.routing.learned import Learned, ModelNames
from stepwise.routing.policy import Policy, needs_scorer
from stepwise.routing.pomdp.fit import FitCard, RouterFit
from stepwise.routing.pomdp.policies import BeliefThreshold, Planned, Published
from stepwise.routing.query import Cascade, QueryClassifier, QueryRandom
from stepwise.routing.signal_policies import Signalled, TwoStage
from stepwise.routing.simple import Always, Never, Random
from stepwise.routing.trim import Threshold

_CLASSES: tuple[Any, ...] = (
    Never, Always, Random, Threshold, QueryRandom, QueryClassifier, Cascade, Signalled, TwoStage, Judged,
    BeliefThreshold, Planned, Published, Learned,
)  # fmt: skip
_POLICIES: dict[str, Any] = {cls.name: cls for cls in _CLASSES}
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
    if name not in _POLICIES:
        near = difflib.get_close_matches(name, _POLICIES, n=1, cutoff=0.0)
        raise ConfigError(
            f"routing.policy is {name!r}; did you mean {near[0]!r}? Known policies: {', '.join(_POLICIES)}"
        )
    cls = _POLICIES[name]
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


_REMEDY = "give a saved policy, or the fit.json of programs.fit_router"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PolicyCard:
    """Names of the models (weights and adapter) and hash of the prompt that a policy was set for."""

    weak: str
    strong: str
    scorer: str | None
    prompt: str

    def check(self, other: PolicyCard, *, scorer: bool = True) -> None:
        """Raise `ConfigError` unless these are the models of `other`; the scorer counts only where the policy asks
        it.
        """
        for role in ("weak", "strong", *(["scorer"] if scorer else []), "prompt"):
            ours, theirs = getattr(self, role), getattr(other, role)
            if ours != theirs:
                what = "with the prompt" if role == "prompt" else f"for the {role} model"
                raise ConfigError(
                    f"the policy was set {what} {ours!r}, the router has {theirs!r}; set it again for these models, "
                    "or force it"
                )


class SavedPolicy(NamedTuple):
    """What a file holds: `card` is None where it says nothing of models."""

    policy: Policy
    card: PolicyCard | FitCard | ModelNames | None

    def check(self, config: Config, card: PolicyCard) -> None:
        """Raise `ConfigError` where the policy is for other models than those of `config`, whose card is `card`."""
        if isinstance(self.card, FitCard | ModelNames):
            names = {"weak": config.models.weak.model, "strong": config.models.strong.model}
            self.card.check(**names, scorer=config.scorer.model)
        elif self.card is not None:
            self.card.check(card, scorer=needs_scorer(self.policy))


def save_policy(path: str | Path, policy: Policy, card: PolicyCard | None = None, **more: Any) -> None:
    """Write one JSON object with `policy`, `card` and whatever else is given, which must be plain JSON."""
    shown = None if card is None else dataclasses.asdict(card)
    write_text(path, json.dumps({"policy": policy_to_dict(policy), "card": shown, **more}, indent=1) + "\n")


def load_policy(path: str | Path) -> SavedPolicy:
    """The policy in a file that `save_policy` or `Calibrated.save` wrote, the plan of a `RouterFit`, or the policy
    whose card programs.train_router wrote.

    Raises `DataError` for a file that is missing or holds neither, `ConfigError` for a policy that is not known.
    """
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {_REMEDY}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); {_REMEDY}") from None
    row = row if isinstance(row, dict) else {}
    if "p_weak" in row:
        fit = RouterFit.load(path)
        return SavedPolicy(Planned(fit.pomdp(), fit.law), fit.card)
    if "runs" in row:
        learned = Learned(str(Path(path).parent), row.get("price"))
        return SavedPolicy(learned, learned.card.pair)
    settings, card = row.get("policy"), row.get("card")
    settings = row if isinstance(settings, str) else settings
    if not isinstance(settings, Mapping):
        raise DataError(f"{path} holds no policy; {_REMEDY}")
    try:
        return SavedPolicy(policy_from_dict(settings), None if card is None else PolicyCard(**card))
    except (ValidationError, TypeError) as error:
        reason = " ".join(str(error).split("\n")[:3])
        raise DataError(f"{path}, field card: {reason}; give the file as it was written") from None
