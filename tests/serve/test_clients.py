"""The official `openai` client, LiteLLM and DSPy ask the router: its server, and in this process by one string."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import stepwise as sw
from stepwise.serve.doors import close_routers

litellm = pytest.importorskip("litellm")
QUESTION = sw.lab.generate("test", 4)[3].problem.question
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
ASKED: Any = {"messages": MESSAGES, "seed": 1}


@pytest.fixture
def base(lab: httpx.Client) -> dict[str, Any]:
    return {"base_url": f"{lab.base_url}/v1", "api_key": "-", "max_retries": 0}


@pytest.fixture
def expected(lab: httpx.Client) -> str:
    response = lab.post("/v1/chat/completions", json={"model": "router", **ASKED})
    return str(response.json()["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def router_toml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A configuration of the lab's, and its name for LiteLLM."""
    path: Path = tmp_path_factory.mktemp("router") / "router.toml"
    path.write_text("seed = 1\n")
    yield f"stepwise/{path}"
    close_routers()


def test_the_official_client_asks_and_lists(base: dict[str, Any], expected: str) -> None:
    with openai.OpenAI(**base) as client:
        assert "router-always" in [model.id for model in client.models.list()]
        reply = client.chat.completions.create(model="router", **ASKED, extra_body={"stepwise": {"steps": True}})
        assert reply.choices[0].message.content == expected
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage is not None
        assert reply.usage.completion_tokens > 0
        assert reply.stepwise["choices"][0]["steps"][0]["author"] == "weak"  # type: ignore[attr-defined]


def test_the_official_client_streams(base: dict[str, Any], expected: str) -> None:
    with openai.OpenAI(**base) as client:
        chunks = list(client.chat.completions.create(
            model="router", **ASKED, stream=True, stream_options={"include_usage": True}
        ))  # fmt: skip
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
        assert chunks[-1].usage is not None
        with client.chat.completions.stream(model="router", **ASKED) as stream:
            assert stream.get_final_completion().choices[0].message.content == expected


def test_the_official_async_client_asks_and_streams(base: dict[str, Any], expected: str) -> None:
    async def both() -> tuple[Any, str]:
        async with openai.AsyncOpenAI(**base) as client:
            reply = await client.chat.completions.create(model="router", **ASKED)
            stream = await client.chat.completions.create(model="router", **ASKED, stream=True)
            return reply, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    reply, text = asyncio.run(both())
    assert reply.choices[0].message.content == text == expected


def test_errors_have_the_classes_of_the_official_client(base: dict[str, Any]) -> None:
    with openai.OpenAI(**base) as client:
        with pytest.raises(openai.BadRequestError, match="response_format"):
            client.chat.completions.create(model="router", messages=MESSAGES, response_format={"type": "json_object"})
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            client.chat.completions.create(model="gpt-9", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="router", messages=[{"role": "user", "content": "word " * 3000}])
        assert caught.value.code == "context_length_exceeded"


def test_litellm_and_dspy_ask_the_server(base: dict[str, Any], expected: str) -> None:
    import dspy

    where = {"api_base": base["base_url"], "api_key": "-"}
    assert litellm.completion("openai/router", **ASKED, **where).choices[0].message.content == expected
    lm = dspy.LM("openai/router", **where, cache=False)
    assert lm(QUESTION, seed=1) == [expected]


def test_one_string_asks_the_same_router_in_this_process(router_toml: str, expected: str) -> None:
    sw.register_litellm()
    reply = litellm.completion(model=router_toml, **ASKED)
    assert reply.choices[0].message.content == expected
    assert reply.usage.completion_tokens > 0
    assert reply.stepwise["policy"] == "Threshold 0.50"
    chunks = list(litellm.completion(model=router_toml, **ASKED, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"

    async def both() -> tuple[str, str]:
        whole = await litellm.acompletion(model=router_toml, **ASKED)
        stream = await litellm.acompletion(model=router_toml, **ASKED, stream=True)
        return whole.choices[0].message.content, "".join([c.choices[0].delta.content or "" async for c in stream])

    assert asyncio.run(both()) == (expected, expected)


def test_errors_by_one_string_are_litellms(router_toml: str) -> None:
    sw.register_litellm()
    for model, fields, error in (
        (f"{router_toml}/router-none", {}, litellm.NotFoundError),
        ("stepwise/other", {}, litellm.BadRequestError),
        ("stepwise/missing.toml", {}, litellm.BadRequestError),
        (f"{router_toml}/router@000000000000", {}, litellm.BadRequestError),
        (router_toml, {"logprobs": True}, litellm.BadRequestError),
        (router_toml, {"messages": [{"role": "user", "content": "word " * 3000}]},
         litellm.ContextWindowExceededError),
    ):  # fmt: skip
        with pytest.raises(error):
            litellm.completion(model=model, **{**ASKED, **fields})


def test_a_dspy_lm_by_one_string_is_the_router(router_toml: str, expected: str) -> None:
    import dspy

    lm = sw.lm(router_toml, cache=False)
    with dspy.context(lm=lm):
        assert dspy.settings.lm(QUESTION, seed=1) == [expected]
    assert sw.lm(f"{router_toml}/router-always").model != lm.model  # caches tell policies apart
    with pytest.raises(sw.ConfigError, match="names no router"):
        sw.lm("stepwise/router.json")
