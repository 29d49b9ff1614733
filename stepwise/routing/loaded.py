"""What a router is made of, as a DSPy module: its models loaded and closed, its state saved, pickled and copied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import dspy
from dspy.predict.parameter import Parameter

from stepwise.config import BudgetConfig, LoadConfig, ModelConfig, Prices, SamplingConfig, ScorerConfig, suited
from stepwise.errors import ConfigError, DataError, wrong_type
from stepwise.models import load_backend
from stepwise.models.budget import Ledger
from stepwise.models.scorers import load_scorer
from stepwise.models.scorers.load import check_scorer
from stepwise.models.sizes import complete, in_words
from stepwise.models.store import CallCache
from stepwise.plugins import is_import_path
from stepwise.prompt import SolvePrompt
from stepwise.routing.policy import Policy
from stepwise.routing.route import Models
from stepwise.routing.saved import policy_from_dict, policy_to_dict
from stepwise.routing.settings import RouteSettings
from stepwise.runs.progress import announce

_log = logging.getLogger(__package__)


class _OwnState(Parameter):
    """The state of a module that is not made of predictors, for programs that it is part of: DSPy's `save` looks into a
    program for parameters alone, and would leave the module out without a word.
    """

    def __init__(self, module: dspy.Module) -> None:
        self.module = module

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The module's."""
        state: dict[str, Any] = self.module.dump_state(json_mode)
        return state

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> _OwnState:
        """See the module."""
        self.module.load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)
        return self

    def reset(self) -> None:
        """Nothing is learned here that could be reset."""


class LoadedRouter(dspy.Module):
    """The part of `StepRouter` that owns models and state.

    Example:
        router = sw.StepRouter("llamacpp/lab-weak", "llamacpp/lab-strong", "llamacpp/lab-scorer")
        router.budget = {"strong_tokens": 10_000}
        router.save("router.json")  # policy, settings and names of models
    """

    policy: Policy
    prompt: SolvePrompt
    settings: RouteSettings
    models: Models
    ledger: Ledger
    cache: CallCache | None
    prices: dict[str, Prices | None]
    _allow_import: frozenset[str]
    _owned: list[Any]
    _specs: dict[str, Any]

    def __init__(self, callbacks: Sequence[Any]) -> None:
        super().__init__(callbacks=list(callbacks))
        self.state = _OwnState(self)

    @property
    def budget(self) -> BudgetConfig:
        """The caps of the ledger; setting them (a mapping will do) counts from there on, what was spent included."""
        caps: BudgetConfig = self.ledger.caps
        return caps

    @budget.setter
    def budget(self, caps: BudgetConfig | Mapping[str, Any]) -> None:
        self.ledger.caps = BudgetConfig.of(caps, "budget")

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Policy and settings as plain JSON, with the names of the models; DSPy's `save` writes it."""
        return {
            "policy": policy_to_dict(self.policy),
            "prompt": self.prompt.model_dump(mode="json"),
            "sampling": self.settings.sampling.model_dump(mode="json"),
            "budget": self.budget.model_dump(mode="json"),
            "max_steps": self.settings.max_steps,
            "seed": self.settings.seed,
            "window": self.settings.window,
            "models": self._names(),
        }

    def load(self, path: str | Path, *args: Any, allow_import: Collection[str] = (), **kwargs: Any) -> None:
        """DSPy's; a user's policy is imported from modules in `allow_import` (those of the constructor too, where the
        router of a larger program gets them), and from that of this router's policy.
        """
        self._allow_import |= frozenset(allow_import)
        try:
            super().load(path, *args, **kwargs)
        except KeyError as error:
            raise DataError(f"{path} holds no router ({error} is missing); give a file that `save` wrote") from None

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Take over policy and settings; the models stay those this router was made with, and so do its caps, where it
        has any, and what it has spent: those of the file count for a router without caps.

        Raises `ConfigError` when the state was saved with models of other names or with another prompt: its policy
        was set for those. A policy of a user is imported as `load` says.
        """
        if state["models"] != self._names():
            raise ConfigError(
                f"this state was saved with models {state['models']}, the router has {self._names()}; "
                "make the router with the same models, or fit its policy anew"
            )
        if SolvePrompt(**state["prompt"]) != self.prompt:
            raise ConfigError(
                f"this state was saved with prompt {state['prompt']}; make the router with prompt=SolvePrompt(**that)"
            )
        sampling, caps = SamplingConfig(**state["sampling"]), BudgetConfig(**state["budget"])
        settings = RouteSettings(
            sampling, state["max_steps"], state["seed"], state["window"], self.prompt, allow_lab=self.settings.allow_lab
        )
        allowed = {*self._allow_import, type(self.policy).__module__}
        self.policy, self.settings = policy_from_dict(state["policy"], allowed=allowed), settings
        if self.budget == BudgetConfig():
            self.budget = caps
        elif caps not in (self.budget, BudgetConfig()):
            _log.warning("the caps of this router stay (%s); those that were saved are left out (%s)",
                         *(each.model_dump(exclude_defaults=True) for each in (self.budget, caps)))  # fmt: skip

    def close(self) -> None:
        """Free the models that this router loaded itself; calling it twice does nothing."""
        while self._owned:
            self._owned.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that shares the loaded models and the budget; only the original closes the models."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, _owned=[], history=[], state=_OwnState(other))
        return other

    def __copy__(self) -> Self:
        """The same as a deep copy."""
        return self.__deepcopy__({})

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and `save(..., save_program=True)` write: how models are loaded, not the models, and no cache.

        Raises `ConfigError` for a model that was handed in loaded and cannot be written.
        """
        for role, spec in self._specs.items():
            if getattr(spec, "engines", ()):
                raise ConfigError(
                    f"{role}: a model that is loaded cannot be saved with the program; make the router with its name "
                    "or configuration, or save its state alone: router.save('router.json')"
                )
        state: dict[str, Any] = super().__getstate__()
        made_anew = ("models", "cache", "ledger", "state", "_owned")
        return {"caps": self.budget, **{key: value for key, value in state.items() if key not in made_anew}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The router with its models loaded; its caps begin anew."""
        state = dict(state)
        caps = state.pop("caps")
        super().__setstate__(state)
        self._owned, self.state, self.cache = [], _OwnState(self), None
        self.models = self._loaded()
        self.ledger = self._new_ledger(caps)

    def _new_ledger(self, caps: BudgetConfig) -> Ledger:
        roles = [role for role, model in self.models._asdict().items() if model is not None]
        return Ledger(caps, self.prices, roles=roles)

    def _prompt_of(self, prompt: SolvePrompt | Mapping[str, Any] | None) -> SolvePrompt:
        """The prompt of this router: the one given, else that of the models that are handed in loaded.

        Raises `ConfigError` where a model that is handed in puts another one around questions.
        """
        handed = {role: spec for role, spec in self._specs.items() if hasattr(spec, "prompt_hash")}
        known = (getattr(spec, "prompt", None) for spec in handed.values())
        theirs = next((each for each in known if isinstance(each, SolvePrompt)), None)
        if prompt is None and theirs is not None:
            agreed = theirs
        else:
            agreed = SolvePrompt() if prompt is None else SolvePrompt.of(prompt, "prompt")
            if (named := loading("weak", self._specs["weak"])) is not None:
                agreed = suited(agreed, named.model)
        for role, spec in handed.items():
            if spec.prompt_hash and spec.prompt_hash != agreed.hash:
                load = "load_scorer" if role == "scorer" else "load_backend"
                raise ConfigError(
                    f"{role}: {getattr(spec, 'name', 'it')} was loaded under another prompt ({spec.prompt_hash}) than "
                    f"this router's ({agreed.hash}); load it under the same one: sw.{load}(..., prompt=PROMPT)"
                )
        for role in ("weak", "strong") if prompt is not None and agreed != SolvePrompt() else ():
            spec = self._specs[role]
            if hasattr(spec, "continue_solutions") and not getattr(spec, "prompt_hash", ""):
                raise ConfigError(
                    f"{role}: {type(spec).__name__} does not say which prompt it puts around questions, so prompt= may "
                    "not hold; give it `prompt_hash = PROMPT.hash` if it is that one, or leave prompt= out"
                )
        return agreed

    def _loaded(self) -> Models:
        if isinstance(named := loading("scorer", self._specs["scorer"]), ScorerConfig):
            check_scorer(named)
        result = complete(
            {role: load for role, spec in self._specs.items() if (load := loading(role, spec)) is not None}
        )
        if result.fresh:
            announce(in_words(result))
        self._loads, specs = result.models, {**self._specs, **result.models}
        weak, strong = (self._load(role, specs[role], load_backend) for role in ("weak", "strong"))
        scorer = specs["scorer"]
        scoring = partial(load_scorer, weak=weak)
        return Models(weak, strong, None if scorer is None else self._load("scorer", scorer, scoring))

    def _names(self) -> dict[str, str | None]:
        names = {role: getattr(model, "name", None) for role, model in self.models._asdict().items()}
        return names | {"scorer": self.models.scorer and self.models.scorer.identity}  # with how it is set

    def _opened(self, cache: CallCache | str | Path | None) -> CallCache | None:
        if isinstance(cache, str | Path):
            cache = CallCache(cache)
            self._owned.append(cache)
        if not isinstance(cache, CallCache | None):
            raise ConfigError(wrong_type("cache", cache, "give a CallCache, or the path of its file"))
        return cache

    def _load(self, role: str, spec: Any, load: Callable[..., Any]) -> Any:
        try:
            model = load(spec, prompt=self.prompt)
        except ConfigError as error:
            reason = str(error).removeprefix("model: ").removeprefix("scorer: ")
            raise ConfigError(f"{role}: {reason}") from None
        if model is not spec and hasattr(model, "close"):
            self._owned.append(model)
        return model

    def _prices(self) -> dict[str, Prices | None]:
        """What each model costs: known of a configuration or a name, unknown of an object."""
        loads = {role: loading(role, spec) for role, spec in self._specs.items()}
        return {role: None if load is None else load.prices for role, load in loads.items()}


def loading(role: str, spec: Any) -> LoadConfig | None:
    """How the model of a role is loaded, by its name or configuration; None for an object.

    >>> loading("weak", "llamacpp/lab-weak").model, loading("weak", object())
    ('llamacpp/lab-weak', None)
    """
    if isinstance(spec, str) and is_import_path(spec):
        spec = ScorerConfig(kind=spec)
    if isinstance(spec, str | Path | Mapping):
        spec = (ScorerConfig if role == "scorer" else ModelConfig).of(spec, role)
    return spec if isinstance(spec, LoadConfig) else None
