"""What LiteLLM calls for `llamacpp/...`: its calls as jobs for the engine, and the answers in LiteLLM's form.

`provider` makes it known to LiteLLM, and says what a name may be.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import ValidationError

from stepwise.config import ModelConfig
from stepwise.errors import BackendError, ConfigError, DataError, StepwiseError
from stepwise.models.engine import Engine, Generation, GenerationJob, schema_grammar
from stepwise.models.engine.jobs import Drawn
from stepwise.models.engine.schema import object_grammar
from stepwise.models.shared import LOAD_FIELDS, identity, shared_engine

PROVIDER = "llamacpp"
_NAME = re.compile(r"(?P<name>.+?)(?:@(?P<identity>[0-9a-f]{8}(?:\+[0-9a-f]{8}\S*)?))?", re.DOTALL)
_HANDLED = ("temperature", "top_p", "top_k", "seed", "n", "max_tokens", "stop", "logprobs", "top_logprobs", "grammar",
            "response_format", "chat_template_kwargs")  # fmt: skip
_IGNORED = ("stream", "stream_options", "max_retries", "user", "metadata", "extra_headers", "parallel_tool_calls",
            "continue_final_message", "add_generation_prompt", "store")  # fmt: skip
_NEUTRAL = {"frequency_penalty": 0, "presence_penalty": 0, "tools": [], "best_of": 1, "echo": False, "logit_bias": {}}


def import_litellm() -> Any:
    """litellm, told not to fetch its price list from the network and not to print advice at every error."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.suppress_debug_info = True
    return litellm


class LlamaCppHandler:
    """What LiteLLM calls. Thread safe: concurrent calls share the engine's batches."""

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
            yield from _chunks(call, events)

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


def _prepared(model: str, messages: list[Any], kwargs: Mapping[str, Any]) -> _Call:
    """The call as a job; what the caller must change is a BadRequestError, which nobody retries."""
    given = kwargs.get("litellm_params") or {}
    drop = bool(given.get("drop_params") or import_litellm().drop_params)
    try:
        call = _prepare(model, messages, kwargs["optional_params"], bool(given.get("text_completion")), drop)
    except (ValidationError, StepwiseError) as error:
        message = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise _bad_request(model, message) from error
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
def _server_errors(call: _Call) -> Iterator[None]:
    """An engine that fails or was closed meanwhile is a server's error: a second try finds a fresh one."""
    try:
        yield
    except BackendError as error:
        raise import_litellm().InternalServerError(str(error), model=call.model, llm_provider=PROVIDER) from error


def _checked(call: _Call, made: Generation) -> Generation:
    """`made`, or its error: the caller's where a grammar was given, since another try would end the same."""
    if made.finish != "error":
        return made
    if call.job.grammar is not None:
        raise _bad_request(call.model, made.error)
    raise BackendError(made.error)


def first_fault(error: ValidationError) -> str:
    """The first fault of a validation, as `field: what is wrong`."""
    detail = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"


class _Call(NamedTuple):
    """One call: `job` for `engine`, and the model's full name."""

    engine: Engine
    job: GenerationJob
    model: str


def _prepare(
    model: str, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any], raw: bool, drop: bool
) -> _Call:
    """The engine and the job that a call stands for; raises the library's errors where it makes no sense."""
    params = {key: value for key, value in params.items() if value is not None and key not in _IGNORED}
    params = {key: value for key, value in params.items() if key not in _NEUTRAL or value != _NEUTRAL[key]}
    load = {key: params.pop(key) for key in LOAD_FIELDS if key in params}
    unknown = sorted(set(params) - set(_HANDLED))
    if unknown and not drop:
        known = ", ".join((*_HANDLED, *LOAD_FIELDS))
        raise ConfigError(f"{PROVIDER} models do not take {', '.join(unknown)}; leave it out, or use {known}")
    engine = engine_named(model, load)
    if raw and len(messages) != 1:
        raise DataError(f"{len(messages)} prompts in one call; give one (n draws several samples of it)")
    if raw:
        job = _job(engine.vocabulary.raw_ids(_content(messages[0])), params, engine.context)
    else:
        job = chat_job(engine, messages, params)
    return _Call(engine, job, f"{PROVIDER}/{model}")


def engine_named(model: str, load: Mapping[str, Any]) -> Engine:
    """The shared engine that a model name of LiteLLM stands for, refused if its file is no longer the one named."""
    match = _NAME.fullmatch(model)
    assert match is not None
    engine = shared_engine(ModelConfig(model=f"{PROVIDER}/{match['name']}", **load))
    if match["identity"] is not None and match["identity"] != identity(engine):
        raise ConfigError(
            f"{PROVIDER}/{model}: the files now have the hashes {identity(engine)}; weights or adapter were changed "
            "since, or the adapter is not given: call stepwise.lm again"
        )
    return engine


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        raise DataError(f"a message of role {message.get('role')!r} holds more than text; these models read text only")
    return "".join(part["text"] for part in content)


def chat_job(engine: Engine, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> GenerationJob:
    """The job that answers `messages`, a last one of the assistant continued, under LiteLLM's `params`.

    Raises DataError for messages that the model cannot read, ConfigError for another response_format than a schema.
    """
    chat = [{"role": str(message.get("role", "user")), "content": _content(message)} for message in messages]
    if not chat:
        raise DataError("messages is empty; give at least one")
    begun = chat.pop()["content"] if chat[-1]["role"] == "assistant" else ""
    ids = engine.chat_ids(chat, **{"enable_thinking": False, **(params.get("chat_template_kwargs") or {})})
    return _job(ids + engine.tokenize(begun), params, engine.context)


def _job(ids: Sequence[int], params: Mapping[str, Any], context: int) -> GenerationJob:
    if not ids:
        raise DataError("the prompt is empty; give at least one character")
    stop = params.get("stop") or ()
    top = params.get("top_logprobs") or 0
    if isinstance(params.get("logprobs"), int) and not isinstance(params.get("logprobs"), bool):
        top = params["logprobs"]  # a raw text asks for logprobs by number
    grammar, longest = _grammar(params)
    return GenerationJob(
        tuple(ids),
        max_tokens=min(params.get("max_tokens", longest), longest, max(1, context - len(ids) + 1)),
        n=params.get("n", 1),
        temperature=params.get("temperature", 0.7),
        top_p=params.get("top_p", 1.0),
        top_k=max(0, params.get("top_k", 0)),  # -1 is how some say that it is off
        seed=params["seed"] if "seed" in params else secrets.randbits(32),
        grammar=grammar,
        stop_strings=(stop,) if isinstance(stop, str) else tuple(stop),
        top_logprobs=top,
    )


def _grammar(params: Mapping[str, Any]) -> tuple[str | None, int]:
    """The grammar that was asked for, and the most tokens that it can need."""
    wanted, grammar = params.get("response_format") or {"type": "text"}, params.get("grammar")
    kind = wanted.get("type")
    schema = wanted.get("schema") or (wanted.get("json_schema") or {}).get("schema")
    if kind in ("json_schema", "json_object") and schema:
        bounded = schema_grammar(schema)
        return bounded.gbnf, bounded.max_tokens
    if kind == "json_object":
        return object_grammar(), 1 << 20
    if kind != "text":
        raise ConfigError(f'response_format is {wanted!r}; use {{"type": "json_schema", "json_schema": ...}}')
    return grammar, 1 << 20


def _text(made: Generation) -> str:
    return made.data[: made.end].decode("utf-8", "replace")


def _usage(call: _Call, samples: Sequence[Generation]) -> dict[str, Any]:
    prompt, generated = len(call.job.ids), sum(len(made.ids) for made in samples)
    cached = prompt - max((made.evaluated_tokens for made in samples), default=0)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip


def _response(call: _Call, samples: Sequence[Generation], kwargs: Mapping[str, Any]) -> Any:
    """LiteLLM's own response object, filled in."""
    from litellm.types.utils import ChoiceLogprobs, Choices, Message, Usage

    def choice(made: Generation) -> Any:
        message, reason = Message(content=_text(made), role="assistant"), _finish_reason(made)
        more = {"logprobs": ChoiceLogprobs(content=_logprobs(call.engine, made))} if scored else {}
        return Choices(index=made.sample, message=message, finish_reason=reason, **more)

    response, scored = kwargs["model_response"], bool(kwargs["optional_params"].get("logprobs"))
    choices = list(map(choice, samples))
    response.choices, response.model, response.usage = choices, call.model, Usage(**_usage(call, samples))
    return response


def _finish_reason(made: Generation) -> str:
    return "length" if made.finish == "length" else "stop"


def _logprobs(engine: Engine, made: Generation) -> list[dict[str, Any]]:
    """One entry per token, as OpenAI has it; of the untempered distribution."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = engine.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    tops = made.top or ((),) * len(made.ids)
    return [
        {**entry(token, logprob), "top_logprobs": [entry(*other) for other in top]}
        for token, logprob, top in zip(made.ids, made.logprobs, tops, strict=True)
    ]


def _chunks(call: _Call, events: Iterable[Drawn | Generation]) -> Iterator[dict[str, Any]]:
    """Pieces of the text of one sample, none of them a part of a stop string; together they are the whole text."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    text, sent = "", 0
    for event in events:
        if isinstance(event, Generation):
            yield _chunk(_text(event)[sent:], _finish_reason(event), _usage(call, [event]))
            return
        text += decode(call.engine.token_bytes(event.token))
        safe = len(text) - _held_back(text, call.job.stop_strings)
        if safe > sent:
            yield _chunk(text[sent:safe])
            sent = safe


def _held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string, or are one."""
    longest = 0
    for stop in stops:
        sizes = range(min(len(stop), len(text)), 0, -1)
        longest = max(longest, next((size for size in sizes if text.endswith(stop[:size])), 0))
    return longest


def _chunk(text: str, reason: str = "", usage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"text": text, "is_finished": bool(reason), "finish_reason": reason, "usage": usage,
            "index": 0, "tool_use": None}  # fmt: skip
