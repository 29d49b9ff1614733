"""One call of a chat or completion API as a job for the engine, and what it gave, in the terms of such APIs.

Both doors for DSPy stand on it: `litellm_handler` (LiteLLM's) and `native` (an engine of DSPy's own).
"""

from __future__ import annotations

import codecs
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from stepwise.config import ModelConfig
from stepwise.errors import ConfigError, DataError
from stepwise.models.engine import Engine, Generation, GenerationJob, schema_grammar
from stepwise.models.engine.gbnf import object_grammar
from stepwise.models.engine.jobs import Drawn
from stepwise.models.engine.keywords import loosened
from stepwise.models.shared import LOAD_FIELDS, identity, shared_engine

PROVIDER = "llamacpp"
_NAME = re.compile(r"(?P<name>.+?)(?:@(?P<identity>[0-9a-f]{8}(?:\+[0-9a-f]{8}\S*)?))?", re.DOTALL)
_HANDLED = ("temperature", "top_p", "top_k", "seed", "n", "max_tokens", "stop", "logprobs", "top_logprobs", "grammar",
            "response_format", "chat_template_kwargs")  # fmt: skip
_IGNORED = ("stream", "stream_options", "max_retries", "user", "metadata", "extra_headers", "parallel_tool_calls",
            "continue_final_message", "add_generation_prompt", "store")  # fmt: skip
_OF_DSPY = "DSPyProgramOutputs"  # the title of the schema of a signature's outputs
_NEUTRAL = {"frequency_penalty": 0, "presence_penalty": 0, "tools": [], "best_of": 1, "echo": False, "logit_bias": {}}


class ChatCall(NamedTuple):
    """One call: `job` for `engine`, and the model's full name.

    Example:
        call = prepare("lab-weak", [{"role": "user", "content": "1 + 1?"}], {"max_tokens": 16}, raw=False, drop=False)
        print(call.model, len(call.job.ids), call.too_long)
    """

    engine: Engine
    job: GenerationJob
    model: str

    @property
    def too_long(self) -> str:
        """Why the prompt cannot be read, empty where it can."""
        if len(self.job.ids) <= self.engine.context:
            return ""
        return (f"the prompt has {len(self.job.ids)} tokens, more than the context of {self.engine.context}; "
                "load with a larger context")  # fmt: skip

    def cached_tokens(self, samples: Sequence[Generation]) -> int:
        """Tokens of the prompt that were not evaluated again."""
        return len(self.job.ids) - max((made.evaluated_tokens for made in samples), default=0)


def first_fault(error: ValidationError) -> str:
    """The first fault of a validation, as `field: what is wrong`.

    Example:
        try:
            ModelConfig(model=5)
        except ValidationError as error:
            print(first_fault(error))  # model: Input should be a valid string
    """
    detail = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"


def prepare(
    model: str, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any], raw: bool, drop: bool
) -> ChatCall:
    """The engine and the job that a call stands for; raises the library's errors where it makes no sense.

    Example:
        call = prepare("lab-weak", [{"role": "user", "content": "1 + 1?"}], {"max_tokens": 16}, raw=False, drop=False)
        print(text_of(call.engine.generate([call.job])[0]))
    """
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
    return ChatCall(engine, job, f"{PROVIDER}/{model}")


def engine_named(model: str, load: Mapping[str, Any]) -> Engine:
    """The shared engine that a model name of LiteLLM stands for, refused if its file is no longer the one named.

    Example:
        engine = engine_named("lab-weak", {"context": 512})  # the shared one, loaded at its first use
    """
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

    Example:
        job = chat_job(engine, [{"role": "user", "content": "1 + 1?"}], {"temperature": 0.0, "max_tokens": 16})
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
        # DSPy reads values by their types itself: what no grammar can hold to (uniqueItems of a set) is left to it.
        checked = isinstance(schema, Mapping) and schema.get("title") == _OF_DSPY
        bounded = schema_grammar(loosened(schema) if checked else schema)
        return bounded.gbnf, bounded.max_tokens
    if kind == "json_object":
        return object_grammar(), 1 << 20
    if kind != "text":
        raise ConfigError(f'response_format is {wanted!r}; use {{"type": "json_schema", "json_schema": ...}}')
    return grammar, 1 << 20


def text_of(made: Generation) -> str:
    """The text of a sample, what is no UTF-8 replaced.

    Example:
        print(text_of(engine.generate([job])[0]))
    """
    return made.data[: made.end].decode("utf-8", "replace")


def finish_reason(made: Generation) -> str:
    """What APIs say of how it ended: `length` or `stop`.

    Example:
        print(finish_reason(engine.generate([job])[0]))  # "stop", or "length" where max_tokens came first
    """
    return "length" if made.finish == "length" else "stop"


def logprobs(engine: Engine, made: Generation) -> list[dict[str, Any]]:
    """One entry per token, as OpenAI has it; of the untempered distribution.

    Example:
        for token in logprobs(engine, engine.generate([job])[0]):
            print(token["token"], token["logprob"])
    """

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = engine.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    tops = made.top or ((),) * len(made.ids)
    return [
        {**entry(token, logprob), "top_logprobs": [entry(*other) for other in top]}
        for token, logprob, top in zip(made.ids, made.logprobs, tops, strict=True)
    ]


def pieces(call: ChatCall, events: Iterable[Drawn | Generation]) -> Iterator[str | tuple[str, Generation]]:
    """Pieces of the text of one sample, none of them a part of a stop string; together they are the whole text. The
    last comes with the sample.

    Example:
        for piece in pieces(call, call.engine.stream(call.job)):
            print(piece if isinstance(piece, str) else piece[0], end="")
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    text, sent = "", 0
    for event in events:
        if isinstance(event, Generation):
            yield text_of(event)[sent:], event
            return
        text += decode(call.engine.token_bytes(event.token))
        safe = len(text) - held_back(text, call.job.stop_strings)
        if safe > sent:
            yield text[sent:safe]
            sent = safe


def held_back(text: str, stops: Sequence[str]) -> int:
    r"""How many characters at the end of `text` may be the beginning of a stop string, or are one.

    >>> held_back("It is 4.\n", ["\n\n", "END"])  # another line feed would end it
    1
    """
    longest = 0
    for stop in stops:
        sizes = range(min(len(stop), len(text)), 0, -1)
        longest = max(longest, next((size for size in sizes if text.endswith(stop[:size])), 0))
    return longest
