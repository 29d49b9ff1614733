"""A server from its first request to its last: on one driver's loop, stopped by a signal or by its owner."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from stepwise.config import Config
from stepwise.errors import ConfigError, MissingDependencyError, StepwiseError
from stepwise.models.budget import Ledger
from stepwise.models.driver import Driver
from stepwise.models.replicas import SharedCaps
from stepwise.models.store import CallCache
from stepwise.routing.router import StepRouter
from stepwise.serve.app import make_app
from stepwise.serve.service import Service

try:
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol
except ImportError:
    raise MissingDependencyError(
        'serving needs uvicorn, which is not installed; pip install "stepwise[serve]"'
    ) from None


_log = logging.getLogger(__package__)


def _protocol(patience: float) -> type[asyncio.Protocol]:
    """uvicorn's, without connections that send no whole head of a request within `patience` seconds: each costs a
    descriptor, and uvicorn waits for the first one for ever.
    """

    class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.loop.call_later(patience, self._give_up)

        def _give_up(self) -> None:
            if self.cycle is None:  # the first request
                self.transport.close()

    return Impatient


def _tls_of(config: Config) -> dict[str, Any]:
    """Uvicorn's settings for [serve] certificate; raises ConfigError for files that are none."""
    certificate, key = config.serve.certificate, config.serve.certificate_key
    if certificate is None:
        return {}
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"serve.certificate = {certificate!r} with serve.certificate_key = {key!r}: {error}; give a certificate in "
            "PEM form, and the private key that belongs to it"
        ) from None
    return {"ssl_certfile": certificate, **({"ssl_keyfile": key} if key else {})}


class RunningServer:
    """`config.serve` as a server: `run` serves until `stop`, which any thread and a signal's handler may call.

    Engines keep their own threads, so that requests join the running batch at the next token and HTTP is never held up
    by a decode. `grace`: seconds for the steps that are open when it stops; `patience`: for a client to begin.
    `shared`: caps that it has in common with other replicas; `store` keeps answers.

    Example:
        with Service.router(config) as router:
            RunningServer(router, config, Ledger.for_config(config)).run()
    """

    def __init__(
        self, router: StepRouter, config: Config, ledger: Ledger, ledgers: Mapping[str, Ledger] | None = None,
        secrets: Mapping[str, str] | None = None, grace: float = 30.0, patience: float = 30.0,
        store: CallCache | None = None, shared: SharedCaps | None = None,
    ) -> None:  # fmt: skip
        self._given, self._secrets, self._grace = (router, config, ledger, ledgers, store), secrets, grace
        self._patience, self._shared = patience, shared
        self._tls = _tls_of(config)
        family = socket.AF_INET6 if ":" in config.serve.host else socket.AF_INET
        self._socket = socket.create_server((config.serve.host, config.serve.port), family=family, backlog=1024)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where it listens, from the beginning."""
        host, port = self._socket.getsockname()[:2]
        return f"http{'s' if self._tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`; `ready` is called once requests are taken."""
        try:
            Driver(exact=False).run([self._serve(ready)])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Refuse what is new, let open steps end, and have `run` return."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        service = Service(*self._given)
        server = uvicorn.Server(uvicorn.Config(
            make_app(service, self._secrets), log_config=None, access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=5, http=_protocol(self._patience), **self._tls,
        ))  # fmt: skip
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        stopping = asyncio.create_task(self._stop.wait())
        poking = asyncio.create_task(self._poke())
        self._loop.call_soon(ready)
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await service.stop(self._grace)
        server.should_exit = True
        await serving
        poking.cancel()

    async def _poke(self) -> None:
        said = ""
        while self._shared is not None:
            await asyncio.sleep(0.2)
            try:
                self._shared.poke()
            except (StepwiseError, OSError) as error:  # those who wait would wait for ever
                if str(error) != said:
                    said = str(error)
                    _log.error("what other replicas have spent cannot be read: %s", said)
