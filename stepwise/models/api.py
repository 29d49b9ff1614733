"""One call to a model through LiteLLM: retries that are counted, errors in one line, and one shape for all replies."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from stepwise.errors import REDACTED, redact
from stepwise.models.failures import failure_of
from stepwise.models.http import CallFailed, retried, retry_after
from stepwise.models.provider import import_litellm
from stepwise.types import Failure, FailureKind, Usage

if TYPE_CHECKING:
    from stepwise.config import ModelConfig


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


@dataclass
class StreamEnd:
    """What is known of a streamed sample once it has ended: how, and what it cost."""

    ended: str = ""
    usage: Usage = field(default_factory=Usage)


class Api:
    """Calls to one model; `attempts` and `backoff` as in `http.retried`. Thread safe; `usage` is all that was spent."""

    def __init__(self, config: ModelConfig, name: str, *, attempts: int = 5, backoff: float = 0.5):
        self.config, self.name, self.attempts, self.backoff = config, name, attempts, backoff
        self.key = config.api_key()
        self.usage = Usage()
        self._lock = threading.Lock()

    def ask(self, prompt: str | Sequence[Mapping[str, Any]], **settings: Any) -> Samples:
        """Samples after raw text (by the OpenAI-compatible /v1/completions) or messages. Raises CallFailed."""
        response, retries = self._open(prompt, settings)
        found = [_choice(choice) for choice in getattr(response, "choices", None) or []]
        choices = tuple(choice for choice in found if choice is not None)
        if not choices:
            inside = getattr(response, "error", None)
            said = f"an error inside: {str(inside)[:200]}" if inside else "no text in it"
            raise self._failed("refused", f"HTTP 200 with {said}", retries)
        usages = self._usages(getattr(response, "usage", None), choices, prompt, settings, retries)
        self._spend(usages)
        return Samples(choices, usages)

    def stream(self, prompt: str | Sequence[Mapping[str, Any]], end: StreamEnd, **settings: Any) -> Iterator[str]:
        """Pieces of one sample as they come; `end` is filled in at the end, or when the caller closes the iterator.
        Raises CallFailed; after the first piece nothing is sent again.
        """
        from openai import OpenAIError

        settings = {"stream": True, "stream_options": {"include_usage": True}, **settings}
        response, retries = self._open(prompt, settings)
        text, said = "", None
        try:
            for chunk in response:
                said = getattr(chunk, "usage", None) or said
                for choice in chunk.choices:
                    end.ended = choice.finish_reason or end.ended
                    piece = (choice.text if isinstance(prompt, str) else choice.delta.content) or ""
                    text += piece
                    if piece:
                        yield piece
        except OpenAIError as error:
            failure = Failure(failure_of(error).kind, self._line(_reason(error)))
            raise CallFailed(failure, Usage(self.name)) from None
        finally:
            (end.usage,) = self._usages(said, [Choice(text, end.ended, None, None)], prompt, settings, retries)
            self._spend([end.usage])

    def _open(self, prompt: str | Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> tuple[Any, int]:
        """LiteLLM's response, and how often the call had to be tried again."""
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
                headers = getattr(error, "litellm_response_headers", None) or {}
                wait = retry_after(headers.get("retry-after")) or 0.0
                raise CallFailed(Failure(failure_of(error).kind, _reason(error)), wait=wait) from None

        try:
            return retried(once, attempts=self.attempts, backoff=self.backoff)
        except CallFailed as failed:
            raise self._failed(failed.failure.kind, str(failed), failed.retries) from None

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
        self,
        said: Any,
        choices: Sequence[Choice],
        prompt: str | Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        retries: int,
    ) -> tuple[Usage, ...]:
        """The prompt goes to the first sample, what was generated to all in equal parts: a server tells the sum only.

        A server that tells nothing is taken to have used a token for each byte, or `max_tokens` where that is less:
        it cannot have exceeded either.
        """
        read, generated = getattr(said, "prompt_tokens", 0) or 0, getattr(said, "completion_tokens", 0) or 0
        if not read:
            texts = [prompt] if isinstance(prompt, str) else [str(part.get("content", "")) for part in prompt]
            read = sum(map(_num_bytes, texts))
        if not generated:
            sizes = [_num_bytes(choice.text) for choice in choices]
            generated = sum(min(size, settings.get("max_tokens", size)) for size in sizes)
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
    rows = [getattr(entry, "top_logprobs", None) for entry in content or ()]
    if not rows or not all(rows):
        return None
    return tuple(tuple(sorted((float(entry.logprob) for entry in row), reverse=True)) for row in rows if row)


def _reason(error: Exception) -> str:
    """What LiteLLM says, in one line of at most 300 characters, with the status that it took it for."""
    text = " ".join(str(error).split())
    head = text.partition(" - ")
    said = (head[2] if head[1] else text).strip() or "an answer without text (HTTP 200 with an error inside, perhaps)"
    return f"{type(error).__name__} {getattr(error, 'status_code', '')}: {said[:300]}"
