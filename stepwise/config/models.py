"""[models] and [scorer]: how a model is loaded, what it is asked through and what it costs."""

from __future__ import annotations

import difflib
import json
import os
import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from stepwise.config.endpoints import Address, EndpointConfig, VariableName
from stepwise.config.errors import FrozenConfig
from stepwise.config.scorers import KINDS_OF_KEY, PLACES, TEMPLATE_NEEDS, TOKENS, scorer_of_adapter
from stepwise.errors import ConfigError, redact
from stepwise.plugins import check_choice, is_import_path

Prices = tuple[float, float] | tuple[float, float, float]
"""money per million prompt tokens, generated ones, and perhaps those of a prompt that come from a cache"""
_MODEL_NAME = re.compile(r"([^/\s]+)/(\S.*)")
_LAB_CRITIC = "llamacpp/lab-critic"
ENGINE_KINDS = ("label_token", "judge", "generative")
"""Kinds of scorers that llama.cpp runs in this process, where their model is local."""
Ask = Literal["probability", "verdict"]
_LAB_LOADING = {"context": 2048, "sequences": 64, "threads": 1}


def is_lab(model: Any) -> bool:
    """Whether a model, by its name in a configuration, is one of the lab's.

    >>> is_lab("llamacpp/lab-weak"), is_lab("llamacpp/models/mine.gguf")
    (True, False)
    """
    return str(model).startswith("llamacpp/lab-")


def model_name(text: str) -> str:
    """What was given for a model as a configuration names it: the path of a GGUF may stand without its provider.

    >>> model_name("models/mine.gguf"), model_name("openai/NAME")
    ('llamacpp/models/mine.gguf', 'openai/NAME')
    """
    bare = text.endswith(".gguf") and not text.startswith(("llamacpp/", "hf:"))
    return f"llamacpp/{text}" if bare or text.startswith("lab-") else text


class LoadConfig(FrozenConfig):
    """How a model is loaded and what it costs; shared by generating models and scorers.

    Example:
        >>> LoadConfig(model="llamacpp/lab-weak").local, LoadConfig(model="openai/NAME").local
        (True, False)
    """

    model: str
    """provider/name: "llamacpp/lab-weak", "llamacpp/path/to/model.gguf", "hf:ORG/REPO/FILE.gguf", "openai/NAME", ..."""
    context: int | None = Field(default=None, ge=64)
    """longest sequence in tokens, prompt and solution together; unset: by the model and the memory that is free"""
    sequences: int | None = Field(default=None, ge=1)
    """most sequences decoded in one batch (llamacpp), by the memory where unset; most requests in flight (API), 64"""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads, the physical cores where unset; more than are free is much slower than one, unless
    OMP_WAIT_POLICY=passive is set"""
    gpu_layers: int = Field(default=0, ge=-1)
    """layers kept on the GPU, -1 for all; needs a CUDA, Metal or Vulkan build of llama-cpp-python"""
    kv_type: Literal["f16", "f32", "q8_0"] = "f16"
    """type of the key-value cache"""
    flash_attention: bool = True
    """false only for exact numerical comparisons"""
    adapter: str | None = None
    """LoRA adapter in GGUF, attached to the model: "lab-critic", "hf:...", its path, the run that trained it; for a
    llama-server, its number"""
    train_from: str | None = None
    """directory with the transformers weights that belong to a GGUF: what training starts from"""
    api_base: Address | None = None
    """address of an OpenAI-compatible endpoint"""
    api_key_env: VariableName | None = None
    """NAME of the environment variable that holds the API key, for example OPENAI_API_KEY"""
    price_in: float | None = Field(default=None, ge=0)
    """money per million prompt tokens"""
    price_out: float | None = Field(default=None, ge=0)
    """money per million generated tokens"""
    price_cached_in: float | None = Field(default=None, ge=0, exclude_if=lambda value: value is None)
    """money per million prompt tokens that come from a cache, as the usage of a reply says; unset: as price_in"""

    reads: ClassVar[str] = ', a name such as "llamacpp/lab-weak", the path of a GGUF'

    @classmethod
    def read(cls, text: str | os.PathLike[str]) -> Self:
        """The model of that name; a `Path` is that of a GGUF."""
        return cls(model=text if isinstance(text, str) else f"llamacpp/{text}")

    @model_validator(mode="before")
    @classmethod
    def _name_stands_for_its_model(cls, value: Any) -> Any:
        value = {"model": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            return value
        model = value.get("model", cls.model_fields["model"].default)
        return {**(_LAB_LOADING if is_lab(model) else {}), **value}

    @field_validator("model")
    @classmethod
    def _names_its_provider(cls, value: str) -> str:
        if value.startswith("hf:"):  # files of the hub run here
            return f"llamacpp/{value}"
        named = _MODEL_NAME.fullmatch(value)
        provider, name = named.groups() if named else ("", value)
        gguf = value.endswith(".gguf") and provider != "llamacpp"
        misspelt = provider != "llamacpp" and difflib.get_close_matches(provider.lower(), ["llamacpp"], cutoff=0.8)
        if named and not gguf and not misspelt:
            return value
        here = gguf or misspelt or value.startswith("lab-")
        hint = f'did you mean "llamacpp/{name if misspelt else value}"?' if here else 'write it as in "openai/NAME"'
        raise ValueError(redact(f"{value!r} is not provider/name of a known provider; {hint}"))

    @model_validator(mode="after")
    def _has_both_prices_or_none(self) -> Self:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out go together; give both (0 for what is free) or neither")
        if self.price_cached_in is not None and self.price_in is None:
            raise ValueError("price_cached_in needs price_in and price_out; give them, too")
        return self

    @property
    def requests(self) -> int:
        """Most requests in flight at an API."""
        return self.sequences or 64

    @property
    def places(self) -> tuple[LoadConfig, ...]:
        """How to ask the model at each of its addresses."""
        return (self,)

    @property
    def local(self) -> bool:
        """True for a model that llama.cpp runs in this process."""
        return self.model.startswith("llamacpp/")

    @property
    def lora(self) -> str | None:
        """The adapter to attach: `adapter`, or the one that "llamacpp/lab-critic" stands for."""
        return self.adapter or ("lab-critic" if self.model == _LAB_CRITIC else None)

    @property
    def prices(self) -> Prices | None:
        """Money per million (prompt, generated) tokens, and cached ones of a prompt where they have a price of their
        own; None when unknown; a local model without prices costs none.
        """
        if self.price_in is None or self.price_out is None:
            return (0.0, 0.0) if self.local else None
        cached = () if self.price_cached_in is None else (self.price_cached_in,)
        return (self.price_in, self.price_out, *cached)

    def api_key(self) -> str | None:
        """The key itself, for the call that needs it; raises ConfigError when `api_key_env` names an unset variable."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ConfigError(
                f"the environment variable {self.api_key_env} (api_key_env of {self.model}) is not set; "
                "export it before the run"
            )
        return key


class ModelConfig(LoadConfig):
    """A model that writes text.

    Example:
        >>> ModelConfig(model="openai/NAME", price_in=3.0, price_out=15.0).prices
        (3.0, 15.0)
    """

    continuation: Literal["probe", "prefill", "raw", "prompt"] = "probe"
    """how an API continues a solution: "probe" finds out with a few short calls, the others are taken as given"""
    chat_template: str | None = None
    """API only: file of the Jinja chat template; with it a server of raw completions can continue a solution"""
    timeout: float = Field(default=120.0, gt=0)
    """API only: seconds for one request"""
    endpoints: tuple[EndpointConfig, ...] = Field(default=(), strict=False, exclude_if=lambda value: not value)
    """API only: several places that serve the model; each problem stays at one of them while that one answers"""
    cooldown: float | None = Field(default=None, ge=0, exclude_if=lambda value: value is None)
    """seconds for which an endpoint that failed is left alone; unset: LiteLLM's own, 5"""

    @model_validator(mode="after")
    def _has_sound_endpoints(self) -> Self:
        if self.cooldown is not None and not self.endpoints:
            raise ValueError("cooldown is set, but means nothing without endpoints; remove it or list them")
        places = [(place.model, place.api_base, place.api_key_env) for place in self.places]
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            raise ValueError(f"endpoints: {twice[0]} at {twice[1]} stands there twice; give it a weight instead")
        here = next((place.model for place in self.places if place.local and self.endpoints), None)
        if here is not None:
            raise ValueError(f'endpoints: {here} runs in this process; name a model behind an API, as in "openai/NAME"')
        return self

    @property
    def places(self) -> tuple[ModelConfig, ...]:
        """The model at each of its endpoints, itself where there are none."""
        own = {"endpoints": (), "cooldown": None}
        given = [place.model_dump(exclude={"weight", "order"}, exclude_none=True) for place in self.endpoints]
        return tuple(self.model_copy(update=place | own) for place in given) or (self,)


class ScorerConfig(LoadConfig):
    """What says of each step whether it is right; `stepwise.models.scorers` describes the kinds.

    Example:
        >>> ScorerConfig(kind="constant", value=0.25).value
        0.25
    """

    model: str = "llamacpp/lab-scorer"
    """as for a model, or the directory of one that `train scorer` made; kind classifier: transformers/DIRECTORY;
    pooling: vllm/NAME OF THE SERVER; probe: probe/FOLDER"""
    kind: str = "label_token"
    """how a score is read: from label tokens (label_token), a classification head (classifier), vLLM's /pooling
    (pooling), a language model's answer (judge), a critique with a verdict (generative), the states of the weak model
    (probe), a number (constant), or by a class of yours: "my_file:MyScorer\""""
    layout: Literal["marker", "steps", "text", "turns"] = "marker"
    """kind "label_token": the solve prompt with a marker after each step (marker) or without (steps), plain text (text,
    as Math-Shepherd) or a chat with a step a turn (turns, as RLHFlow's models)"""
    template: str | None = None
    """what stands before the steps, with {question} (layout "turns": the first turn, with {step} too); kind "judge":
    what is asked about a step, with {question}, {steps}, {step}, {number}; kind "generative": "thinkprm", "genprm",
    "tips" or a file of yours; unset: as the published models have it, and "thinkprm\""""
    step_template: str | None = None
    """each step, with {step}, {number} and, in layout "text", {marker}"""
    marker: str | None = None
    """token after each step, where the score is read; unset: <|score|> for label tokens, else as the model has it"""
    good: str | None = None
    """token that stands for a right step; unset: <|good|>, + in the other layouts, Yes of a judge"""
    bad: str | None = None
    """token that stands for a wrong step; unset: <|bad|>, - or No"""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """kind "classifier": type of the weights in memory"""
    device: str = "cpu"
    """kind "classifier": cpu, cuda, cuda:1, mps"""
    ask: Ask = "probability"
    """kind "judge": a number from 0 to 1, or yes or no; "generative": the verdict's probability (local
    models), or the share of votes"""
    votes: int = Field(default=1, ge=1)
    """kind "generative": critiques of each step; a single one is greedy"""
    critique_tokens: int = Field(default=512, ge=1)
    """kind "generative": most tokens of a step's critique"""
    value: float = Field(default=0.5, ge=0, le=1)
    """kind "constant": the score of every step"""
    calibration: str | None = None
    """kind "label_token" of a local model: a file with a calibration of its scores, as `stepwise loop` fits one"""
    force: bool = False
    """kind "probe": also for another weak model, adapter, prompt or splitter than the head was fitted for"""
    options: dict[str, Any] = Field(default={})
    """the arguments of a scorer of yours"""

    @model_validator(mode="before")
    @classmethod
    def _adapter_says_how_it_is_read(cls, value: Any) -> Any:
        return scorer_of_adapter(value)

    @field_validator("kind")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if not is_import_path(value):
            check_choice("the value", value, (*ENGINE_KINDS, "classifier", "pooling", "probe", "constant"))
        return value

    @model_validator(mode="after")
    def _has_only_keys_of_its_kind(self) -> Self:
        for key, kinds in KINDS_OF_KEY.items():
            kind = "my_file:MyScorer" if is_import_path(self.kind) else self.kind
            if kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f'"{key}" is set, but means nothing to a scorer of kind "{self.kind}" (only to '
                    f"{' and '.join(kinds)}); remove it or set kind"
                )
        under_prompt = self.layout in ("marker", "steps") and self.kind == "label_token"
        if under_prompt and (self.template or self.step_template):
            raise ValueError(
                f'layout "{self.layout}" reads solutions under the prompt of [prompt]; remove template and '
                'step_template, or set layout = "text" or "turns"'
            )
        for key, template, needed in (
            ("template", self.template, TEMPLATE_NEEDS.get(self.kind, "{question}")),
            ("step_template", self.step_template, "{marker}" if self.layout == "text" else "{step}"),
        ):
            if template is not None and needed not in template:
                raise ValueError(f"{key} is {template!r} and has no {needed}; add it")
        if self.kind == "pooling" and self.api_base is None:
            raise ValueError('kind "pooling" asks a server; set its address, api_base = "http://localhost:8000"')
        return self

    @property
    def tokens(self) -> tuple[str, str, str]:
        """The marker, and the labels of a right and of a wrong step."""
        marker, good, bad = ("", "Yes", "No") if self.kind == "judge" else TOKENS[self.layout]
        return self.marker or marker, self.good or good, self.bad or bad

    @property
    def title(self) -> str:
        """What cards call it: the model with what it is asked for beside the default; the class, where it is yours."""
        others = self.model_dump(mode="json", include={*KINDS_OF_KEY, "kind"} - PLACES, exclude_defaults=True)
        kind = others.pop("kind", "")
        if is_import_path(kind):
            return f"{kind} with {json.dumps(self.options)}"
        settings = {"kind": kind, **others} if kind else others
        return f"{self.model} with {json.dumps(settings)}" if settings else self.model

    @property
    def prices(self) -> Prices | None:
        """As for a model; a scorer that runs in this process costs nothing where no price is given."""
        known = super().prices
        here = self.kind in ("classifier", "probe", "constant") or is_import_path(self.kind)
        return (0.0, 0.0) if known is None and here else known


class ModelsConfig(FrozenConfig):
    """The models by role.

    Example:
        >>> ModelsConfig(weak={"model": "llamacpp/models/weak.gguf"}).weak.model
        'llamacpp/models/weak.gguf'
    """

    weak: ModelConfig = ModelConfig(model="llamacpp/lab-weak")
    """writes every step at first"""
    strong: ModelConfig = ModelConfig(model="llamacpp/lab-strong")
    """writes the steps that are escalated"""
    critic: ModelConfig = ModelConfig(model=_LAB_CRITIC)
    """finds first errors and proposes interventions"""

    @field_validator("critic")
    @classmethod
    def _is_at_one_place(cls, value: ModelConfig) -> ModelConfig:
        if value.endpoints:
            raise ValueError("endpoints are for weak and strong; put LiteLLM's proxy in front, and give its api_base")
        return value


def is_lab_critic(model: str, adapter: str | None = None) -> bool:
    """Whether a model with an adapter is the lab's critic, which was trained on prompts without instructions.

    Example:
        >>> is_lab_critic("llamacpp/lab-critic"), is_lab_critic("llamacpp/lab-weak", "lab-critic")
        (True, True)
    """
    return (adapter or model).removeprefix("llamacpp/") == "lab-critic"
