"""Calls over HTTP: POST of JSON to a server, and what every hosted call shares: what may pass is tried again, and what
went wrong is said in one line.
"""

from __future__ import annotations

import email.utils
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import httpcore
import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from stepwise.errors import BackendError, redact
from stepwise.io import parse_json
from stepwise.models.failures import kind_of_status
from stepwise.types import Failure, FailureKind, Usage

T = TypeVar("T")
_LONGEST_WAIT = 60.0
MOST_BYTES = 32 * 2**20
"""The longest reply that is read, unpacked: some hundred thousand tokens with their log-probabilities."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_REMEDIES = {
    400: "; check that model, marker and context fit the server",
    401: "; set api_key_env to the variable that holds the key",
    403: "; set api_key_env to the variable that holds a key with access",
    404: "; check api_base and the model's name on the server",
    429: "; lower sequences (requests in flight)",
}


class CallFailed(BackendError):
    """A call that got no usable answer.

    `wait`: seconds that the server asks to wait before another try; `retries`: how often the call was sent again;
    `usage`: what all of it cost, where the client counts that; `perhaps`: the most that tries without an answer were
    billed beside it.

    >>> CallFailed(Failure("again", "HTTP 429: too many requests"), wait=2.0).wait
    2.0
    """

    def __init__(
        self, failure: Failure, usage: Usage | None = None, *, wait: float = 0.0, perhaps: Usage | None = None
    ):
        super().__init__(failure.reason)
        self.failure, self.usage, self.wait, self.retries = failure, usage or Usage(), wait, 0
        self.perhaps = perhaps or Usage()


def retried(call: Callable[[], T], *, attempts: int, backoff: float) -> tuple[T, int]:
    """What `call` gives, and how often it had to be tried again: at most `attempts` times in all, where it raises
    CallFailed of kind "again".

    `backoff` seconds pass before the second try, twice as many before each further one; what the server asks for counts
    where it is longer (60 s at most).

    >>> retried(lambda: "an answer", attempts=3, backoff=0.5)
    ('an answer', 0)
    """

    def wait(state: RetryCallState) -> float:
        failed = state.outcome.exception() if state.outcome else None
        asked = failed.wait if isinstance(failed, CallFailed) else 0.0
        doubled: float = backoff * 2.0 ** (state.attempt_number - 1)
        return max(min(asked, _LONGEST_WAIT), doubled)

    def passing(error: BaseException) -> bool:
        return isinstance(error, CallFailed) and error.failure.kind == "again"

    retrying = Retrying(stop=stop_after_attempt(attempts), wait=wait, retry=retry_if_exception(passing), reraise=True)
    try:
        result = retrying(call)
    except CallFailed as failed:
        failed.retries = retrying.statistics["attempt_number"] - 1
        raise
    return result, retrying.statistics["attempt_number"] - 1


class _Bounded(httpx.BaseTransport):
    """Sends by `client`; a request takes at most `timeout` seconds until its reply is whole, however slowly it comes,
    and a reply that unpacks to more than `most` bytes is an error. `last` has status and body for each thread.
    """

    def __init__(self, client: httpx.Client, timeout: float, most: int) -> None:
        self._client, self._timeout, self._most, self.last = client, timeout, most, threading.local()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx. Raises ReadTimeout and DecodingError where a bound is passed."""
        request.headers["accept-encoding"] = "gzip, deflate"  # what `_unpacked` can bound
        self.last.reply, late, sockets = None, threading.Event(), list[socket.socket]()

        def trace(_: str, info: Mapping[str, Any]) -> None:
            if isinstance(stream := info.get("return_value"), httpcore.NetworkStream):
                sockets.append(stream.get_extra_info("socket"))

        def stop() -> None:
            late.set()
            for each in sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        request.extensions = {**request.extensions, "trace": trace}
        timer = threading.Timer(self._timeout, stop)
        timer.daemon = True
        timer.start()
        try:
            response = self._client.send(request, stream=True, follow_redirects=False)
            with closing(response):
                body = self._unpacked(response, request)
        except httpx.TransportError as error:
            if not late.is_set():
                raise
            message = f"timed out: no whole reply within {self._timeout:g} s"
            raise httpx.ReadTimeout(message, request=request) from error
        finally:
            timer.cancel()
        if late.is_set():
            raise httpx.ReadTimeout(f"timed out: no whole reply within {self._timeout:g} s", request=request)
        self.last.reply = response.status_code, body
        dropped = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in dropped]
        return httpx.Response(response.status_code, headers=headers, content=body)

    def _unpacked(self, response: httpx.Response, request: httpx.Request) -> bytes:
        body, packed = bytearray(), response.headers.get("content-encoding", "identity") != "identity"
        unpack = zlib.decompressobj(wbits=47)  # gzip or zlib
        try:
            for part in response.iter_raw():
                body += unpack.decompress(part, self._most + 1 - len(body)) if packed else part
                if len(body) > self._most:
                    raise httpx.DecodingError(f"the reply has more than {self._most:,} bytes", request=request)
        except zlib.error as error:
            raise httpx.DecodingError(f"the reply cannot be unpacked ({error})", request=request) from None
        return bytes(body)

    def close(self) -> None:
        self._client.close()


def bounded_client(
    address: str, timeout: float, *, most: int = MOST_BYTES, headers: Mapping[str, str] | None = None
) -> tuple[httpx.Client, Callable[[], tuple[int, bytes] | None]]:
    """A client that keeps to the bounds of every hosted call and follows no redirect, since a key would go with it; and
    what gives status and body of the reply to the calling thread's last request, None where none came whole.

    Example:
        client, last_reply = bounded_client("http://localhost:8080", timeout=60.0)
    """
    # A proxy that stands in the environment knows nothing of servers on this machine. A connection that is kept could
    # not be ended when time is up.
    local, fresh = urlsplit(address).hostname in _LOOPBACK, httpx.Limits(max_keepalive_connections=0)
    bounded = _Bounded(httpx.Client(timeout=timeout, trust_env=not local, limits=fresh), timeout, most)
    client = httpx.Client(transport=bounded, headers=headers, timeout=timeout, follow_redirects=False)
    return client, lambda: getattr(bounded.last, "reply", None)


class _Reply(NamedTuple):
    """The JSON value that came back, and how often the request had to be sent again."""

    data: Any
    retries: int


class Server:
    """One server. `timeout` in seconds for the whole of each try, `attempts` and `backoff` as in `retried`.

    Redirects are not followed: the key would go with them.

    Example:
        reply = Server("http://localhost:8080/v1").post("/tokenize", {"content": "1 + 1"})
        print(reply.data["tokens"])
    """

    def __init__(
        self, api_base: str, *, key: str | None = None, timeout: float = 120.0, attempts: int = 4, backoff: float = 0.5
    ):
        self.root = api_base.rstrip("/").removesuffix("/v1")
        self.attempts, self.backoff = attempts, backoff
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._client, _ = bounded_client(self.root, timeout, headers=headers)

    def post(self, path: str, body: Mapping[str, Any], *, text: bool = False) -> _Reply:
        """The answer to `body` at `path`, JSON unless it is a `text`; raises `CallFailed` when there is none that
        can be used.
        """
        return _Reply(*retried(lambda: self._once(path, body, text), attempts=self.attempts, backoff=self.backoff))

    def _once(self, path: str, body: Mapping[str, Any], text: bool) -> Any:
        url = self.root + path
        try:
            # A lone surrogate in a text is sent as the escape that JSON has for it.
            response = self._client.post(url, content=json.dumps(body).encode())
        except (httpx.RequestError, httpx.InvalidURL) as error:
            reason = redact(str(error) or type(error).__name__)
            raise _failed("again", f"{url}: no answer ({reason}); is the server up?") from None
        status, raw = response.status_code, response.content
        if not response.is_success:
            remedy = "; write the address that it leads to as api_base" if response.is_redirect else ""
            message = f"{url}: HTTP {status}: {_shown(raw)}{_REMEDIES.get(status, remedy)}"
            raise _failed(kind_of_status(status), message, retry_after(response.headers.get("Retry-After")))
        if text:
            return response.text
        try:
            data = parse_json(raw)
        except ValueError:
            message = f"{url}: HTTP 200, but the body is not JSON: {_shown(raw)}; is api_base this kind of server?"
            raise _failed("again", message) from None
        if isinstance(data, dict) and data.get("error"):
            inside = data["error"].get("code") if isinstance(data["error"], dict) else data.get("code")
            kind = kind_of_status(inside) if isinstance(inside, int) else "refused"
            raise _failed(kind, f"{url}: HTTP 200 with an error inside: {_shown(raw)}")
        return data


def _failed(kind: FailureKind, message: str, wait: float | None = None) -> CallFailed:
    return CallFailed(Failure(kind, message), wait=wait or 0.0)


def _shown(raw: bytes) -> str:
    """The first 200 characters of a body, without secrets."""
    text = redact(raw[:2000].decode("utf-8", "replace"))
    return repr(text if len(text) <= 200 else text[:200] + "...") if raw else "an empty body"


def retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date; None where there is neither.

    >>> retry_after("2"), retry_after("soon")
    (2.0, None)
    """
    try:
        return max(0.0, float(value or ""))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value or "").timestamp() - time.time())
    except ValueError:
        return None
