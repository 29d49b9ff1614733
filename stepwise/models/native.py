"""`llamacpp/...` as an engine of DSPy's own, `complete(Request) -> Response`: no LiteLLM between program and model.

    lm = stepwise.lm("llamacpp/lab-critic", engine="native")

A last message of the assistant is continued where it stands. DSPy draws `n` samples by `n` calls, so that with a seed
they are equal. How the model was loaded (context, adapter, ...) is the engine's, not an option of a call. A GBNF goes
in as `grammar_format` says: in a schema, since DSPy's requests, and so its cache, know nothing else that has a grammar.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from dspy import lm15
from pydantic import ValidationError

from stepwise.errors import BackendError, StepwiseError
from stepwise.models.calls import ChatCall, finish_reason, first_fault, logprobs, pieces, prepare, text_of
from stepwise.models.engine import Generation

_GBNF = "x-gbnf"
_TAKEN = frozenset({"max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "logprobs", "top_logprobs",
                    "response_format"})  # fmt: skip
_IGNORED = ("user_id", "store", "service_tier")
_REFUSED = ("frequency_penalty", "presence_penalty", "reasoning", "cache", "probabilities", "extensions", "tool_choice")


class NativeEngine:
    """One model of this process for `dspy.LM(engine=)`, loaded at its first call and shared as all others are.

    Thread safe: concurrent calls share the batches of the model. `name` is what follows "llamacpp/", `load` the fields
    of a ModelConfig that say how to load it.

    Example:
        model = dspy.LM("llamacpp/lab-weak", engine=NativeEngine("lab-weak", {"context": 512}))
    """

    supports_response_schema: ClassVar[bool] = True
    supported_params: ClassVar[frozenset[str]] = _TAKEN

    def __init__(self, name: str, load: Mapping[str, Any] | None = None):
        self.name, self.load = name, dict(load or {})

    def complete(self, request: Any) -> Any:
        """The answer to a request, once; errors are those that DSPy knows, a caller's own not retryable."""
        call, scored = self.call(request)
        with _server_errors():
            return _response(call, _checked(call, call.engine.generate([call.job])[0]), scored)

    def stream(self, request: Any) -> Iterator[Any]:
        """The answer in pieces."""
        call, scored = self.call(request)
        if scored:
            raise lm15.UnsupportedFeatureError("a stream has no logprobs; leave them out, or do not stream")
        yield lm15.StreamStartEvent(model=request.model)
        with _server_errors():
            events = (
                _checked(call, event) if isinstance(event, Generation) else event
                for event in call.engine.stream(call.job)
            )
            for piece in pieces(call, events):
                text, end = (piece, None) if isinstance(piece, str) else piece
                if text:
                    yield lm15.StreamDeltaEvent(lm15.TextDelta(text))
                if end is not None:
                    yield lm15.StreamEndEvent(finish_reason(end), _usage(call, end))

    def close(self) -> None:
        """Nothing: the model is shared; `close_engines` frees it."""

    def grammar_format(self, gbnf: str) -> dict[str, Any]:
        """The response_format that holds a call to a grammar."""
        return {"type": "json_schema", "json_schema": {"name": "grammar", "schema": {_GBNF: gbnf}}}

    def call(self, request: Any) -> tuple[ChatCall, bool]:
        """The request as a job, and whether it asks for logprobs."""
        config = request.config
        unknown = [name for name in _REFUSED if getattr(config, name) not in (None, 0)]
        if unknown or request.tools:
            what = ", ".join([*unknown, *(["tools"] if request.tools else [])])
            raise lm15.UnsupportedFeatureError(f"{request.model} does not take {what}; leave it out", feature=what)
        messages, params = chat_of(request)
        params |= {"top_logprobs": config.logprobs or None}
        form = config.response_format or {}
        if _GBNF in (form.get("schema") or {}):
            params["grammar"] = form["schema"][_GBNF]
        else:
            params["response_format"] = form or None
        try:
            call = prepare(self.name, messages, {**params, **self.load}, raw=False, drop=False)
        except (ValidationError, StepwiseError) as error:
            message = first_fault(error) if isinstance(error, ValidationError) else str(error)
            raise lm15.InvalidRequestError(message, provider="llamacpp") from error
        if call.too_long:
            raise lm15.ContextLengthError(call.too_long, provider="llamacpp")
        return call, config.logprobs is not None

    def dump_state(self) -> dict[str, Any]:
        """For DSPy's `save`."""
        return {"name": self.name, "load": self.load}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> NativeEngine:
        """For DSPy's `load`."""
        return cls(state["name"], state["load"])


class AsyncNativeEngine(NativeEngine):
    """`NativeEngine` for asyncio: it waits for the engine, not in a thread.

    Example:
        engine = AsyncNativeEngine("lab-weak", {"context": 512})  # what DSPy takes for `acall`
    """

    async def complete(self, request: Any) -> Any:
        """See the base class."""
        call, scored = await asyncio.to_thread(self.call, request)
        with _server_errors():
            return _response(call, _checked(call, (await call.engine.agenerate([call.job]))[0]), scored)

    async def stream(self, request: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        """See the base class."""
        events = NativeEngine.stream(self, request)
        try:
            while (event := await asyncio.to_thread(next, events, None)) is not None:
                yield event
        finally:
            events.close()  # type: ignore[attr-defined]

    async def aclose(self) -> None:
        """Nothing, as `close`."""


def chat_of(request: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages and settings of a request of DSPy's, as chat APIs have them; None is what it does not say.

    Example:
        >>> chat_of(lm15.Request(model="m", messages=(lm15.Message.user("1 + 1?"),)))[0][0]["content"][0]["text"]
        '1 + 1?'
    """
    system = [] if request.system is None else [{"role": "system", "content": _content(request.system)}]
    messages = [*system, *({"role": m.role, "content": _content(m.parts)} for m in request.messages)]
    params = {key: getattr(request.config, key) for key in ("max_tokens", "temperature", "top_p", "top_k", "seed")}
    return messages, params | {"stop": list(request.config.stop) or None}


def _content(parts: Any) -> Any:
    """A message's text, or parts that `prepare` refuses by name."""
    if isinstance(parts, str):
        return parts
    return [{"type": part.type, "text": getattr(part, "text", "")} for part in parts]


def _checked(call: ChatCall, sample: Generation) -> Generation:
    """`sample`, or its error: the caller's where a grammar was given, since another try would end the same."""
    if sample.finish != "error":
        return sample
    if call.job.grammar is not None:
        raise lm15.InvalidRequestError(sample.error, provider="llamacpp")
    raise BackendError(sample.error)


@contextmanager
def _server_errors() -> Iterator[None]:
    """An engine that fails or was closed meanwhile is a server's error: a second try finds a fresh one."""
    try:
        yield
    except BackendError as error:
        raise lm15.ServerError(str(error), provider="llamacpp") from error


def _usage(call: ChatCall, sample: Generation) -> Any:
    cached = call.cached_tokens([sample])
    return lm15.Usage(input_tokens=len(call.job.ids), output_tokens=len(sample.ids), cache_read_tokens=cached)


def _response(call: ChatCall, sample: Generation, scored: bool) -> Any:
    text = lm15.Message.assistant([lm15.TextPart(text_of(sample))])
    scores = tuple(_token_logprob(entry) for entry in logprobs(call.engine, sample)) if scored else None
    return lm15.Response(id=None, model=call.model, message=text, finish_reason=finish_reason(sample),
                         usage=_usage(call, sample), logprobs=scores)  # fmt: skip


def _token_logprob(entry: Mapping[str, Any]) -> Any:
    def written(one: Mapping[str, Any]) -> tuple[str, float, Sequence[int]]:
        return one["token"], one["logprob"], tuple(one["bytes"])

    top = tuple(lm15.TopLogprob(*written(other)) for other in entry["top_logprobs"])
    return lm15.TokenLogprob(*written(entry), top=top)
