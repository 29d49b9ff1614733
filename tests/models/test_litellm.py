"""Models behind an API, with a server on loopback in their place: continuation, stopping, usage, retries, faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stepwise import Problem, SolvePrompt, Step, Usage
from stepwise.config import ModelConfig
from stepwise.models import dialects
from stepwise.models.base import Request
from stepwise.models.litellm import LiteLLMBackend
from tests.scorers.stand_in import Answer, StandIn, in_turn, serving

pytest.importorskip("litellm")
PROBLEM = Problem("p", "What is 2 + 2?")
PREFIX = (Step("First, 2 + 1 = 3.", "weak"), Step("Then 3 + 1 = 4.", "weak"))
JSON = {"Content-Type": "application/json"}


def reply(text: str | None, *, ended: str = "stop", tokens: tuple[int, int] = (30, 7), **extra: Any) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ended, **extra}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return Answer(body, 200, JSON)


def error(status: int, message: str = "no", **headers: str) -> Answer:
    return Answer({"error": {"message": message}}, status, {**JSON, **headers})


@contextmanager
def behind(
    answers: Callable[[str, dict[str, Any]], Answer], *, prompt: SolvePrompt | None = None, **settings: Any
) -> Iterator[tuple[LiteLLMBackend, StandIn]]:
    """A backend in front of a stand-in; no probe unless it is asked for."""
    with serving(answers) as server:
        fields = {"model": "openai/m", "api_base": f"{server.url}/v1", "continuation": "prefill", **settings}
        with LiteLLMBackend(ModelConfig(**fields), prompt, attempts=3, backoff=0.01) as backend:
            yield backend, server


def one(backend: LiteLLMBackend, **settings: Any) -> Any:
    (made,) = backend.continue_solutions([Request(PROBLEM, **({"prefix": PREFIX} | settings))])
    return made


# ----- what is sent


def test_a_prefix_goes_as_the_assistants_last_message_with_a_blank_line_after_each_step() -> None:
    with behind(in_turn(reply("So \\boxed{4}."))) as (backend, server):
        made = one(backend, max_tokens=50, temperature=0.3, top_k=5, seed=9)
        assert (made.text, made.finish) == ("So \\boxed{4}.", "answer")
        path, body, _ = server.requests[0]
    assert path == "/v1/chat/completions"
    assert body["messages"][-1] == {"role": "assistant", "content": "First, 2 + 1 = 3.\n\nThen 3 + 1 = 4.\n\n"}
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (body["max_tokens"], body["temperature"], body["seed"], body["stop"]) == (50, 0.3, 9, ["\n\n"])
    assert (body["top_k"], body["top_p"], body["min_p"], body["repeat_penalty"]) == (5, 1.0, 0.0, 1.0)


def test_where_nothing_continues_a_message_the_next_step_is_asked_for_in_words() -> None:
    with behind(in_turn(reply("4 it is.")), continuation="prompt") as (backend, server):
        assert one(backend).text == "4 it is."
        one(backend, stop="solution")
        one(backend, prefix=())
        asked = [body["messages"] for _, body, _ in server.requests]
    assert [message["role"] for message in asked[0]] == ["user", "assistant", "user"]
    assert asked[0][1]["content"] == "First, 2 + 1 = 3.\n\nThen 3 + 1 = 4."
    assert "next step only" in asked[0][2]["content"]
    assert "rest" in asked[1][2]["content"]
    assert asked[2] == [{"role": "user", "content": PROBLEM.question}]


def test_an_adapter_of_a_llama_server_switches_its_prompt_cache_off() -> None:
    with behind(in_turn(reply("a")), adapter="1") as (backend, server):
        one(backend)
        body = server.requests[0][1]
        assert body["lora"] == [{"id": 1, "scale": 1.0}]
        assert body["cache_prompt"] is False
        assert backend.name.endswith("+1")
    with pytest.raises(ValueError, match="llama-server"):
        LiteLLMBackend(ModelConfig(model="openai/m", api_base="http://localhost:1/v1", adapter="a.gguf"))


def test_the_ways_of_apis_that_are_hosted_elsewhere() -> None:
    def how(model: str) -> dialects.Dialect:
        return dialects.dialect(model, None, None, SolvePrompt())

    (anthropic,) = how("anthropic/x").prefills
    sent = dialects.chat(SolvePrompt(), "q", "a step.\n\n", anthropic, whole=False)
    assert sent[-1] == {"role": "assistant", "content": "a step."}
    assert not how("anthropic/x").blank_stop
    assert how("openai/x").prefills == ()
    (mistral,) = how("mistral/x").prefills
    assert dialects.chat(SolvePrompt(), "q", "a", mistral, whole=False)[-1]["prefix"] is True


# ----- what comes back


@pytest.mark.parametrize(
    ("text", "ended", "expected"),
    [
        ("One step.", "stop", ("One step.", "step")),
        ("One step.\n\nAnother, which a server without stop strings sends.", "stop", ("One step.", "step")),
        ("The end: \\boxed{4}.", "stop", ("The end: \\boxed{4}.", "answer")),
        ("The end: \\boxed{4}.\nAnd then some", "length", ("The end: \\boxed{4}.", "answer")),
        ("cut in the mid", "length", ("cut in the mid", "length")),
        ("ab " * 60, "length", (("ab " * 60), "repeat")),
        ("", "stop", ("", "eos")),
        ("<think>\n\n</think>\n\nA step.", "stop", ("A step.", "step")),
        ("reasoning\n\nthat began before</think>\n\nA step.", "stop", ("A step.", "step")),
        ("<think>never closed", "length", ("", "length")),
        ("\n\nA step after a blank line.", "stop", ("A step after a blank line.", "step")),
    ],
)
def test_what_counts_of_a_reply_and_how_it_ended(text: str, ended: str, expected: tuple[str, str]) -> None:
    with behind(in_turn(reply(text, ended=ended))) as (backend, server):
        made = one(backend)
        assert (made.text, made.finish) == expected
        assert len(server.requests) == 1


def test_a_server_that_names_its_stop_string_tells_a_step_from_the_end() -> None:
    with behind(in_turn(reply("Done.", stop_reason=None), reply("A step.", stop_reason="\n\n"))) as (backend, _):
        assert one(backend).finish == "eos"
        assert one(backend).finish == "step"


@pytest.mark.parametrize(
    "first",
    [
        reply("<think>\nLet me see", stop_reason="\n\n"),
        reply("```python\nx = 1", stop_reason="\n\n"),
        reply("", stop_reason="\n\n"),
    ],
)
def test_a_reply_that_the_stop_string_cut_too_early_is_asked_for_once_more_and_both_are_paid(first: Answer) -> None:
    whole = "<think>\nLet me see\n\nso.</think>\n\n```python\nx = 1\n\ny = 2\n```\n\nMore."
    with behind(in_turn(first, reply(whole))) as (backend, server):
        made = one(backend)
        assert made.text == "```python\nx = 1\n\ny = 2\n```"
        assert (made.usage.calls, made.usage.generated_tokens) == (2, 14)
        assert "stop" not in server.requests[1][1]


def test_a_second_call_that_fails_leaves_the_first_on_the_bill() -> None:
    with behind(in_turn(reply("", stop_reason="\n\n"), error(400))) as (backend, _):
        made = one(backend)
        assert (made.finish, made.usage.calls, made.usage.generated_tokens) == ("error", backend.calls_per_sample, 7)
        assert backend.usage.generated_tokens == 7


def test_usage_is_what_the_server_says_and_costs_what_the_configuration_says() -> None:
    cached = reply("a")
    cached.body["usage"]["prompt_tokens_details"] = {"cached_tokens": 20}
    with behind(in_turn(cached), price_in=2.0, price_out=10.0) as (backend, _):
        usage = one(backend).usage
        assert usage == Usage(backend.name, 1, 30, 10, 7, 0, (2 * 30 + 10 * 7) / 1e6)
        assert backend.usage == usage
    with behind(in_turn(cached)) as (backend, _):
        assert one(backend).usage.cost is None  # a price that nobody knows is not 0
    silent = reply("four")
    del silent.body["usage"]
    with behind(in_turn(silent)) as (backend, _):
        assert one(backend).usage.generated_tokens == 4  # one for each byte: never too few


def test_samples_come_from_one_call_where_the_server_gives_several_and_from_more_where_not() -> None:
    def answers(path: str, body: dict[str, Any]) -> Answer:
        made = reply("same", tokens=(10, 4 * body.get("n", 1)))
        made.body["choices"] = [{**made.body["choices"][0], "index": i} for i in range(min(body.get("n", 1), 3))]
        made.body["usage"]["completion_tokens"] = 4 * len(made.body["choices"])
        return made

    with behind(answers, continuation="probe") as (backend, server):
        assert backend.findings.several
        before = len(server.requests)
        made = backend.continue_solutions([Request(PROBLEM, n=5)])
        assert [one.sample for one in made] == [0, 1, 2, 3, 4]
        assert [body.get("n", 1) for _, body, _ in server.requests[before:]] == [5, 2]
        assert [one.usage.prompt_tokens for one in made] == [10, 0, 0, 10, 0]
        assert sum(one.usage.generated_tokens for one in made) == 20
    with behind(in_turn(reply("same"))) as (backend, server):
        backend.continue_solutions([Request(PROBLEM, n=3, seed=5)])
        assert len({body["seed"] for _, body, _ in server.requests}) == 3


def test_never_more_requests_are_in_flight_than_the_configuration_allows() -> None:
    def slow(path: str, body: dict[str, Any]) -> Answer:
        time.sleep(0.05)
        return reply("a")

    with behind(slow, sequences=3) as (backend, server):
        made = backend.continue_solutions([Request(PROBLEM)] * 12)
        assert [one.request for one in made] == list(range(12))
        assert 1 < server.most_in_flight <= 3
