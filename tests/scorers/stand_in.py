"""A server on loopback whose answers are a function: it stands in for vLLM, llama.cpp's servers and APIs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """`body` is sent as it is where it is bytes, as JSON otherwise; `cut` promises more bytes than come."""

    body: Any
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012
    cut: bool = False


Answers = Callable[[str, dict[str, Any]], Answer]


class StandIn:
    """`url` of the server, and every (path, body, headers) that it was sent."""

    def __init__(self, answers: Answers):
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stand_in._lock:
                    stand_in.requests.append((self.path, body, dict(self.headers)))
                    stand_in.in_flight += 1
                    stand_in.most_in_flight = max(stand_in.most_in_flight, stand_in.in_flight)
                try:
                    answer = answers(self.path, body)
                finally:
                    with stand_in._lock:
                        stand_in.in_flight -= 1
                raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(raw) + 100 * answer.cut))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(answers: Answers) -> Iterator[StandIn]:
    server = StandIn(answers)
    try:
        yield server
    finally:
        server.close()


def in_turn(*answers: Answer) -> Answers:
    """The given answers one after another, the last one for ever."""
    left = list(answers)
    lock = threading.Lock()

    def answer(path: str, body: dict[str, Any]) -> Answer:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer
