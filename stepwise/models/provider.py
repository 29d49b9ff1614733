"""`llamacpp/...` as a LiteLLM provider: LiteLLM's calls, and so every DSPy program, run on the engine in this process.

    litellm.completion(model="llamacpp/lab-weak", messages=[...], n=4, seed=0, response_format={...})

What follows "llamacpp/" is a lab model, the path of a GGUF or "hf:ORG/REPO/FILE.gguf", and may end in "@" and the
hashes of weights and adapter (`lm` puts them there): caches then tell weights apart, and a name whose hashes are not
those of the file is refused. The fields of a ModelConfig that say how to load (context, adapter, ...) are taken as
keywords. A last message of the assistant is continued where it stands. A raw text (`litellm.text_completion`) goes to
the model without a template. Without a seed a fresh one is drawn, and without a temperature it is 0.7.
"""

from __future__ import annotations

import difflib
import inspect
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from stepwise.config import LoadConfig, ModelConfig, Prices
from stepwise.errors import ConfigError
from stepwise.lab import ADAPTERS, MODELS
from stepwise.models.api import client_argument
from stepwise.models.calls import PROVIDER, engine_named
from stepwise.models.engine import Engine
from stepwise.models.http import bounded_client
from stepwise.models.litellm_handler import check_provider, import_litellm, litellm_handler
from stepwise.models.shared import LOAD_FIELDS, identity, shared_engine

_Door = Literal["litellm", "native"]
_lock = threading.Lock()


def register_litellm() -> None:
    """Make `llamacpp/...` known to LiteLLM, beside the providers that are there already; twice does nothing.

    Needed only where LiteLLM is called directly: `lm` does it by itself.

    Example:
        sw.register_litellm()
        litellm.completion("llamacpp/lab-weak", messages=[{"role": "user", "content": "What is 2 + 2?"}])
    """
    litellm = import_litellm()
    with _lock:
        if not any(item["provider"] == PROVIDER for item in litellm.custom_provider_map):
            litellm.custom_provider_map.append({"provider": PROVIDER, "custom_handler": litellm_handler()})
        litellm.utils.custom_llm_setup()  # else what it supports is unknown until its first call
    for name in (*MODELS, *ADAPTERS):
        declare(f"{PROVIDER}/{name}", (0.0, 0.0))


def declare(model: str, prices: Prices | None, context: int = 2048) -> None:
    """Tell LiteLLM that `model` takes JSON schemas, so that DSPy sends them, and its prices per million tokens.

    Example:
        declare("llamacpp/lab-weak", prices=None, context=512)
    """
    price_in, price_out = (prices or (0.0, 0.0))[:2]
    import_litellm().register_model({model: {
        "litellm_provider": PROVIDER, "mode": "chat", "supports_response_schema": True, "max_tokens": context,
        "input_cost_per_token": price_in / 1e6, "output_cost_per_token": price_out / 1e6,
        "cache_creation_input_token_cost": price_in / 1e6, "cache_read_input_token_cost": 0.0,
    }})  # fmt: skip


def lm(spec: str | Path | Mapping[str, Any] | LoadConfig, *, engine: _Door = "litellm", **settings: Any) -> Any:
    """A dspy.LM for any model: "llamacpp/lab-weak", "llamacpp/path/to/model.gguf", "openai/...", or a ModelConfig.

    `settings` are fields of the ModelConfig (context, adapter, api_base, ...) or keywords of dspy.LM (temperature,
    max_tokens, cache, ...). It goes through LiteLLM; with engine="native" a local model is called by DSPy itself, for
    where LiteLLM is missing (see `stepwise.models.native`). A local model is loaded at once, shared with every other
    `lm` of the same settings, and its name holds the hashes of weights and adapter, so that no cached answer outlives
    them. Raises ConfigError, BackendError, and MissingDependencyError without LiteLLM.

    Example:
        >>> lm("llamacpp/lab-critic", engine="native").model.partition("@")[0]
        'llamacpp/lab-critic'
    """
    if engine not in get_args(_Door):
        raise ConfigError(f"engine is {engine!r}; use one of {', '.join(get_args(_Door))}")
    fields = {key: settings.pop(key) for key in list(settings) if key in LoadConfig.model_fields}
    given = spec if isinstance(spec, LoadConfig) else ModelConfig.of(spec, "lm")
    if len(given.places) > 1:
        raise ConfigError(f"lm: {given.model} has endpoints, which DSPy's calls do not go through; give one api_base")
    config = ModelConfig(**{**given.model_dump(include=set(LoadConfig.model_fields)), **fields})
    import dspy

    known = {*LoadConfig.model_fields, *inspect.signature(dspy.LM).parameters}
    for setting in settings.keys() - known:  # others go to the provider, which may know them
        if near := difflib.get_close_matches(setting, known, n=1, cutoff=0.85):
            raise ConfigError(f"lm: there is no setting {setting!r}; did you mean {near[0]!r}?")
    if engine == "native":
        return _native_lm(config, settings)
    import_litellm()
    if not config.local:
        check_provider(config.model, config.api_base)
        key = config.api_key()
        settings = {**({"api_base": config.api_base} if config.api_base else {}), **settings}
        return dspy.LM(config.model, engine="litellm", **({"api_key": key} if key else {}), **settings)
    register_litellm()
    loaded = shared_engine(config)
    name = f"{config.model}@{identity(loaded)}"
    declare(name, config.prices, loaded.context)
    load = config.model_dump(include=set(LOAD_FIELDS), exclude_defaults=True)
    return dspy.LM(name, engine="litellm", **load, **settings)


def _native_lm(config: ModelConfig, settings: dict[str, Any]) -> Any:
    if not config.local:
        raise ConfigError(f'engine="native" is for models of this process, not for {config.model}; leave it out')
    import dspy

    from stepwise.models.native import AsyncNativeEngine, NativeEngine

    name = f"{config.model}@{identity(shared_engine(config))}"
    load = config.model_dump(include=set(LOAD_FIELDS), exclude_defaults=True)
    given = name.partition("/")[2], load
    return dspy.LM(name, engine=NativeEngine(*given), async_engine=AsyncNativeEngine(*given), **settings)


def client_of(language_model: Any) -> dict[str, Any]:
    """The argument with which LiteLLM sends the calls of a hosted dspy.LM by our client, with the bounds on time, bytes
    and redirects of every other call (`stepwise.models.http.bounded_client`), where the provider takes one; none for a
    model of this process, or one that does not go through LiteLLM. Such a client waits: call the LM in a thread.

    Example:
        lm = dspy.LM("openai/NAME", engine="litellm")
        await asyncio.to_thread(lm, "What is 2 + 2?", **client_of(lm))
    """
    name, given = str(language_model.model), getattr(language_model, "kwargs", {})
    if name.startswith(f"{PROVIDER}/") or getattr(language_model, "engine", None) != "litellm":
        return {}
    timeout = given.get("timeout") or ModelConfig.model_fields["timeout"].default
    return _bounded(name, given.get("api_base") or given.get("base_url"), given.get("api_key"), timeout)


@lru_cache(maxsize=16)
def _bounded(model: str, api_base: str | None, key: str | None, timeout: float) -> dict[str, Any]:
    """DSPy copies what it sends, and a client has locks: it stays itself. Its cache knows a callable by its name, and
    nothing else that is no JSON: with a client that is none, no answer would be found again. The name has the server,
    which DSPy leaves out of its keys: what another one behind the same model name answered is not taken for this one's.
    """
    given = client_argument(model, api_base, key, bounded_client(api_base or "", timeout)[0])
    own = {"__deepcopy__": lambda self, memo: self, "__call__": lambda self: None, "__name__": f"client of {api_base}"}
    for client in given.values():
        client.__class__ = type("Client", (type(client),), own)
    return given


def engines_of(language_model: Any) -> tuple[Engine, ...]:
    """The engine of this process that a dspy.LM of `lm` asks; none for a hosted model, or an LM of somebody else's.

    >>> engines_of("openai/NAME")  # a hosted model has none
    ()
    """
    provider, _, name = str(getattr(language_model, "model", "")).partition("/")
    if provider != PROVIDER:
        return ()
    native = getattr(getattr(language_model, "engine", None), "load", None)
    load = language_model.kwargs if native is None else native
    return (engine_named(name, {key: value for key, value in load.items() if key in LOAD_FIELDS}),)
