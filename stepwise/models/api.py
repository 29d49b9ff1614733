"""One call to a model through LiteLLM: retries that are counted, errors in one line, and one shape for all answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from stepwise.errors import REDACTED, redact
from stepwise.models.provider import import_litellm
from stepwise.types import Usage

if TYPE_CHECKING:
    from stepwise.config import ModelConfig

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 60.0


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


class Answer(NamedTuple):
    """The samples of one call; `usages` one for each, exact in the sum."""

    choices: tuple[Choice, ...]
    usages: tuple[Usage, ...]


@dataclass
class Told:
    """What is known of a streamed sample once it has ended: how, and what it cost."""

    ended: str = ""
    usage: Usage = field(default_factory=Usage)


class CallFailed(Exception):
    """A call that got no usable answer, in one line without secrets. It stays inside this package."""

    def __init__(self, message: str, usage: Usage, *, refused: bool = False):
        super().__init__(message)
        self.usage, self.refused = usage, refused


class Api:
    """Calls to one model. `attempts` in all for each; waits double from `backoff` seconds, and a Retry-After counts
    where it is longer (60 s at most). Thread safe; `usage` is all that was spent.
    """

    def __init__(self, config: ModelConfig, name: str, *, attempts: int = 5, backoff: float = 0.5):
        self.config, self.name, self.attempts, self.backoff = config, name, attempts, backoff
        self.key = config.api_key()
        self.usage = Usage()
        self._lock = threading.Lock()

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Answer:
        """A chat completion. Raises CallFailed."""
        return self._call(
            import_litellm().completion, {"messages": list(messages), "model": self.config.model, **settings}
        )

    def text(self, prompt: str, **settings: Any) -> Answer:
        """A completion of raw text, by the OpenAI-compatible /v1/completions. Raises CallFailed."""
        request = {"prompt": prompt, "model": self._text_model, **settings}
        return self._call(import_litellm().text_completion, request)

    @property
    def _text_model(self) -> str:
        return f"text-completion-openai/{self.config.model.partition('/')[2]}"

    def stream(self, prompt: str | Sequence[Mapping[str, Any]], told: Told, **settings: Any) -> Iterator[str]:
        """Pieces of one sample as they come, from messages or raw text; `told` is filled in at the end, or when the
        caller closes the iterator. Raises CallFailed; after the first piece nothing is sent again.
        """
        from openai import OpenAIError

        litellm = import_litellm()
        raw = isinstance(prompt, str)
        request: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, **settings}
        request |= (
            {"prompt": prompt, "model": self._text_model} if raw else {"messages": prompt, "model": self.config.model}
        )
        response, retries = self._open(litellm.text_completion if raw else litellm.completion, request)
        text, said = "", None
        try:
            for chunk in response:
                said = getattr(chunk, "usage", None) or said
                for choice in chunk.choices:
                    told.ended = choice.finish_reason or told.ended
                    piece = (choice.text if raw else choice.delta.content) or ""
                    text += piece
                    if piece:
                        yield piece
        except OpenAIError as error:
            raise CallFailed(self._line(_reason(error)), Usage(self.name)) from None
        finally:
            told.usage = self._usages(said, [Choice(text, told.ended, None, None)], request, retries)[0]
            self._spend([told.usage])

    def _call(self, function: Any, request: dict[str, Any]) -> Answer:
        response, retries = self._open(function, request)
        answer = self._read(response, request, retries)
        self._spend(answer.usages)
        return answer

    def _open(self, function: Any, request: dict[str, Any]) -> tuple[Any, int]:
        """LiteLLM's response, and how often the request had to be sent again."""
        from openai import OpenAIError
        from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            doubled: float = self.backoff * 2.0 ** (state.attempt_number - 1)
            return max(min(_retry_after(error), _LONGEST_WAIT), doubled)

        retrying = Retrying(
            stop=stop_after_attempt(self.attempts), wait=wait, retry=retry_if_exception(_passing), reraise=True
        )
        common = {"max_retries": 0, "num_retries": 0, "timeout": self.config.timeout, **self._where()}
        retries = 0
        try:
            for attempt in retrying:
                retries = attempt.retry_state.attempt_number - 1
                with attempt:
                    response = function(**common, **request)
        except OpenAIError as error:
            raise self._failed(_reason(error), retries, refused=not _passing(error)) from None
        return response, retries

    def _where(self) -> dict[str, Any]:
        if self.config.api_base is None:
            return {"api_key": self.key} if self.key else {}
        return {"api_base": self.config.api_base, "api_key": self.key or "none-needed"}

    def _failed(self, message: str, retries: int, *, refused: bool) -> CallFailed:
        usage = Usage(self.name, 1, retries=retries, cost=None if self.config.prices is None else 0.0)
        self._spend([usage])
        tries = f" ({retries + 1} tries)" if retries else ""
        return CallFailed(self._line(message + tries), usage, refused=refused)

    def _line(self, message: str) -> str:
        """`message` with the model and its address before it, and without secrets."""
        place = f" at {self.config.api_base}" if self.config.api_base else ""
        line = f"{self.config.model}{place}: {message}"
        return redact(line.replace(self.key, REDACTED) if self.key else line)

    def _spend(self, usages: Sequence[Usage]) -> None:
        with self._lock:
            self.usage = sum(usages, self.usage)

    def _read(self, response: Any, request: Mapping[str, Any], retries: int) -> Answer:
        found = [_choice(choice) for choice in getattr(response, "choices", None) or []]
        choices = tuple(choice for choice in found if choice is not None)
        if not choices:
            inside = getattr(response, "error", None)
            said = f"an error inside: {str(inside)[:200]}" if inside else "no text in it"
            raise self._failed(f"HTTP 200 with {said}", retries, refused=False)
        return Answer(choices, self._usages(getattr(response, "usage", None), choices, request, retries))

    def _usages(
        self, said: Any, choices: Sequence[Choice], request: Mapping[str, Any], retries: int
    ) -> tuple[Usage, ...]:
        """The prompt goes to the first sample, what was generated to all in equal parts: a server tells the sum only.

        A server that tells nothing is taken to have used a token for each byte, or `max_tokens` where that is less:
        it cannot have exceeded either.
        """
        sizes = [len(choice.text.encode("utf-8", "replace")) for choice in choices]
        prompt, generated = getattr(said, "prompt_tokens", 0) or 0, getattr(said, "completion_tokens", 0) or 0
        if not prompt:
            prompt = sum(len(str(part.get("content", "")).encode("utf-8", "replace")) for part in
                         request.get("messages", [{"content": request.get("prompt", "")}]))  # fmt: skip
        if not generated:
            most = request.get("max_tokens")
            generated = sum(size if most is None else min(size, most) for size in sizes)
        details = getattr(said, "prompt_tokens_details", None)
        cached = min(getattr(details, "cached_tokens", 0) or 0, prompt)
        each, rest = divmod(generated, len(choices))
        usages = []
        for i in range(len(choices)):
            read, written = prompt if i == 0 else 0, each + (i < rest)
            cost = None
            if self.config.prices is not None:
                cost = (self.config.prices[0] * read + self.config.prices[1] * written) / 1e6
            evaluated = read - cached if i == 0 else 0
            usages.append(Usage(self.name, 1, read, evaluated, written, retries if i == 0 else 0, cost))
        return tuple(usages)


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
    return tuple(tuple(sorted((float(one.logprob) for one in row), reverse=True)) for row in rows if row)


def _passing(error: BaseException | None) -> bool:
    """Whether another try may succeed: too many requests, a server's failure, a timeout, a lost connection."""
    return getattr(error, "status_code", None) in _PASSING


def _retry_after(error: BaseException | None) -> float:
    """Seconds that the server asks to wait, 0 where it does not."""
    from stepwise.models.http import retry_after

    headers = getattr(error, "litellm_response_headers", None) or {}
    return retry_after(headers.get("retry-after")) or 0.0


def _reason(error: Exception) -> str:
    """What LiteLLM says, in one line of at most 300 characters, with the status that it took it for."""
    text = " ".join(str(error).split())
    head = text.partition(" - ")
    said = (head[2] if head[1] else text).strip() or "an answer without text (HTTP 200 with an error inside, perhaps)"
    return f"{type(error).__name__} {getattr(error, 'status_code', '')}: {said[:300]}"
