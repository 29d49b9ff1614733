"""What LiteLLM calls for `llamacpp/...`: its calls as jobs for the engine, and the answers in LiteLLM's form.

`provider` makes it known to LiteLLM, and says what a name may be.
"""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from stepwise.errors import BackendError, ConfigError, MissingDependencyError, StepwiseError
from stepwise.models.calls import PROVIDER, ChatCall, finish_reason, first_fault, logprobs, pieces, prepare, text_of
from stepwise.models.engine import Generation
from stepwise.models.hub import hub_hint


def import_litellm() -> Any:
    """litellm, told not to fetch its price list from the network and not to print advice at every error.

    Example:
        import_litellm().get_llm_provider("openai/NAME")
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
    except ImportError as error:
        raise MissingDependencyError(
            "LiteLLM is not installed: `pip install litellm`; DSPy programs on a local model do without it, "
            'with stepwise.lm(..., engine="native")'
        ) from error

    litellm.suppress_debug_info = True
    return litellm


def check_provider(model: str, api_base: str | None = None) -> None:
    """Raise ConfigError, with what is meant, where LiteLLM has no provider for the model of that name.

    Example:
        check_provider("openai/NAME")  # and raises for "opnai/NAME": did you mean "openai/NAME"?
    """
    litellm, (provider, _, name) = import_litellm(), model.partition("/")
    litellm.utils.custom_llm_setup()  # else it does not know a user's own providers before its first call
    try:
        litellm.get_llm_provider(model, api_base=api_base)
    except litellm.BadRequestError:
        near = difflib.get_close_matches(provider, [known.value for known in litellm.LlmProviders], n=1)
        hint = f'did you mean "{near[0]}/{name}"?' if near else 'name it, as in "openai/NAME"'
        raise ConfigError(
            f"{model!r}: LiteLLM knows no provider {provider!r}; {hint}{hub_hint(model, '/FILE.gguf')}"
        ) from None


class LlamaCppHandler:
    """What LiteLLM calls. Thread safe: concurrent calls share the engine's batches.

    LiteLLM takes instances of its `CustomLLM` only; `litellm_handler` makes one, so that this file imports no LiteLLM.

    Example:
        litellm.custom_provider_map = [{"provider": "llamacpp", "custom_handler": litellm_handler()}]
    """

    def completion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
        """A ModelResponse with `n` choices; errors are LiteLLM's, those of the caller not retryable."""
        call = _prepared(model, messages, kwargs)
        with _server_errors(call):
            samples = [_checked(call, made) for made in call.engine.generate([call.job])]
        return _response(call, samples, kwargs)

    async def acompletion(self, model: str, messages: list[Any], **kwargs: Any) -> Any:
        """`completion` as a coroutine: it waits for the engine, not in a thread."""
        call = await asyncio.to_thread(_prepared, model, messages, kwargs)
        with _server_errors(call):
            samples = [_checked(call, sample) for sample in await call.engine.agenerate([call.job])]
        return _response(call, samples, kwargs)

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
            for piece in pieces(call, events):
                if isinstance(piece, str):
                    yield _chunk(piece)
                else:
                    yield _chunk(piece[0], finish_reason(piece[1]), _usage(call, [piece[1]]))

    async def astreaming(self, model: str, messages: list[Any], **kwargs: Any) -> AsyncIterator[dict[str, Any]]:
        """`streaming` for asyncio."""
        chunks = self.streaming(model, messages, **kwargs)
        loop = asyncio.get_running_loop()
        try:
            while (chunk := await loop.run_in_executor(_threads(), next, chunks, None)) is not None:
                yield chunk
        finally:
            chunks.close()  # type: ignore[attr-defined]


def litellm_handler() -> Any:
    """A handler for LiteLLM's `custom_provider_map`.

    Example:
        litellm.custom_provider_map = [{"provider": "llamacpp", "custom_handler": litellm_handler()}]
    """
    import_litellm()
    from litellm.llms.custom_llm import CustomLLM

    return type("LlamaCppHandler", (LlamaCppHandler, CustomLLM), {})()


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Where asynchronous calls wait: asyncio's own pool has too few threads to fill a batch."""
    return ThreadPoolExecutor(64, thread_name_prefix="stepwise-litellm")


def _prepared(model: str, messages: list[Any], kwargs: Mapping[str, Any]) -> ChatCall:
    """The call as a job; what the caller must change is a BadRequestError, which nobody retries."""
    given = kwargs.get("litellm_params") or {}
    drop = bool(given.get("drop_params") or import_litellm().drop_params)
    try:
        call = prepare(model, messages, kwargs["optional_params"], bool(given.get("text_completion")), drop)
    except (ValidationError, StepwiseError) as error:
        message = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise _bad_request(model, message) from error
    if call.too_long:
        raise import_litellm().ContextWindowExceededError(call.too_long, model=model, llm_provider=PROVIDER)
    return call


def _bad_request(model: str, message: str) -> Exception:
    error: Exception = import_litellm().BadRequestError(message, model=model, llm_provider=PROVIDER)
    return error


@contextmanager
def _server_errors(call: ChatCall) -> Iterator[None]:
    """An engine that fails or was closed meanwhile is a server's error: a second try finds a fresh one."""
    try:
        yield
    except BackendError as error:
        raise import_litellm().InternalServerError(str(error), model=call.model, llm_provider=PROVIDER) from error


def _checked(call: ChatCall, made: Generation) -> Generation:
    """`made`, or its error: the caller's where a grammar was given, since another try would end the same."""
    if made.finish != "error":
        return made
    if call.job.grammar is not None:
        raise _bad_request(call.model, made.error)
    raise BackendError(made.error)


def _response(call: ChatCall, samples: Sequence[Generation], kwargs: Mapping[str, Any]) -> Any:
    """LiteLLM's own response object, filled in."""
    from litellm.types.utils import ChoiceLogprobs, Choices, Message, Usage

    def choice(made: Generation) -> Any:
        message, reason = Message(content=text_of(made), role="assistant"), finish_reason(made)
        more = {"logprobs": ChoiceLogprobs(content=logprobs(call.engine, made))} if scored else {}
        return Choices(index=made.sample, message=message, finish_reason=reason, **more)

    response, scored = kwargs["model_response"], bool(kwargs["optional_params"].get("logprobs"))
    choices = list(map(choice, samples))
    response.choices, response.model, response.usage = choices, call.model, Usage(**_usage(call, samples))
    return response


def _usage(call: ChatCall, samples: Sequence[Generation]) -> dict[str, Any]:
    prompt, generated = len(call.job.ids), sum(len(made.ids) for made in samples)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": call.cached_tokens(samples)}}  # fmt: skip


def _chunk(text: str, reason: str = "", usage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"text": text, "is_finished": bool(reason), "finish_reason": reason, "usage": usage,
            "index": 0, "tool_use": None}  # fmt: skip
