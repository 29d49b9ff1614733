"""Whatever a client sends, it gets an answer or an error in OpenAI's form; the server goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwise.config import Config
from stepwise.routing.policies import Never
from stepwise.routing.router import StepRouter
from tests.serve.conftest import World, served

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.text(st.characters(), max_size=30) | st.sampled_from(
    ["", "\x00", "</s>", "<|im_end|>", "\\boxed{", "a" * 400]
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": TEXT | JSON},
    optional={"name": JSON},
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2) | JSON, "top_p": st.floats(0.1, 1) | JSON, "seed": st.integers(0, 9) | JSON,
    "stop": st.lists(TEXT, max_size=5) | JSON, "max_tokens": st.integers(1, 9) | JSON, "n": st.integers(1, 3) | JSON,
    "stream": st.booleans(), "stream_options": JSON, "stepwise": JSON, "tools": JSON, "logit_bias": JSON,
}  # fmt: skip
BODY = st.fixed_dictionaries(
    {"model": st.sampled_from(["router", "router-always", "router-random-0.5"]) | TEXT,
     "messages": st.lists(MESSAGE, min_size=1, max_size=3) | JSON},
    optional=FIELDS,
)  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    world = World()
    world.wait.set()
    router = StepRouter(world.weak, world.strong, world.scorer, Never(), allow_lab=True)
    with served(router, Config.lab()) as (_, client):
        yield client


def check(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    elif response.headers["content-type"].startswith("text/event-stream"):
        lines = [line for line in response.text.split("\n\n") if line]
        assert lines.pop() == "data: [DONE]"
        assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines)
    else:
        assert response.json()["choices"]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(BODY)
def test_any_request_is_answered_or_refused(client: httpx.Client, body: Any) -> None:
    response = client.post("/v1/chat/completions", content=json.dumps(body).encode())
    check(response)
    assert client.get("/healthz").status_code == 200  # whatever was asked, the server goes on


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/chat/completions", content=body)
    check(response)
    assert response.status_code != 200


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.from_regex(r"[A-Za-z-]{1,12}", fullmatch=True),
                       st.from_regex(r"[!-~]([ -~]{0,40}[!-~])?", fullmatch=True), max_size=4))  # fmt: skip
def test_any_header_is_taken_or_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    left = ("content-length", "transfer-encoding", "connection", "upgrade", "expect")
    given = {name: value for name, value in headers.items() if name.lower() not in left}
    assert client.get("/v1/models", headers=given).status_code in (200, 400, 403)
    host = next(iter(headers.values()), "x")
    assert client.get("/healthz", headers={"Host": host}).status_code in (200, 400, 403)
