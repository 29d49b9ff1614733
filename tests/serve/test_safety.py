"""Who may ask, what a request may take, and what becomes of it when a client or a model goes away."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from stepwise.config import BudgetConfig, CapsConfig, Config
from stepwise.config.serving import KeyConfig
from stepwise.errors import ConfigError, keep_secret
from stepwise.models.budget import Ledger
from stepwise.routing.policies import Never
from stepwise.routing.router import StepRouter
from stepwise.types import Problem
from tests.fakes import ScriptedBackend
from tests.serve.conftest import Serve, World, ask, served

KEYS = {"alice": "alice-0123456789abcdef", "bob": "bob-0123456789abcdef"}


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def gauge(client: httpx.Client, name: str) -> int:
    return int(next(line for line in client.get("/metrics").text.splitlines() if line.startswith(f"stepwise:{name} "))
               .split()[1])  # fmt: skip


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_connection_that_asks_for_nothing_is_closed_and_one_that_asks_is_not(world: World) -> None:
    router = StepRouter(world.weak, world.strong, world.scorer, Never(), allow_lab=True)
    with served(router, Config.lab(), patience=0.3) as (server, client):
        host, port = server.url.removeprefix("http://").split(":")
        for begun in (b"", b"GET /healthz HTTP/1.1\r\nHost: local"):
            with socket.create_connection((host, int(port)), timeout=20) as idle:
                idle.sendall(begun)
                assert idle.recv(1000) == b""  # closed, without an answer
        assert client.get("/healthz").status_code == 200
        time.sleep(0.5)
        assert client.get("/healthz").status_code == 200  # on the same connection


def test_a_key_is_asked_for_wherever_something_can_be_had(serve: Serve) -> None:
    client = serve(secrets=KEYS)
    for given in ("x", "alice", KEYS["alice"][:-1], KEYS["alice"] + "x", "é"):
        headers = {"Authorization": f"Bearer {given}".encode()}
        for path in ("/v1/models", "/metrics"):
            assert error_of(client.get(path, headers=headers), 401)["code"] == "invalid_api_key"
        response = client.post("/v1/chat/completions", json={}, headers=headers)
        assert error_of(response, 401)["code"] == "invalid_api_key"
    assert ask(client, "q", key=KEYS["bob"]).status_code == 200
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/").status_code == 200


def test_beyond_loopback_a_key_must_be_named_and_be_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="lets others in"):
        Config.load(None, ["serve.host=0.0.0.0"])
    monkeypatch.setenv("A_KEY", "short")
    with pytest.raises(ConfigError, match="A_KEY must hold a key of 16"):
        KeyConfig(api_key_env="A_KEY").secret()
    with pytest.raises(ConfigError, match="not shown here"):
        Config.load(None, ["serve.api_keys.a.api_key_env=sk-abcdefgh12345678"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403), ({"Host": "evil.example:80@127.0.0.1"}, 403), ({"Host": ""}, 403),
        ({"Host": "["}, 403),
        ({"Host": "localhost:99"}, 200), ({"Host": "[::1]:99"}, 200), ({"Host": "router.lan"}, 200),
        ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
        ({"Host": "localhost:99", "Origin": "http://localhost:99"}, 200),
        ({"Host": "localhost:99", "Origin": "http://localhost:98"}, 403),
    ],
)  # fmt: skip
def test_a_web_page_of_others_cannot_ask(serve: Serve, headers: dict[str, str], status: int) -> None:
    client = serve('serve.hosts=["router.lan"]')
    for response in (client.get("/", headers=headers), client.get("/healthz", headers=headers)):
        assert response.status_code == status
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert client.options("/v1/chat/completions", headers=headers).status_code in (403, 405)


def test_a_body_that_is_too_large_or_no_json_is_refused(serve: Serve) -> None:
    client = serve("serve.max_body=2000")
    url = "/v1/chat/completions"
    error_of(ask(client, "x" * 3000), 413)
    error_of(client.post(url, content=(b"x" * 1500 for _ in range(2))), 413)  # without a length
    for body in (b"", b"{", b"\xff", b"[" * 1900, b"1" * 1900, b"null", b"[]"):
        error_of(client.post(url, content=body), 400)
    error_of(ask(client, "q", n=9), 400)
    error_of(ask(client, "q", max_tokens=99999), 400)
    assert ask(client, "q").status_code == 200


def test_more_than_may_wait_are_told_to_come_again(serve: Serve, world: World) -> None:
    client = serve("serve.max_open=2", "serve.max_waiting=1")
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, client, f"slow {i}") for i in range(3)]
        until(lambda: gauge(client, "num_requests_running") + gauge(client, "num_requests_waiting") == 3)
        response = ask(client, "one more")
        assert error_of(response, 429)["code"] == "rate_limit_exceeded"
        assert int(response.headers["retry-after"]) >= 1
        world.wait.set()
        assert [each.result().status_code for each in waiting] == [200] * 3
    assert ask(client, "one more").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_within_a_step(serve: Serve, world: World, stream: bool) -> None:
    client = serve("serve.max_open=1")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{client.base_url}/v1/chat/completions", timeout=0.3, json={
            "model": "router", "messages": [{"role": "user", "content": "slow"}], "stream": stream})  # fmt: skip
    world.wait.set()
    assert ask(client, "next").status_code == 200
    assert [request.step for request in world.weak.requests if "slow" in request.problem.question] == [0]


def test_a_client_that_leaves_in_the_middle_of_a_stream_is_written_no_further_step(serve: Serve, world: World) -> None:
    client = serve("serve.max_open=1")
    body = {"model": "router", "messages": [{"role": "user", "content": "later"}], "stream": True}
    with httpx.stream("POST", f"{client.base_url}/v1/chat/completions", json=body) as response:
        assert "weak begins later" in next(response.iter_text())
        until(lambda: len(world.scorer.batches) == 1)
    time.sleep(0.3)
    world.wait.set()
    assert ask(client, "next").status_code == 200
    assert max(request.step for request in world.weak.requests if request.problem.question == "later") == 1


def test_a_request_that_takes_too_long_is_refused_and_the_next_is_answered(serve: Serve, world: World) -> None:
    client = serve("serve.timeout=0.3")
    for stream in (False, True):
        assert "0.3" in error_of(ask(client, "slow", stream=stream), 504)["message"]
    world.wait.set()
    assert ask(client, "next").status_code == 200


def test_caps_hold_exactly_for_request_key_and_server(serve: Serve) -> None:
    ledger = Ledger(BudgetConfig(calls=14, problem=CapsConfig(calls=5)))
    ledgers = {"alice": ledger.under(CapsConfig(calls=8), "serve.api_keys.alice"), "bob": ledger}
    client = serve(ledger=ledger, ledgers=ledgers, secrets=KEYS)
    first = ask(client, "q", key=KEYS["alice"]).json()
    assert first["stepwise"]["usage"]["weak"]["calls"] == 3
    assert first["stepwise"]["usage"]["strong"]["calls"] == 1
    ask(client, "q2", key=KEYS["alice"])
    refused = error_of(ask(client, "q3", key=KEYS["alice"]), 429)
    assert refused["code"] == "insufficient_quota"
    assert "serve.api_keys.alice.calls" in refused["message"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ask(client, f"b{i}", key=KEYS["bob"]), range(8)))
    assert ledger.usage("weak").calls + ledger.usage("strong").calls == 14
    assert ledgers["alice"].usage("weak").calls + ledgers["alice"].usage("strong").calls == 8


def test_an_answer_that_a_cap_cut_says_so(serve: Serve) -> None:
    client = serve(ledger=Ledger(BudgetConfig(problem=CapsConfig(calls=2))))
    response = ask(client, "q", stepwise={"steps": True}).json()
    assert response["choices"][0]["finish_reason"] == "length"
    assert "budget.problem.calls" in response["stepwise"]["choices"][0]["note"]


@pytest.mark.parametrize("down", ["strong", "scorer"])
def test_without_a_model_weak_steps_stand_and_are_marked_or_the_request_fails(
    serve: Serve, world: World, down: str
) -> None:
    getattr(world, down).broken = True
    keeps, fails = serve(), serve("serve.on_failure=fail")
    response = ask(keeps, "q", stepwise={"steps": True}).json()
    end = response["stepwise"]["choices"][0]
    assert {step["author"] for step in end["steps"]} == {"weak"}
    assert end["down"][0].startswith(f"the {'strong model' if down == 'strong' else 'scorer'} is down")
    assert any("is down" in step["decision"] for step in end["steps"])
    error_of(ask(fails, "q"), 502)
    assert ask(fails, "q", stream=True).text.count('"error"') == 1
    getattr(world, down).broken = False
    assert ask(fails, "q").json()["stepwise"]["choices"][0]["down"] == []


def test_without_the_weak_model_a_request_fails_and_the_next_one_tries_again(serve: Serve, world: World) -> None:
    client = serve()
    world.weak.broken = True
    error_of(ask(client, "q"), 502)
    world.weak.broken = False
    assert ask(client, "q").status_code == 200


def test_a_server_that_stops_ends_open_answers_after_their_step(world: World) -> None:
    router = StepRouter(world.weak, world.strong, world.scorer, Never(), allow_lab=True)
    with served(router, Config.lab()) as (server, client), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, "slow q")
        until(lambda: gauge(client, "num_requests_running") == 1)
        server.stop()
        until(lambda: _refuses(client))
        world.wait.set()
        response = asked.result().json()
    assert response["choices"][0]["message"]["content"] == "weak begins slow q"
    assert response["choices"][0]["finish_reason"] == "length"
    assert "stopping" in response["stepwise"]["choices"][0]["note"]


def test_a_step_that_hangs_does_not_keep_a_server_from_its_end(world: World) -> None:
    router = StepRouter(world.weak, world.strong, world.scorer, Never(), allow_lab=True)
    with served(router, Config.lab(), grace=0.2) as (server, client), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, "slow q")
        until(lambda: gauge(client, "num_requests_running") == 1)
        server.stop()
        assert "stopping" in error_of(asked.result(), 504)["message"]
        world.wait.set()


def _refuses(client: httpx.Client) -> bool:
    try:
        return ask(client, "q").status_code == 503
    except httpx.TransportError:
        return True


def test_no_secret_and_no_text_of_a_client_is_logged_or_told(
    serve: Serve, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value-123")
    caplog.set_level(logging.DEBUG)

    def fail(problem: Problem, *_: Any) -> str:
        raise ValueError(f"{problem.question}: very-secret-value-123")

    world.weak = ScriptedBackend(fail)
    client = serve(secrets=KEYS)
    response = ask(client, "my private question", key=KEYS["alice"])
    assert response.status_code == 500
    assert "ValueError" in caplog.text
    ours = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("stepwise", "uvicorn"))
    )
    for text in (ours, response.text):
        assert "private question" not in text
        assert KEYS["alice"] not in text
        assert "very-secret-value" not in text


def test_a_key_that_a_model_repeats_reaches_no_client(
    serve: Serve, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = 'zq7-"Hunter2"+plain/words=99'
    monkeypatch.setenv("UPSTREAM", value)
    keep_secret("UPSTREAM")
    world.weak = ScriptedBackend(lambda *_: f"I was asked with {value}, or {value[3:-4]}.\n\n\\boxed{{4}}")
    client = serve()
    whole = ask(client, "What is 2 + 2?").json()["choices"][0]["message"]["content"]
    assert whole.startswith("I was asked with [secret], or [secret].")
    text = ask(client, "What is 2 + 2?", stream=True).text
    assert "[secret]" in text
    for piece in (value[i : i + 8] for i in range(len(value) - 7)):
        assert json.dumps(piece)[1:-1] not in text


def test_nothing_of_a_client_is_kept(serve: Serve, world: World) -> None:
    client = serve()
    first, second = (ask(client, "q", seed=1, stepwise={"steps": True}).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert len(world.weak.requests) == 6  # the second was made anew
