"""One call to a model through LiteLLM: retries that are counted, errors in one line, and one shape for all replies."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepwise.config import ModelConfig
from stepwise.errors import REDACTED, redact
from stepwise.models.failures import failure_of
from stepwise.models.http import CallFailed, retried, retry_after
from stepwise.models.litellm_handler import import_litellm
from stepwise.types import Failure, FailureKind, Usage


class Choice(NamedTuple):
    """One sample: `ended` is how the server says it ended, `stopped` the stop string it names (None: it does not say,
    "" where it says that none was met, as vLLM does); `logprobs` and those of the likeliest tokens, `top`, None where
    there are none.
    """

    text: str
    ended: str
    stopped: str | None
    logprobs: tuple[float, ...] | None
    top: tuple[tuple[float, ...], ...] | None = None


class Samples(NamedTuple):
    """The samples of one call; `usages` one for each, exact in the sum."""

    choices: tuple[Choice, ...]
    usages: tuple[Usage, ...]


class Api:
    """Calls to one model; `attempts` and `backoff` as in `http.retried`. Thread safe; `usage` is all that was spent."""

    def __init__(self, config: ModelConfig, name: str, *, attempts: int = 5, backoff: float = 0.5):
        self.config, self.name, self.attempts, self.backoff = config, name, attempts, backoff
        self.key = config.api_key()
        self.usage = Usage()
        self._lock = threading.Lock()

    def ask(self, prompt: str | Sequence[Mapping[str, Any]], **settings: Any) -> Samples:
        """Samples after raw text (by the OpenAI-compatible /v1/completions) or messages. Raises CallFailed."""
        from openai import OpenAIError

        litellm = import_litellm()
        where = {"api_key": self.key} if self.key else {}
        if self.config.api_base is not None:
            where = {"api_base": self.config.api_base, "api_key": self.key or "none-needed"}
        request = {"max_retries": 0, "num_retries": 0, "timeout": self.config.timeout, **where, **settings}

        def once() -> Any:
            try:
                if isinstance(prompt, str):
                    name = f"text-completion-openai/{self.config.model.partition('/')[2]}"
                    return litellm.text_completion(prompt=prompt, model=name, **request)
                return litellm.completion(messages=list(prompt), model=self.config.model, **request)
            except OpenAIError as error:
                wait = retry_after((getattr(error, "litellm_response_headers", None) or {}).get("retry-after"))
                raise CallFailed(Failure(failure_of(error).kind, _reason(error)), wait=wait or 0.0) from None

        try:
            response, retries = retried(once, attempts=self.attempts, backoff=self.backoff)
        except CallFailed as failed:
            raise self._failed(failed.failure.kind, str(failed), failed.retries) from None
        choices = tuple(filter(None, map(_choice, getattr(response, "choices", None) or [])))
        if not choices:
            inside = getattr(response, "error", None)
            said = f"an error inside: {str(inside)[:200]}" if inside else "no text in it"
            raise self._failed("refused", f"HTTP 200 with {said}", retries)
        usages = self._usages(getattr(response, "usage", None), choices, prompt, settings.get("max_tokens"), retries)
        self._spend(usages)
        return Samples(choices, usages)

    def _failed(self, kind: FailureKind, message: str, retries: int) -> CallFailed:
        usage = Usage(self.name, 1, retries=retries, cost=None if self.config.prices is None else 0.0)
        self._spend([usage])
        tries = f" ({retries + 1} tries)" if retries else ""
        return CallFailed(Failure(kind, self._line(message + tries)), usage)

    def _line(self, message: str) -> str:
        """`message` with the model and its address before it, and without secrets."""
        place = f" at {self.config.api_base}" if self.config.api_base else ""
        line = f"{self.config.model}{place}: {message}"
        return redact(line.replace(self.key, REDACTED) if self.key else line)

    def _spend(self, usages: Sequence[Usage]) -> None:
        with self._lock:
            self.usage = sum(usages, self.usage)

    def _usages(
        self, said: Any, choices: Sequence[Choice], prompt: Any, max_tokens: int | None, retries: int
    ) -> tuple[Usage, ...]:
        """The prompt goes to the first sample, what was generated to all in equal parts: a server tells the sum only.

        A server that tells nothing is taken to have used a token for each byte, or `max_tokens` where that is less:
        it cannot have exceeded either.
        """
        texts = [prompt] if isinstance(prompt, str) else [str(part.get("content", "")) for part in prompt]
        sizes = [_num_bytes(choice.text) for choice in choices]
        read = getattr(said, "prompt_tokens", 0) or sum(map(_num_bytes, texts))
        generated = getattr(said, "completion_tokens", 0) or sum(min(size, max_tokens or size) for size in sizes)
        cached = min(getattr(getattr(said, "prompt_tokens_details", None), "cached_tokens", 0) or 0, read)
        each, rest = divmod(generated, len(choices))
        usages = []
        for i in range(len(choices)):
            written, cost = each + (i < rest), None
            if self.config.prices is not None:
                cost = (self.config.prices[0] * read + self.config.prices[1] * written) / 1e6
            usages.append(Usage(self.name, 1, read, read - cached, written, retries, cost))
            read = cached = retries = 0
        return tuple(usages)


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _choice(choice: Any) -> Choice | None:
    """None where the server gave no text at all."""
    message = getattr(choice, "message", None)
    text = getattr(choice, "text", None)
    if text is None and message is not None:
        text = message.get("content") if isinstance(message, dict) else message.content
    if text is None:
        return None
    fields = getattr(choice, "provider_specific_fields", None) or {}
    said = fields["stop_reason"] if "stop_reason" in fields else getattr(choice, "stop_reason", False)
    stopped = said if isinstance(said, str) else None if said is False else ""
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    logprobs = tuple(float(entry.logprob) for entry in content) if content else None
    return Choice(text, choice.finish_reason or "stop", stopped, logprobs, _top(content))


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
