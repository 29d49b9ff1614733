"""What a run uses, as small frozen models read from TOML: one per concept, each also usable on its own.

Every field has a default, and `Config()` is the embedded lab, so a file holds only what differs from it. Where the weak
model is another, prompt and sampling that are not set suit models in general (`suited`), and what a model's engine
needs and is not set (context, sequences, threads) is found when it is loaded: `stepwise.models.sizes`. A key that
does not exist or a value of the wrong type is a `ConfigError` that names the file, the key, the nearest valid key and
the remedy. An API key is never a value here: `api_key_env` names the environment variable that holds it, and it is read
when it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from stepwise.config import errors as config_errors
from stepwise.config.budget import BudgetConfig, CapsConfig
from stepwise.config.errors import FrozenConfig
from stepwise.config.models import (
    ENGINE_KINDS,
    Ask,
    LoadConfig,
    ModelConfig,
    ModelsConfig,
    Prices,
    ScorerConfig,
    is_lab,
    is_lab_critic,
    model_name,
)
from stepwise.config.serving import ServeConfig
from stepwise.config.training import DpoConfig, LoraConfig, PrmConfig, RlConfig, SftConfig
from stepwise.config.workers import WorkersConfig
from stepwise.errors import ConfigError, wrong_type
from stepwise.plugins import check_choice, is_import_path
from stepwise.prompt import STEPS, SolvePrompt

__all__ = [
    "ENGINE_KINDS", "Ask", "BudgetConfig", "CapsConfig", "Config", "CriticConfig", "LoadConfig", "ModelConfig",
    "ModelsConfig", "Prices", "Roles", "RoutingConfig", "SamplingConfig", "ScorerConfig", "ServeConfig",
    "WorkersConfig", "is_lab", "is_lab_critic", "model_name", "suited",
]  # fmt: skip
_Section = TypeVar("_Section", bound=BaseModel)
Roles = Literal["weak", "strong", "critic", "scorer"]


class CriticConfig(FrozenConfig):
    """How first errors are found and interventions proposed by models.critic.

    Example:
        >>> CriticConfig(method="vote", samples=7, temperature=0.7).samples
        7
    """

    format: Literal["compact", "chat", "json"] = "compact"
    """form of prompts and replies; compact is for small models"""
    bare: bool | None = None
    """format "compact": no instructions in the prompt, for a model trained on it; unset: only for lab-critic"""
    method: Literal["one_pass", "vote", "bisect", "scorer", "reference"] = "one_pass"
    """how the first error is found; "scorer" asks the scorer instead of the critic; "reference" asks no model: the
    first number that is not in the reference is the error, the reference's next step the proposal (distillation)"""
    samples: int = Field(default=5, ge=1)
    """method "vote": passes of which the majority counts"""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """method "scorer": the first step scored below this is the first error"""
    temperature: float = Field(default=0.0, ge=0)
    """of all that the critic writes; 0 is greedy (votes and several candidates need more)"""
    solve_first: bool = False
    """have the critic solve the problem by the reference before it proposes, as InT does; not for lab-critic"""
    revisions: int = Field(default=0, ge=0)
    """how often a proposal that fails InT's self-check is rewritten; not for lab-critic"""
    candidates: int = Field(default=1, ge=1)
    """interventions proposed for each error"""
    max_tokens: int = Field(default=1024, ge=16)
    """most tokens of one reply"""


class SamplingConfig(FrozenConfig):
    """How steps are drawn, by every model.

    Example:
        >>> SamplingConfig(temperature=0.3).top_p
        1.0
    """

    temperature: float = Field(default=0.7, ge=0)
    """0 is greedy; unset: 0.7 for the lab's weak model, 0.3 for others"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """1 switches it off"""
    top_k: int = Field(default=0, ge=0)
    """0 switches it off"""
    max_step_tokens: int = Field(default=128, ge=1)
    """most tokens of one step, which is cut there; unset: 128 for the lab's weak model, 256 for others"""


# Steps of real models have 50 to 120 tokens: at 128, a quarter of the solutions were cut.
_IN_GENERAL: dict[type[BaseModel], dict[str, Any]] = {
    SolvePrompt: {"system": STEPS},
    SamplingConfig: {"temperature": 0.3, "max_step_tokens": 256},
}


def suited(section: _Section, weak: str) -> _Section:
    """`section` (a prompt or sampling) with what is not set in it as it suits `weak`, the weak model's name: the lab's
    own values for the lab's, else those for models in general. A prompt that words the question is left as it is.

    >>> suited(SamplingConfig(temperature=0.0), "llamacpp/mine.gguf").max_step_tokens
    256
    """
    given = section.model_fields_set
    if "user" in given:
        return section
    # From here on they count as set: a copy of a configuration with another model, such as an export of the same one,
    # keeps its prompt.
    values = {name: getattr(section, name) for name in _IN_GENERAL[type(section)]}
    if not is_lab(weak):
        values |= {name: value for name, value in _IN_GENERAL[type(section)].items() if name not in given}
    return section.model_copy(update=values)


POLICIES = (
    "never", "always", "random", "threshold", "query_random", "query_classifier", "cascade", "signal", "two_stage",
    "judged", "belief", "planned", "published", "learned", "relay",
)  # fmt: skip
"""the names of the policies of this library"""


class RoutingConfig(FrozenConfig):
    """Which steps the strong model writes.

    Example:
        >>> RoutingConfig(policy="threshold", threshold=0.3).threshold
        0.3
    """

    policy: str = "threshold"
    """who decides: never, always, random, threshold, ..., or a class of yours, "my_package.my_file:MyPolicy\""""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """policy "threshold": a draft scored below this is written again by the strong model"""
    probability: float = Field(default=0.3, ge=0, le=1)
    """policy "random": share of steps that are escalated"""
    options: dict[str, Any] = Field(default={})
    """the fields of any other policy, such as of yours"""
    max_steps: int = Field(default=30, ge=1)
    """most steps of one solution"""

    @field_validator("policy")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if not is_import_path(value):
            check_choice("the value", value, POLICIES)
        return value


class Config(FrozenConfig):
    """Everything a run depends on. `Config()` is the embedded lab.

    >>> Config(seed=3).seed, Config().models.weak.model
    (3, 'llamacpp/lab-weak')
    """

    seed: int = Field(default=0, ge=0)
    """everything random in a run follows from it"""
    prompt: SolvePrompt = SolvePrompt()
    models: ModelsConfig = ModelsConfig()
    scorer: ScorerConfig = ScorerConfig()
    sampling: SamplingConfig = SamplingConfig()
    routing: RoutingConfig = RoutingConfig()
    critic: CriticConfig = CriticConfig()
    budget: BudgetConfig = BudgetConfig()
    lora: LoraConfig = LoraConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    prm: PrmConfig = PrmConfig()
    rl: RlConfig = RlConfig()
    serve: ServeConfig = ServeConfig()
    workers: WorkersConfig = WorkersConfig()
    allow_lab: bool = False
    """let the lab's scorer and critic, which know nothing but lab problems, judge what other models write"""

    @model_validator(mode="after")
    def _suits_its_weak_model(self) -> Self:
        for name in ("prompt", "sampling"):
            self.__dict__[name] = suited(getattr(self, name), self.models.weak.model)
        return self

    @classmethod
    def lab(cls) -> Self:
        """The embedded models and their settings; `stepwise config` prints the same as an annotated file."""
        return cls()

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, overrides: str | Sequence[str] = ()) -> Self:
        """Read a TOML file (None for the lab) and apply `overrides`.

        An override is "dotted.key=value"; the value is TOML, or a bare word that is taken as a string. Nothing is read
        from the environment. Raises ConfigError for a file that cannot be read, an unknown key, a wrong type or a value
        out of range.

        >>> Config.load(None, ["routing.threshold=0.4"]).routing.threshold
        0.4
        """
        if not isinstance(path, str | os.PathLike | None):
            raise ConfigError(wrong_type("path", path, "give the path of a TOML file"))
        file = "the built-in configuration" if path is None else str(path)
        overrides = [overrides] if isinstance(overrides, str) else overrides
        names = {role: {"model": getattr(cls().models, role).model} for role in ModelsConfig.model_fields}
        try:
            return cls.model_validate(config_errors.merged({"models": names}, path, overrides))
        except ValidationError as error:
            raise ConfigError(config_errors.explain(error, cls, file, overrides)) from None

    reads: ClassVar[str] = ", the path of a TOML file"

    @classmethod
    def read(cls, text: str | os.PathLike[str]) -> Self:
        """`load` without overrides."""
        return cls.load(text)

    @property
    def hash(self) -> str:
        """Twelve hex digits; equal configurations have equal hashes. How they are served, and by which workers a
        run is done, makes no difference.
        """
        settings = self.model_dump(mode="json", exclude={"serve", "workers"})
        text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __hash__(self) -> int:
        return hash(self.hash)

    def role(self, name: Roles) -> LoadConfig:
        """How to load the model of a role."""
        check_choice("role", name, get_args(Roles))
        found: LoadConfig = self.scorer if name == "scorer" else getattr(self.models, name)
        return found

    @property
    def critic_is_bare(self) -> bool:
        """Whether the critic's prompts leave the instructions out."""
        critic = self.models.critic
        bare = is_lab_critic(critic.model, critic.adapter) if self.critic.bare is None else self.critic.bare
        return bare and self.critic.format == "compact"
