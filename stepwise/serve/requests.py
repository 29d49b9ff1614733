"""What a client may ask: OpenAI's chat request, each parameter honoured, without effect on the answer, or refused."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stepwise.errors import visible

NO_EFFECT = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
"""Parameters that change no answer."""
NEUTRAL: Mapping[str, Any] = {
    "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "tools": [], "functions": [],
    "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"],
}  # fmt: skip
"""Parameters that are refused at any other value, which would change the answer."""
_MAX_STOPS, _MAX_STOP, _MAX_MESSAGES = 4, 256, 512
_ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}


class ApiError(Exception):
    """What a client is told instead of an answer, in OpenAI's form.

    Example:
        >>> ApiError(400, "n: at most 8", param="n").body["error"]["type"]
        'invalid_request_error'
    """

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None,
        param: str | None = None, retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.body = {"error": {"message": visible(message), "type": kind, "param": param, "code": code}}


def _text(value: Any) -> Any:
    """The text of a message, from a string or parts of text."""
    if isinstance(value, list):
        if not all(isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"
                   for part in value):  # fmt: skip
            raise ValueError("only text is read; leave out images, audio and files")
        value = "".join(str(part["text"]) for part in value)
    if isinstance(value, str):
        value.encode()  # half a surrogate pair raises a ValueError
    return value


_Text = Annotated[str, BeforeValidator(_text)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: _Text


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Extension(_Strict):
    steps: bool = False
    """tell each step's author, score and decision"""


class ChatRequest(_Strict):
    r"""A request that is honoured in every field.

    Example:
        >>> asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
        >>> ChatRequest.read({"model": "router", "messages": asked, "seed": 1}).question
        'System: Be brief.\n\nUser: 1 + 1?'
    """

    model: str = Field(max_length=200)
    messages: list[_Message] = Field(min_length=1, max_length=_MAX_MESSAGES)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: list[Annotated[_Text, Field(min_length=1, max_length=_MAX_STOP)]] = Field(default=[], max_length=_MAX_STOPS)
    max_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    stepwise: _Extension = _Extension()

    @classmethod
    def read(cls, body: Any) -> ChatRequest:
        """The request in a JSON object; raises `ApiError`, naming the parameter, for what is not understood."""
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object")
        given = {key: value for key, value in body.items() if value is not None and key not in NO_EFFECT}
        for name in [name for name in NEUTRAL if name in given]:
            value = given.pop(name)
            if value != NEUTRAL[name]:
                raise _refused(name, "is not supported: the router writes plain text, by steps; leave it out")
        if "max_completion_tokens" in given:
            given["max_tokens"] = given.pop("max_completion_tokens")
        if isinstance(given.get("stop"), str):
            given["stop"] = [given["stop"]]
        try:
            request = cls.model_validate(given)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
            name = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                raise _refused(name, "is not supported; leave it out") from None
            raise _refused(name, fault["msg"].removeprefix("Value error, ")) from None
        if request.messages[-1].role != "user" or not request.messages[-1].content.strip():
            raise _refused("messages", "must end with a question of the user")
        return request

    @property
    def question(self) -> str:
        """What is asked, as one question: policy and scorer know one prompt, so that a client's system text and earlier
        turns stand inside of it.
        """
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n\n".join(f"{_ROLES[message.role]}: {message.content}" for message in self.messages)


def place_of(error: BaseException) -> str:
    """An error for the log: its class and where it was raised, and nothing that a client sent.

    Example:
        >>> place_of(ValueError("a question"))
        'ValueError'
    """
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}" if frames else type(error).__name__


def _refused(name: str, reason: str) -> ApiError:
    return ApiError(400, f"{name}: {reason}", param=name, code="unsupported_parameter" if "support" in reason else None)
