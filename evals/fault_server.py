"""A model behind an OpenAI-compatible API on loopback that goes wrong on purpose, and keeps its own books."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

TOKENS = 7
"""Generated tokens of every reply, and what it is billed."""
HANG = 3.0
"""Seconds that a hanging or dripping reply takes; longer than the client's timeout."""


class Fault(NamedTuple):
    """What a faulty reply is; `billed`: the model has written a reply all the same."""

    status: int = 200
    billed: bool = True
    sent: str = "whole"  # "whole", "cut", "nothing", "late" or "dripping"
    change: dict[str, Any] | None = None  # keys of the body that are replaced
    raw: bytes | None = None  # the whole body


FAULTS = {
    "none": Fault(),
    "429": Fault(429, False),
    "500": Fault(500, False),
    "503": Fault(503, False),
    "connection reset before the reply": Fault(billed=True, sent="nothing"),
    "reply cut in the middle": Fault(sent="cut"),
    "hangs": Fault(sent="late"),
    "drips a byte now and then": Fault(sent="dripping"),
    "not JSON": Fault(raw=b"<html>gateway</html>"),
    "no choices": Fault(change={"choices": []}),
    "text of a wrong type": Fault(change={"choices": [{"index": 0, "message": {"role": "assistant", "content": 7}}]}),
    "negative counts": Fault(change={"usage": {"prompt_tokens": -3, "completion_tokens": -7, "total_tokens": -10}}),
    "40 MB for 128 tokens": Fault(raw=b"x" * 40_000_000),
    "nested 100,000 deep": Fault(raw=b"[" * 100_000),
    "redirect to another host": Fault(307, False),
}
"""Every fault by its name."""


class FaultServer:
    """Answers every `every`-th request with `fault` and the others as they should be, each after `delay` seconds.

    `log` counts "requests", "injected" faults, replies "answered" whole and well, and replies "billed".

    Example:
        >>> with FaultServer("429", every=2) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(self, fault: str, *, every: int = 5, delay: float = 0.0) -> None:
        self.log: Counter[str] = Counter()
        lock, kind, books = threading.Lock(), FAULTS[fault], self.log

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    faulty = fault != "none" and books["requests"] % every == 0
                    books["requests"] += 1
                    books["injected"] += faulty
                    books["billed"] += not faulty or kind.billed
                time.sleep(delay)
                sent = self._send(kind if faulty else FAULTS["none"])
                with lock:
                    books["answered"] += sent and not faulty

            def _send(self, what: Fault) -> bool:
                """Whether all of it could be handed over."""
                raw = what.raw or json.dumps(_body() | (what.change or {})).encode()
                self.close_connection = True
                if what.sent == "nothing":
                    return False
                try:
                    if what.sent == "late":
                        time.sleep(HANG)
                    self.send_response(what.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(raw)))
                    if what.status == 307:
                        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                    self.end_headers()
                    if what.sent == "dripping":
                        for _ in range(int(HANG / 0.1)):
                            self.wfile.write(b" ")
                            time.sleep(0.1)
                    self.wfile.write(raw[: len(raw) // 2] if what.sent == "cut" else raw)
                    self.wfile.flush()
                except OSError:  # the client has gone
                    return False
                return True

            def log_message(self, format: str, *args: object) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _body() -> dict[str, Any]:
    message = {"role": "assistant", "content": "It is \\boxed{4}."}
    usage = {"prompt_tokens": 30, "completion_tokens": TOKENS, "total_tokens": 30 + TOKENS}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
