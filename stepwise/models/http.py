"""POST of JSON to a server: what went wrong is said in one line, and what may pass is tried again."""

from __future__ import annotations

import email.utils
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from stepwise.errors import redact

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT = 60.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_REMEDIES = {
    400: "; check that model, marker and context fit the server",
    401: "; set api_key_env to the variable that holds the key",
    403: "; set api_key_env to the variable that holds a key with access",
    404: "; check api_base and the model's name on the server",
    429: "; lower sequences (requests in flight)",
}


class Reply(NamedTuple):
    """The JSON value that came back, and how often the request had to be sent again."""

    data: Any
    retries: int


class HttpFailure(Exception):
    """A request that got no usable answer; `retries` as in `Reply`. It stays inside this library."""

    def __init__(self, message: str, *, passing: bool = False, wait: float | None = None):
        super().__init__(message)
        self.passing, self.wait, self.retries = passing, wait, 0


class Server:
    """One server. `attempts` in all for a request, `timeout` seconds for each, `backoff` seconds before the second,
    doubled before each further one; a Retry-After of the server counts where it is longer (60 s at most).
    """

    def __init__(
        self,
        api_base: str,
        *,
        key: str | None = None,
        timeout: float = 120.0,
        attempts: int = 4,
        backoff: float = 0.5,
    ):
        self.root = api_base.rstrip("/").removesuffix("/v1")
        self.attempts, self.timeout, self.backoff = attempts, timeout, backoff
        self._key = key
        # A proxy that stands in the environment knows nothing of servers on this machine.
        local = urlsplit(self.root).hostname in _LOOPBACK
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))

    def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        """The answer to `body` at `path`; raises `HttpFailure` when there is none that can be used."""
        from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

        def wait(state: RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            asked = (failure.wait or 0.0) if isinstance(failure, HttpFailure) else 0.0
            doubled: float = self.backoff * 2.0 ** (state.attempt_number - 1)
            return max(min(asked, _LONGEST_WAIT), doubled)

        retrying = Retrying(
            stop=stop_after_attempt(self.attempts),
            wait=wait,
            retry=retry_if_exception(lambda error: isinstance(error, HttpFailure) and error.passing),
            reraise=True,
        )
        retries = 0
        try:
            for attempt in retrying:
                retries = attempt.retry_state.attempt_number - 1
                with attempt:
                    return Reply(self._once(path, body), retries)
        except HttpFailure as failure:
            failure.retries = retries
            raise
        raise AssertionError("tenacity gives at least one attempt")

    def _once(self, path: str, body: Mapping[str, Any]) -> Any:
        url = self.root + path
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        # A lone surrogate in a text is sent as the escape that JSON has for it.
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 (api_base is http or https)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                raw = response.read()
        except urllib.error.HTTPError as error:
            passing = error.code in _PASSING
            message = f"{url}: HTTP {error.code}: {_shown(error.read())}{_REMEDIES.get(error.code, '')}"
            raise HttpFailure(message, passing=passing, wait=retry_after(error.headers.get("Retry-After"))) from None
        except (OSError, http.client.HTTPException) as error:
            reason = redact(str(getattr(error, "reason", None) or error or type(error).__name__))
            raise HttpFailure(f"{url}: no answer ({reason}); is the server up?", passing=True) from None
        try:
            data = json.loads(raw)
        except ValueError:
            raise HttpFailure(
                f"{url}: HTTP 200, but the body is not JSON: {_shown(raw)}; is api_base this kind of server?",
                passing=True,
            ) from None
        if isinstance(data, dict) and data.get("error"):
            raise HttpFailure(f"{url}: HTTP 200 with an error inside: {_shown(raw)}", passing=_code(data) in _PASSING)
        return data


def _code(data: Mapping[str, Any]) -> Any:
    error = data["error"]
    return error.get("code") if isinstance(error, dict) else data.get("code")


def _shown(raw: bytes) -> str:
    """The first 200 characters of a body, without secrets."""
    text = redact(raw[:2000].decode("utf-8", "replace"))
    return repr(text if len(text) <= 200 else text[:200] + "...") if raw else "an empty body"


def retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date; None where there is neither."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
