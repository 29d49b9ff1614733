"""One call to a model through LiteLLM: retries that are counted, errors in one line, and one shape for all replies."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import httpx

from stepwise.config import ModelConfig
from stepwise.errors import REDACTED, redact
from stepwise.io import parse_json
from stepwise.models.dialects import SELF_HOSTED
from stepwise.models.failures import failure_of
from stepwise.models.http import CallFailed, bounded_client, retried, retry_after
from stepwise.models.litellm_handler import check_provider, import_litellm
from stepwise.types import Failure, FailureKind, Usage


class Choice(NamedTuple):
    r"""One sample: `ended` is how the server says it ended, `stopped` the stop string it names (None: it does not say,
    "" where it says that none was met, as vLLM does); `logprobs` and those of the likeliest tokens, `top`, None where
    there are none. `reasoned`: the server told thoughts apart from the text.

    >>> Choice("So 3.", "stop", stopped="\n\n", logprobs=None).stopped
    '\n\n'
    """

    text: str
    ended: str
    stopped: str | None
    logprobs: tuple[float, ...] | None
    top: tuple[tuple[float, ...], ...] | None = None
    reasoned: bool = False


class Samples(NamedTuple):
    """The samples of one call; `usages` one for each, exact in the sum. `perhaps` is the most that tries without an
    answer were billed.

    >>> Samples((Choice("So 3.", "stop", None, None),), (Usage("NAME", 1, 20, 20, 4),)).usages[0].generated_tokens
    4
    """

    choices: tuple[Choice, ...]
    usages: tuple[Usage, ...]
    perhaps: Usage = Usage()


SENDING: ContextVar[Callable[[Usage], None] | None] = ContextVar("stepwise_sending", default=None)
"""Hears, before a request is sent, the most that it may be billed: who keeps answers writes it down."""


class Api:
    """Calls to one model; `attempts` and `backoff` as in `http.retried`. Thread safe; `usage` is all that was spent.

    A call takes at most `config.timeout` seconds, its reply has at most `http.MOST_BYTES`, and redirects are not
    followed, where the provider's client can be given ours: OpenAI-compatible servers and Anthropic.

    Example:
        api = Api(sw.ModelConfig(model="openai/NAME", api_base="http://localhost:8080/v1"), "openai/NAME")
        print(api.ask([{"role": "user", "content": "1 + 1?"}], max_tokens=16).choices[0].text)
    """

    def __init__(self, config: ModelConfig, name: str, *, attempts: int = 5, backoff: float = 0.5):
        self.config, self.name, self.attempts, self.backoff = config, name, attempts, backoff
        self.key = config.api_key()
        check_provider(config.model, config.api_base)
        self.usage = Usage()
        self.rest_until = 0.0
        """when, by time.monotonic(), a server that asked for a pause may be asked again"""
        self._lock = threading.Lock()
        self._http, self._last_reply = bounded_client(config.api_base or "", config.timeout)

    def ask(self, prompt: str | Sequence[Mapping[str, Any]], **settings: Any) -> Samples:
        """Samples after raw text (by the OpenAI-compatible /v1/completions) or messages. Raises CallFailed."""
        from openai import OpenAIError

        litellm = import_litellm()
        where = {"api_key": self.key} if self.key else {}
        if self.config.api_base is not None:
            where = {"api_base": self.config.api_base, "api_key": self.key or "none-needed"}
        request = {"max_retries": 0, "num_retries": 0, "timeout": self.config.timeout, **where, **settings}
        request |= client_argument(self.config.model, self.config.api_base, self.key, self._http)
        texts = [prompt] if isinstance(prompt, str) else [str(part.get("content", "")) for part in prompt]
        read, limit = sum(map(_num_bytes, texts)), settings.get("max_tokens")
        bound = self._priced(Usage(self.name, 1, read, read, (limit or 0) * (settings.get("n") or 1)))
        if (sending := SENDING.get()) is not None:
            sending(bound)
        perhaps = billed = Usage()  # of tries without an answer, and of those whose answer is no use

        def once() -> Any:
            nonlocal perhaps, billed
            try:
                if isinstance(prompt, str):
                    name = f"text-completion-openai/{self.config.model.partition('/')[2]}"
                    return litellm.text_completion(prompt=prompt, model=name, **request)
                return litellm.completion(messages=list(prompt), model=self.config.model, **request)
            except OpenAIError as error:
                counts, _ = _counts(self._reported())
                if counts:
                    billed += dataclasses.replace(self._shares(*counts, 1, 0)[0], calls=0)
                elif isinstance(error, litellm.Timeout | litellm.APIConnectionError) or (
                    # LiteLLM has other names for a lost connection; a success of which nothing can be read was written
                    "client" in request and ((reply := self._last_reply()) is None or reply[0] < 300)
                ):
                    perhaps += bound
                wait = retry_after((getattr(error, "litellm_response_headers", None) or {}).get("retry-after"))
                self.rest_until = max(self.rest_until, time.monotonic() + (wait or 0.0))
                raise CallFailed(Failure(failure_of(error).kind, _reason(error)), wait=wait or 0.0) from None
            except RecursionError:
                perhaps += bound
                raise CallFailed(Failure("again", "the reply is nested too deeply to be read")) from None

        try:
            response, retries = retried(once, attempts=self.attempts, backoff=self.backoff)
        except CallFailed as failed:
            raise self._failed(failed.failure.kind, str(failed), failed.retries, billed, perhaps) from None
        choices = tuple(filter(None, map(_choice, getattr(response, "choices", None) or [])))
        counts, fault = _counts(getattr(response, "usage", None) or self._reported())
        if fault:
            raise self._failed("refused", f"HTTP 200 with {fault}", retries, billed, perhaps + bound)
        if not choices:
            inside = getattr(response, "error", None)
            said = f"an error inside: {str(inside)[:200]}" if inside else "no text in it"
            if counts:
                billed += dataclasses.replace(self._shares(*counts, 1, 0)[0], calls=0)
            raise self._failed("refused", f"HTTP 200 with {said}", retries, billed, perhaps)
        sizes = [_num_bytes(choice.text) for choice in choices]
        # A server that tells nothing is taken to have used a token for each byte, or `max_tokens` where that is less:
        # it cannot have exceeded either.
        counts = counts or (read, sum(min(size, limit or size) for size in sizes), 0)
        first, *others = self._shares(*counts, len(choices), retries)
        usages = (first + billed, *others)
        self._spend(usages)
        return Samples(choices, usages, perhaps)

    def _reported(self) -> Any:
        """The usage in the last reply, as the server wrote it; None where there is none."""
        try:
            body = parse_json((self._last_reply() or (0, b"null"))[1])
        except ValueError:
            return None
        return body.get("usage") if isinstance(body, dict) else None

    def _failed(self, kind: FailureKind, message: str, retries: int, billed: Usage, perhaps: Usage) -> CallFailed:
        usage = self._priced(Usage(self.name, 1, retries=retries)) + billed
        self._spend([usage])
        tries = f" ({retries + 1} tries)" if retries else ""
        return CallFailed(Failure(kind, self._line(message + tries)), usage, perhaps=perhaps)

    def _line(self, message: str) -> str:
        """`message` with the model and its address before it, and without secrets."""
        place = f" at {self.config.api_base}" if self.config.api_base else ""
        line = f"{self.config.model}{place}: {message}"
        return redact(line.replace(self.key, REDACTED) if self.key else line)

    def _spend(self, usages: Sequence[Usage]) -> None:
        with self._lock:
            self.usage = sum(usages, self.usage)

    def _shares(self, read: int, generated: int, cached: int, number: int, retries: int) -> tuple[Usage, ...]:
        """The prompt goes to the first sample, what was written to all in equal parts: a server tells the sum only."""
        each, rest = divmod(generated, number)
        first = Usage(self.name, 1, read, read - min(cached, read), each + (rest > 0), retries)
        others = (Usage(self.name, 1, generated_tokens=each + (i < rest)) for i in range(1, number))
        return tuple(map(self._priced, (first, *others)))

    def _priced(self, usage: Usage) -> Usage:
        prices = self.config.prices
        if prices is None:
            return usage
        cost = (prices[0] * usage.prompt_tokens + prices[1] * usage.generated_tokens) / 1e6
        if prices[2:]:  # what came from the server's cache has a price of its own
            cost -= (prices[0] - prices[-1]) * (usage.prompt_tokens - usage.evaluated_tokens) / 1e6
        return dataclasses.replace(usage, cost=cost)


def client_argument(model: str, api_base: str | None, key: str | None, http: httpx.Client) -> dict[str, Any]:
    """The argument that makes LiteLLM send by `http`; none for a provider of whose client nothing is known.

    >>> client_argument("bedrock/NAME", None, None, httpx.Client())  # its client takes none of ours
    {}
    """
    provider = model.partition("/")[0]
    if provider in SELF_HOSTED:
        from openai import OpenAI

        key = key or os.environ.get("OPENAI_API_KEY") or "none-needed"
        return {"client": OpenAI(api_key=key, base_url=api_base, http_client=http, max_retries=0)}
    if provider == "anthropic":
        from litellm.llms.custom_httpx.http_handler import HTTPHandler

        return {"client": HTTPHandler(client=http)}
    return {}


def _counts(said: Any) -> tuple[tuple[int, int, int] | None, str]:
    """Tokens read, written and read from a cache, as a server says it, None where it does not; or what is wrong."""
    if said is None:
        return None, ""
    said = said if isinstance(said, Mapping) else said.model_dump()
    details = said.get("prompt_tokens_details") or said.get("input_tokens_details") or {}
    made, hit = (said.get(f"cache_{name}_input_tokens") or 0 for name in ("creation", "read"))
    if not said.get("prompt_tokens") and all(isinstance(count, int) for count in (made, hit, said.get("input_tokens"))):
        # Anthropic's input_tokens are those beside its cache
        said = {**said, "prompt_tokens": said["input_tokens"] + made + hit}
        details = details or {"cached_tokens": hit}
    named = {
        "prompt_tokens": said.get("prompt_tokens") or said.get("input_tokens") or 0,
        "completion_tokens": said.get("completion_tokens") or said.get("output_tokens") or 0,
        "cached_tokens": (details.get("cached_tokens") if isinstance(details, Mapping) else 0) or 0,
    }
    for name, count in named.items():
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < 2**40:
            return None, f"{name} = {count!r:.40}, which is no count of tokens"
    read, written, cached = named.values()
    return ((read, written, cached) if read or written else None), ""


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _choice(choice: Any) -> Choice | None:
    """None where the server gave no text at all."""
    message = getattr(choice, "message", None)
    text = getattr(choice, "text", None)
    if text is None and message is not None:
        text = message.get("content") if isinstance(message, dict) else message.content
    if not isinstance(text, str):
        return None
    fields = getattr(choice, "provider_specific_fields", None) or {}
    said = fields["stop_reason"] if "stop_reason" in fields else getattr(choice, "stop_reason", False)
    stopped = said if isinstance(said, str) else None if said is False else ""
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    logprobs = tuple(float(entry.logprob) for entry in content) if content else None
    reasoned = bool(getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None))
    return Choice(text, choice.finish_reason or "stop", stopped, logprobs, _top(content), reasoned)


def _top(content: Any) -> tuple[tuple[float, ...], ...] | None:
    """Log-probabilities of the likeliest tokens at each position, likeliest first, as far as a chat answer has them."""
    rows = [getattr(entry, "top_logprobs", None) or () for entry in content or ()]
    if not rows or not all(rows):
        return None
    return tuple(tuple(sorted((float(entry.logprob) for entry in row), reverse=True)) for row in rows)


def _reason(error: Exception) -> str:
    """What LiteLLM says, in one line of at most 300 characters, with the status that it took it for."""
    text = " ".join(str(error).split())
    head = text.partition(" - ")
    said = (head[2] if head[1] else text).strip() or "an answer without text (HTTP 200 with an error inside, perhaps)"
    return f"{type(error).__name__} {getattr(error, 'status_code', '')}: {said[:300]}"
