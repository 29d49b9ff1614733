"""No answer that was received is lost or bought twice, what may have been billed counts, and every reply has bounds."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import BudgetConfig, ModelConfig
from stepwise.errors import BackendError, DataError
from stepwise.models.base import Request
from stepwise.models.budget import Ledger
from stepwise.models.driver import Driver
from stepwise.models.http import CallFailed, Server
from stepwise.models.litellm import LiteLLMBackend
from stepwise.models.store import Answer, CallCache
from stepwise.models.wrappers import Wrappers
from stepwise.types import Problem, Usage
from tests.models.killed import NEEDED, killed_and_gone_on_with, slow
from tests.models.test_litellm import JSON, PROBLEM, behind, error, one, reply
from tests.scorers.stand_in import Answer as Reply
from tests.scorers.stand_in import in_turn, serving

PROBLEMS = [Problem(f"p{i}", f"What is {i} + {i}?") for i in range(12)]


def test_after_a_kill_every_received_answer_is_there_and_what_was_in_flight_counts_as_perhaps_billed(
    tmp_path: Path,
) -> None:
    with serving(slow) as server:
        end = killed_and_gone_on_with(tmp_path / "answers.jsonl", [f"{server.url}/v1"], [server])
    # The server's own log: what was bought again was in flight when the process died, and all of it is counted.
    assert end.lost <= end.open_requests <= 2 * 4  # four on the wire, and four answers on their way to the disk
    assert (end.perhaps.calls if end.perhaps else 0) == end.open_requests
    assert end.spent.calls == NEEDED


def test_samples_are_kept_one_by_one_and_a_hanging_one_keeps_no_other_in_memory(tmp_path: Path) -> None:
    release, path = threading.Event(), tmp_path / "answers.jsonl"

    def answers(_: str, body: dict[str, Any]) -> Reply:
        if body["seed"] == 2 * 1_000_003:
            release.wait(10)
        return reply("fine")

    with behind(answers, sequences=4) as (backend, _), CallCache(path) as store:
        model = Wrappers(Ledger(), store=store).model(backend, "weak")
        thread = threading.Thread(target=lambda: model.continue_solutions([Request(PROBLEM, n=4)]))
        thread.start()
        deadline = time.monotonic() + 10
        while len(store) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sum('"value"' in line for line in path.read_text().splitlines()) == 3
        release.set()
        thread.join()
        made = model.continue_solutions([Request(PROBLEM, n=4)])
        assert [sample.sample for sample in made] == [0, 1, 2, 3]
        assert store.misses["weak"] == 4


@pytest.mark.parametrize("damage", [b"\x00" * 40, b'{"key": 1', b"[" * 100_000, b'{"key": "a", "role": "weak"}'])
def test_one_garbled_line_costs_that_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    with CallCache(path) as store:
        store.add(Answer(f"k{i}", "weak", "p", Usage("m", 1, 5, 5, 7), {"i": i}) for i in range(9))
    lines = path.read_bytes().splitlines()
    lines[4] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.warns(UserWarning, match="lines 5 cannot be read"):
        store = CallCache(path)
    with store:
        assert [store.find(f"k{i}") is not None for i in range(9)] == [i != 4 for i in range(9)]
        assert store.spent()["weak"].calls == 8
    path.write_bytes(damage + b"\n")
    with pytest.raises(DataError, match="line 1"):
        CallCache(path)


BODY = reply("fine").body


def choice(**message: Any) -> dict[str, Any]:
    return {**BODY, "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}]}


@pytest.mark.parametrize(
    "body",
    [
        choice(content=None), choice(content=["a", "b"]), choice(content=7), choice(content={"text": "a"}), choice(),
        {**BODY, "choices": []}, {**BODY, "choices": None}, {**BODY, "choices": "none"}, {**BODY, "choices": [7]},
        {**BODY, "choices": [{"index": 0, "finish_reason": "stop"}]}, {**BODY, "choices": {}},
    ],
)  # fmt: skip
def test_usage_that_a_server_reports_counts_whatever_its_text_is(body: dict[str, Any]) -> None:
    ledger = Ledger()
    with behind(in_turn(Reply(body, 200, JSON))) as (backend, server):
        Wrappers(ledger).model(backend, "weak").continue_solutions([Request(PROBLEM)])
        assert ledger.usage("weak").generated_tokens == 7 * len(server.requests)


@pytest.mark.parametrize("counts", [(-1, 7), (30, -7), (30, 2**60)])
def test_counts_that_are_none_are_a_fault_of_the_server_and_cost_the_most(counts: tuple[int, int]) -> None:
    ledger = Ledger()
    with behind(in_turn(reply("fine", tokens=counts))) as (backend, _):
        (made,) = Wrappers(ledger).model(backend, "weak").continue_solutions([Request(PROBLEM, max_tokens=50)])
    assert made.failed is not None
    assert made.failed.kind == "refused"
    assert "no count of tokens" in made.error
    assert (ledger.usage("weak").calls, ledger.perhaps("weak").generated_tokens) == (1, 50)


def test_a_timeout_and_a_reset_are_perhaps_billed_and_count_for_the_caps() -> None:
    def hanging(path: str, body: dict[str, Any]) -> Reply:
        time.sleep(1.0)
        return reply("fine")

    ledger = Ledger(BudgetConfig(total_tokens=200))
    with behind(hanging, timeout=0.3) as (backend, server):
        model = Wrappers(ledger).model(backend, "weak")
        (made,) = model.continue_solutions([Request(PROBLEM, max_tokens=50)])
        assert made.failed is not None
        assert made.failed.kind == "again"
        assert ledger.perhaps("weak").calls == len(server.requests) == 3
        assert ledger.remaining()["total_tokens"] == 50
        assert "perhaps billed" in ledger.summary()


# ----- bounds


def raw(answer: Callable[[socket.socket], None]) -> str:
    """The address of a server that reads a request and answers by hand."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        with suppress(OSError):
            answer(connection)
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def sent(body: bytes, *headers: str) -> Callable[[socket.socket], None]:
    head = "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers])
    return lambda connection: connection.sendall(head.encode() + b"\r\n\r\n" + body)


def dripping(head: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(300):
            connection.sendall(b" ")
            time.sleep(0.05)

    return answer


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10000\r\n\r\n"
HOSTILE = {
    "drips its body": (dripping(WHOLE), "no whole reply within 0.5 s|imed out|imeout"),
    "drips its head": (dripping(b"HTTP/1.1 200 OK\r\nX: "), "no whole reply within 0.5 s|imed out|imeout"),
    "packs much into little": (
        sent(gzip.compress(b" " * 60_000_000, 1), "Content-Encoding: gzip"), "more than 33,554,432 bytes|onnection",
    ),
    "nests": (sent(b'{"a":' * 100_000), "not JSON|nested|onnection|error"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_reply_is_bounded_in_time_bytes_and_depth(kind: str) -> None:
    answer, said = HOSTILE[kind]
    url = raw(answer)
    began = time.monotonic()
    with pytest.raises(CallFailed, match=said):
        Server(url, timeout=5.0 if "packs" in kind else 0.5, attempts=1).post("/x", {})
    config = ModelConfig(
        model="openai/m", api_base=f"{url}/v1", continuation="prefill", timeout=5.0 if "packs" in kind else 0.5
    )
    with LiteLLMBackend(config, attempts=1) as backend:
        made = one(backend)
    assert made.finish == "error"
    assert time.monotonic() - began < 9.0
    assert len(json.dumps(made.error)) < 700


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("model", ["openai/m", "anthropic/m"])
def test_no_key_follows_a_redirect(status: int, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "not-a-real-one-at-all")
    with serving(in_turn(reply("stolen"))) as other:
        away = Reply({}, status, {"Location": f"{other.url}/v1/chat/completions", **JSON})
        with behind(in_turn(away), model=model, api_key_env="SOME_KEY") as (backend, server):
            made = one(backend)
            assert made.finish == "error"
            assert server.requests
        with pytest.raises(CallFailed), serving(in_turn(away)) as first:
            Server(first.url, key="not-a-real-one-at-all", attempts=1).post("/x", {})
        assert not other.requests


def test_a_server_that_answers_nothing_in_time_costs_its_own_requests_alone() -> None:
    def answers(_: str, body: dict[str, Any]) -> Reply:
        if "5 + 5" in json.dumps(body["messages"]):
            time.sleep(1.5)
        return reply("fine") if "7 + 7" not in json.dumps(body["messages"]) else error(400)

    with behind(answers, timeout=0.4, sequences=4) as (backend, _):
        model = Wrappers(Ledger()).model(backend, "weak")
        made = Driver(exact=False).run([model.generate(Request(problem)) for problem in PROBLEMS])
    assert [i for i, each in enumerate(made) if each.failed] == [5, 7]


def test_where_a_model_is_gone_what_else_was_sent_is_kept_before_the_run_stops(tmp_path: Path) -> None:
    stopped, sent, driver = threading.Event(), threading.Barrier(4), Driver(exact=False)

    def answers(_: str, body: dict[str, Any]) -> Reply:
        sent.wait(30)
        if "What is 0 + 0?" in json.dumps(body):
            return error(401, "no such key")
        stopped.wait(30)
        return reply("fine")

    path = tmp_path / "answers.jsonl"
    with behind(answers, sequences=4) as (backend, server), CallCache(path, replays_are_free=True) as store:
        model = Wrappers(Ledger(), store=store).model(backend, "weak")
        asked = [model.generate(Request(problem, max_tokens=50)) for problem in PROBLEMS]
        with ThreadPoolExecutor(1) as thread:
            run = thread.submit(driver.run, asked, window=4)
            while driver.stopped_by is None:
                time.sleep(0.01)
            stopped.set()
            with pytest.raises(BackendError, match="401"):
                run.result()
        assert len(server.requests) == 4
        assert (len(store), store.perhaps()["weak"].calls) == (3, 0)
