"""`llamacpp/...` as a LiteLLM provider: LiteLLM's calls, and so every DSPy program, run on the engine in this process.

    litellm.completion(model="llamacpp/lab-weak", messages=[...], n=4, seed=0, response_format={...})

What follows "llamacpp/" is a lab model, the path of a GGUF or "hf:ORG/REPO/FILE.gguf", and may end in "@" and the
hashes of weights and adapter (`lm` puts them there): caches then tell weights apart, and a name whose hashes are not
those of the file is refused. The fields of a ModelConfig that say how to load (context, adapter, ...) are taken as
keywords. A last message of the assistant is continued where it stands. A raw text (`litellm.text_completion`) goes to
the model without a template. Without a seed a fresh one is drawn, and without a temperature it is 0.7.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stepwise.errors import BackendError, ConfigError, StepwiseError
from stepwise.models import completion
from stepwise.models.completion import PROVIDER
from stepwise.models.engine import Generation
from stepwise.models.engine.engine import LOAD_FIELDS
from stepwise.models.shared import identity, shared_engine

if TYPE_CHECKING:
    from stepwise.config import LoadConfig

_lock = threading.Lock()


def import_litellm() -> Any:
    """litellm, told not to fetch its price list from the network and not to print advice at every error."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.suppress_debug_info = True
    return litellm


def register_litellm() -> None:
    """Make `llamacpp/...` known to LiteLLM, beside the providers that are there already; twice does nothing.

    Needed only where LiteLLM is called directly: `lm` does it by itself.
    """
    from stepwise.lab import ADAPTERS, MODELS

    litellm = import_litellm()
    with _lock:
        if not any(item["provider"] == PROVIDER for item in litellm.custom_provider_map):
            litellm.custom_provider_map.append({"provider": PROVIDER, "custom_handler": LlamaCppProvider()})
        litellm.utils.custom_llm_setup()  # else what it supports is unknown until its first call
    for name in (*MODELS, *ADAPTERS):
        declare(f"{PROVIDER}/{name}", (0.0, 0.0))


def declare(model: str, prices: tuple[float, float] | None, context: int = 2048) -> None:
    """Tell LiteLLM that `model` takes JSON schemas, so that DSPy sends them, and its prices per million tokens."""
    price_in, price_out = prices or (0.0, 0.0)
    import_litellm().register_model({model: {
        "litellm_provider": PROVIDER, "mode": "chat", "supports_response_schema": True, "max_tokens": context,
        "input_cost_per_token": price_in / 1e6, "output_cost_per_token": price_out / 1e6,
        "cache_creation_input_token_cost": price_in / 1e6, "cache_read_input_token_cost": 0.0,
    }})  # fmt: skip


def lm(spec: str | LoadConfig, **settings: Any) -> Any:
    """A dspy.LM for any model: "llamacpp/lab-weak", "llamacpp/path/to/model.gguf", "openai/...", or a ModelConfig.

    `settings` are fields of the ModelConfig (context, adapter, api_base, ...) or keywords of dspy.LM (temperature,
    max_tokens, cache, ...). It always goes through LiteLLM. A local model is loaded at once, shared with every other
    `lm` of the same settings, and its name holds the hashes of weights and adapter, so that no cached answer outlives
    them. Raises ConfigError, BackendError, and MissingDependencyError without dspy.
    """
    from stepwise.config import LoadConfig, ModelConfig

    fields = {key: settings.pop(key) for key in list(settings) if key in LoadConfig.model_fields}
    given = {"model": spec} if isinstance(spec, str) else spec.model_dump(include=set(LoadConfig.model_fields))
    try:
        config = ModelConfig(**{**given, **fields})
    except ValidationError as error:
        raise ConfigError(f"{spec if isinstance(spec, str) else spec.model}: {_first(error)}") from None
    import_litellm()
    import dspy

    if not config.local:
        key = config.api_key()
        settings = {**({"api_base": config.api_base} if config.api_base else {}), **settings}
        return dspy.LM(config.model, engine="litellm", **({"api_key": key} if key else {}), **settings)
    register_litellm()
    name = f"{config.model}@{identity(shared_engine(config))}"
    declare(name, config.prices, config.context)
    load = config.model_dump(include=set(LOAD_FIELDS), exclude_defaults=True)
    return dspy.LM(name, engine="litellm", **load, **settings)


class LlamaCppProvider:
    """What LiteLLM calls. Thread safe: concurrent calls share the engine's batches."""

    def completion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
        """A ModelResponse with `n` choices; errors are LiteLLM's, those of the caller not retryable."""
        call = _prepared(model, messages, kwargs)
        with _server_errors(call):
            samples = [_checked(call, made) for made in call.engine.generate([call.job])]
        return completion.response(call, samples, kwargs)

    async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
        """`completion` for a caller that does not want to wait in its own thread."""
        return await asyncio.get_running_loop().run_in_executor(
            _threads(), lambda: self.completion(model, messages, **kwargs)
        )

    def streaming(self, model: str, messages: list[Any], **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Chunks of text as they are sampled; the last holds finish reason and usage."""
        call = _prepared(model, messages, kwargs)
        if call.job.n > 1 or call.job.top_logprobs or kwargs["optional_params"].get("logprobs"):
            raise _bad_request(model, "a stream has one sample and no logprobs; leave out n and logprobs, or stream")
        with _server_errors(call):
            events = (
                _checked(call, event) if isinstance(event, Generation) else event
                for event in call.engine.stream(call.job)
            )
            yield from completion.chunks(call, events)

    async def astreaming(self, model: str, messages: list[Any], **kwargs: Any) -> AsyncIterator[dict[str, Any]]:
        """`streaming` for asyncio."""
        chunks = self.streaming(model, messages, **kwargs)
        loop = asyncio.get_running_loop()
        try:
            while (chunk := await loop.run_in_executor(_threads(), next, chunks, None)) is not None:
                yield chunk
        finally:
            chunks.close()  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Where asynchronous calls wait: asyncio's own pool has too few threads to fill a batch."""
    return ThreadPoolExecutor(64, thread_name_prefix="stepwise-litellm")


def _prepared(model: str, messages: list[Any], kwargs: Mapping[str, Any]) -> completion.Call:
    """The call as a job; what the caller must change is a BadRequestError, which nobody retries."""
    given = kwargs.get("litellm_params") or {}
    drop = bool(given.get("drop_params") or import_litellm().drop_params)
    try:
        call = completion.prepare(model, messages, kwargs["optional_params"], bool(given.get("text_completion")), drop)
    except ValidationError as error:
        raise _bad_request(model, _first(error)) from error
    except StepwiseError as error:
        raise _bad_request(model, str(error)) from error
    if len(call.job.ids) > call.engine.context:
        raise import_litellm().ContextWindowExceededError(
            f"the prompt has {len(call.job.ids)} tokens, more than the context of {call.engine.context}; "
            "load with a larger context",
            model=model,
            llm_provider=PROVIDER,
        )
    return call


def _bad_request(model: str, message: str) -> Exception:
    error: Exception = import_litellm().BadRequestError(message, model=model, llm_provider=PROVIDER)
    return error


@contextmanager
def _server_errors(call: completion.Call) -> Iterator[None]:
    """An engine that fails or was closed meanwhile is a server's error: a second try finds a fresh one."""
    try:
        yield
    except BackendError as error:
        raise import_litellm().InternalServerError(str(error), model=call.model, llm_provider=PROVIDER) from error


def _checked(call: completion.Call, made: Generation) -> Generation:
    """`made`, or its error: the caller's where a grammar was given, since another try would end the same."""
    if made.finish != "error":
        return made
    if call.job.grammar is not None:
        raise _bad_request(call.model, made.error)
    raise BackendError(made.error)


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
