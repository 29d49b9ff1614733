"""The service behind HTTP, as OpenAI's clients know it, and a page to try it out; needs the extra `stepwise[serve]`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any

from stepwise.config.serving import LOOPBACK, ServeConfig
from stepwise.errors import MissingDependencyError, redact
from stepwise.serve.requests import ApiError, place_of
from stepwise.serve.service import Service

try:
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
except ImportError as missing:
    raise MissingDependencyError(
        f'serving needs {missing.name}, which is not installed; pip install "stepwise[serve]"'
    ) from None


class _Json(JSONResponse):
    """JSON without secrets: a model behind an API may repeat the key that it was asked with."""

    def render(self, content: Any) -> bytes:
        return redact(super().render(content).decode(), shapes=False, as_json=True).encode()


_log = logging.getLogger(__package__)
_BODY_SECONDS = 30.0  # for a client to send its request
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def make_app(service: Service, secrets: Mapping[str, str] | None = None) -> FastAPI:
    """The application of `service`; `secrets` are the keys that clients may send, by name (without any, all may ask).

    Example:
        uvicorn.run(make_app(service, {"alice": os.environ["ALICE_KEY"]}))
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    settings, metrics, keys = service.settings, service.metrics, dict(secrets or {})
    page = files("stepwise.serve").joinpath("page.html").read_text(encoding="utf-8")

    def guarded(
        handler: Callable[[Request, str], Awaitable[Response]], *, key: bool = True
    ) -> Callable[[Request], Awaitable[Response]]:
        """A handler behind the checks; whatever it raises becomes an error in OpenAI's form, without secrets."""

        async def handle(request: Request) -> Response:
            try:
                _check_origin(request.headers, settings)
                response = await handler(request, _key_of(request.headers, keys) if key else "")
            except ApiError as error:
                response = _refusal(error)
            except Exception as error:
                _log.error("a request failed: %s", place_of(error))
                response = _refusal(ApiError(500, "the server failed; its log says more", kind="server_error"))
            metrics.responded(response.status_code)
            response.headers.update(_HEADERS)
            return response

        return handle

    async def completions(request: Request, key: str) -> Response:
        body, name = await _body(request, settings.max_body), request.headers.get("x-request-id", "")
        if isinstance(body, dict) and body.get("stream") is True:
            chunks = service.stream(body, key, name)
            try:
                first = await _unless_gone(request, anext(chunks))
            except StopAsyncIteration:
                raise ApiError(503, "there is no answer", kind="server_error") from None
            return StreamingResponse(_events(first, chunks), media_type="text/event-stream")
        return _Json(await _unless_gone(request, service.chat(body, key, name)))

    async def models(request: Request, key: str) -> Response:
        rows = [
            {"id": name, "object": "model", "created": 0, "owned_by": "stepwise",
             "stepwise": {"policy": served.label, "calibrated": served.calibrated, "note": served.note}}
            for name, served in service.policies
        ]  # fmt: skip
        return _Json({"object": "list", "data": rows})

    async def health(request: Request, key: str) -> Response:
        state = "stopping" if service.stopping else "ok"
        return _Json({"status": state}, 503 if service.stopping else 200)

    async def counts(request: Request, key: str) -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    async def shown(request: Request, key: str) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _policy_of(page)})

    app.add_api_route("/v1/chat/completions", guarded(completions), methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", guarded(models), response_model=None)
    app.add_api_route("/metrics", guarded(counts), response_model=None)
    app.add_api_route("/healthz", guarded(health, key=False), response_model=None)
    app.add_api_route("/", guarded(shown, key=False), response_model=None)
    return app


def _refusal(error: ApiError) -> Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return _Json(error.body, error.status, headers)


def _check_origin(headers: Mapping[str, str], settings: ServeConfig) -> None:
    """Refuse what a web page of others may have sent: a name that this server does not go by (DNS rebinding), or an
    origin that is not its own. No CORS header is ever sent.
    """
    host = headers.get("host", "")
    match = re.fullmatch(r"(?:\[([\da-f:]+)\]|([\w.-]+))(?::\d+)?", host.lower(), re.ASCII)
    name = (match[1] or match[2]) if match else ""
    known = {*LOOPBACK, *settings.hosts}
    if name not in known and (settings.host in LOOPBACK or settings.hosts):
        raise ApiError(403, "this server does not go by that name; put it into serve.hosts", kind="permission_error")
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise ApiError(403, "requests from other web pages are refused", kind="permission_error")


def _key_of(headers: Mapping[str, str], keys: Mapping[str, str]) -> str:
    """The name of the key that came with a request, "" where none is needed; all are compared, in constant time."""
    given = headers.get("authorization", "").removeprefix("Bearer ").encode("utf-8", "replace")
    found = [name for name, key in keys.items() if hmac.compare_digest(given, key.encode())]
    if keys and not found:
        raise ApiError(401, "no such API key; send it as `Authorization: Bearer KEY`", code="invalid_api_key")
    return found[0] if found else ""


async def _body(request: Request, most: int) -> Any:
    """The JSON of a request; raises `ApiError` for one that is too large, too slow or no JSON."""
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise ApiError(413, f"the request has more than {most} bytes (serve.max_body)")
    except TimeoutError:
        raise ApiError(408, "the request did not come to its end in time") from None
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON") from None


async def _unless_gone(request: Request, answer: Any) -> Any:
    """The result of `answer`, which is cancelled as soon as the client leaves."""
    work, gone = asyncio.ensure_future(answer), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client left")
        return work.result()
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})


async def _events(first: Any, chunks: AsyncIterator[Any]) -> AsyncIterator[str]:
    """Server-sent events; an error after the first is one, too."""
    try:
        yield _event(first)
        async for chunk in chunks:
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.body)
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]


def _event(value: Any) -> str:
    text = redact(json.dumps(value, separators=(",", ":")), shapes=False, as_json=True)
    return f"data: {text}\n\n"


def _policy_of(page: str) -> str:
    """What a browser may load for the page: its own script, and answers of this server."""
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (f"default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
            "frame-ancestors 'none'; base-uri 'none'; form-action 'none'")  # fmt: skip
