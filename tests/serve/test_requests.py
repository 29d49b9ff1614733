"""What a request may say: each parameter is honoured, changes no answer, or is a 400 that names it."""

from __future__ import annotations

from typing import Any

import pytest

from stepwise.serve.requests import NEUTRAL, NO_EFFECT, ApiError, ChatRequest

ASKED = [{"role": "user", "content": "1 + 1?"}]


def read(**fields: Any) -> ChatRequest:
    return ChatRequest.read({"model": "router", "messages": ASKED, **fields})


def refusal(**fields: Any) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert caught.value.status == 400
    error: dict[str, Any] = caught.value.body["error"]
    assert error["type"] == "invalid_request_error"
    return error


def test_what_is_honoured_is_read() -> None:
    request = read(temperature=0.2, top_p=0.9, seed=3, stop="END", max_completion_tokens=9, n=2, stream=True,
                   stream_options={"include_usage": True})  # fmt: skip
    assert (request.temperature, request.top_p, request.seed, request.stop) == (0.2, 0.9, 3, ["END"])
    assert (request.max_tokens, request.n, request.stream_options.include_usage) == (9, 2, True)


@pytest.mark.parametrize("name", sorted(NO_EFFECT))
def test_what_changes_no_answer_is_taken(name: str) -> None:
    assert read(**{name: "anything"}) == read()


@pytest.mark.parametrize(("name", "value"), NEUTRAL.items())
def test_what_would_change_the_answer_is_taken_only_where_it_does_not(name: str, value: Any) -> None:
    assert read(**{name: value}) == read(**{name: None}) == read()
    assert refusal(**{name: {"type": "json_object"}})["param"] == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"top_k": 4}, "top_k"),
        ({"anything": 1}, "anything"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": "x" * 257}, "stop.0"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stepwise": {"policy": "file.json"}}, "stepwise.policy"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
         "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "It is"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_no_value_of_a_client_stands_in_an_error() -> None:
    assert "hunter2" not in str(refusal(temperature="hunter2", api_key="hunter2"))


def test_system_text_and_earlier_turns_stand_in_the_question() -> None:
    parts = [{"type": "text", "text": "And "}, {"type": "text", "text": "2 + 2?"}]
    begun = [{"role": "developer", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "2"}]
    assert (
        read(messages=[*begun, {"role": "user", "content": parts}]).question
        == "System: Be brief.\n\nUser: 1 + 1?\n\nAssistant: 2\n\nUser: And 2 + 2?"
    )
    assert read().question == "1 + 1?"
