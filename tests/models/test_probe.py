"""What a model behind an API is found to do by a few calls, on a stand-in that continues messages in each way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepwise import BackendError, Step, StepRouter, Usage
from stepwise.config import ModelConfig
from stepwise.models.base import Request
from stepwise.models.litellm import LiteLLMBackend
from stepwise.routing import Always
from tests.models.test_litellm import JSON, PROBLEM, behind, error, one, reply
from tests.scorers.stand_in import Answer, in_turn

pytest.importorskip("litellm")


def continuing(way: str) -> Callable[[str, dict[str, Any]], Answer]:
    """A model that counts, on a server that continues messages in one of the ways."""
    spoken = "one two three four five six seven eight nine ten"

    def answers(path: str, body: dict[str, Any]) -> Answer:
        if path.endswith("/apply-template"):
            if way != "served template":
                return error(404)
            return Answer({"prompt": "".join(m["content"] for m in body["messages"]) + "|"}, 200, JSON)
        if path.endswith("/completions") and "prompt" in body:
            begun = body["prompt"].partition("|")[2]
            made = reply(None)
            made.body["choices"] = [{"index": 0, "text": spoken.removeprefix(begun), "finish_reason": "stop"}]
            return made if way == "served template" else error(404)
        last = body["messages"][-1]
        continues = {
            "continue_final_message": body.get("continue_final_message"),
            "plain": "continue_final_message" not in body,
            "prefix": last.get("prefix"),
        }.get(way)
        if way == "plain" and "continue_final_message" in body:
            return error(400, "unknown field")
        if way in ("repeated", "begun anew") and last["role"] == "assistant":  # the second costs what it did at first
            return reply(spoken, tokens=(30, 5 if way == "repeated" else 10))
        if last["role"] == "assistant" and continues:
            return reply(spoken.removeprefix(last["content"]))
        return reply(spoken if last["role"] == "user" else f"You wrote: {last['content']}", tokens=(30, 10))

    return answers


@pytest.mark.parametrize(
    ("way", "model", "expected"),
    [
        ("continue_final_message", "openai/m", ("prefill", {}, True)),
        ("plain", "openai/m", ("prefill", {}, False)),
        ("prefix", "mistral/m", ("prefill", {"prefix": True}, False)),
        ("repeated", "openai/m", ("prefill", {}, True)),
        ("begun anew", "openai/m", ("prompt", None, False)),
        ("served template", "openai/m", ("raw", None, False)),
        ("none", "openai/m", ("prompt", None, False)),
    ],
)
def test_the_probe_believes_only_a_continuation_of_the_models_own_words(
    way: str,
    model: str,
    expected: tuple[str, Any, bool],
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "not-a-real-one")
    with behind(continuing(way), continuation="probe", model=model, api_key_env="SOME_API_KEY") as (backend, _):
        found = backend.findings
        assert found.continuation == expected[0]
        assert (found.prefill.message if found.prefill else None) == expected[1]
        assert bool(found.prefill and found.prefill.body) == expected[2]
        assert backend.capabilities.prefill == (expected[0] != "prompt")
        assert backend.usage.calls > 3
    warned = any("does not continue a message of its own" in str(warning.message) for warning in recwarn)
    assert warned is (expected[0] == "prompt")


def test_what_a_server_repeats_before_it_goes_on_is_no_part_of_the_step() -> None:
    probing, said = continuing("repeated"), ["one two\n\nthree four.", "one two.", "three four."]

    def answers(path: str, body: dict[str, Any]) -> Answer:
        return probing(path, body) if "numbers" in body["messages"][0]["content"] else reply(said.pop(0))

    prefix = (Step("one two", "weak"),)
    with behind(answers, continuation="probe") as (backend, _):
        assert one(backend, prefix=prefix).text == "three four."
        assert one(backend, prefix=()).text == "one two."  # nothing to repeat
        strange = one(backend, prefix=prefix)
    assert (strange.text, strange.usage.generated_tokens) == ("", 7)
    assert "does not repeat what it continues" in strange.error


def test_what_the_probe_costs_is_bounded_before_it_and_told_once() -> None:
    with behind(in_turn(reply("one two three four five six")), continuation="probe") as (backend, server):
        most = backend.probe_bound
        spent = backend.prepare()
        assert 0 < spent.calls <= most.calls
        assert spent.calls == backend.usage.calls
        assert (backend.prepare(), backend.probe_bound) == (Usage(), Usage())
    with behind(in_turn(reply("x"))) as (backend, server):
        assert (backend.probe_bound, backend.prepare()) == (Usage(), Usage())
        assert not server.requests


def test_the_probe_of_an_api_is_on_the_bill_of_the_run() -> None:
    with behind(in_turn(reply("So \\boxed{4}.")), continuation="probe") as (backend, _):
        router = StepRouter(backend, backend, policy=Always())
        (trace,) = router.solve_all([PROBLEM], progress=False)
        assert router.ledger.usage().calls == backend.usage.calls > trace.steps[0].usage.calls
        assert router.ledger.usage().generated_tokens == backend.usage.generated_tokens


def test_the_probe_asks_a_nonce_and_finds_schema_and_logprobs() -> None:
    asked = set()

    def answers(path: str, body: dict[str, Any]) -> Answer:
        asked.add(body["messages"][0]["content"])
        if "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]
            return reply(json.dumps({"word": schema["properties"]["word"]["enum"][0]}))
        scores = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
        return reply("a", **({"logprobs": scores} if body.get("logprobs") else {}))

    for _ in range(2):
        with behind(answers, continuation="probe") as (backend, _):
            assert backend.capabilities.grammar
            assert backend.capabilities.logprobs
            assert one(backend).logprobs == (-0.5,)
    questions = [text for text in asked if text != PROBLEM.question]
    assert len(questions) == 2
    assert all(len(re.findall(r"\d\d", text)) == 6 for text in questions)


def test_a_server_that_refuses_additions_gets_requests_without_them() -> None:
    def strict(path: str, body: dict[str, Any]) -> Answer:
        known = {"model", "messages", "max_tokens", "temperature", "seed", "stop", "n", "logprobs", "top_logprobs",
                 "response_format"}  # fmt: skip
        return reply("Fine then.") if set(body) <= known else error(400, f"unknown: {set(body) - known}")

    with behind(strict, continuation="probe") as (backend, _):
        assert one(backend).text == "Fine then."


def test_a_model_that_does_not_answer_at_all_is_an_error_of_the_whole_call() -> None:
    refused = "AuthenticationError 401: bad key; check model, api_base"
    server = behind(in_turn(error(401, "bad key")), continuation="probe")
    with server as (backend, _), pytest.raises(BackendError, match=refused):
        backend.continue_solutions([Request(PROBLEM)])
    config = ModelConfig(model="openai/m", api_base="http://127.0.0.1:9/v1", timeout=2)
    with LiteLLMBackend(config, attempts=1) as backend, pytest.raises(BackendError, match=r"127\.0\.0\.1:9"):
        backend.continue_solutions([Request(PROBLEM)])


def test_a_router_mixes_a_local_weak_model_with_a_strong_one_behind_an_api(tiny_gguf_path: Path) -> None:
    solved = in_turn(reply("First."), reply("So \\boxed{4}."))
    with behind(solved, price_in=1.0, price_out=2.0) as (strong, server):
        router = StepRouter(weak=f"llamacpp/{tiny_gguf_path}", strong=strong, policy=Always())
        (trace,) = router.solve_all([PROBLEM])
        assert trace.answer == "4"
        assert [step.author for step in trace.steps] == ["strong", "strong"]
        assert trace.steps[0].usage.model == strong.name
        assert trace.steps[0].usage.cost == (30 + 2 * 7) / 1e6
        assert server.requests[1][1]["messages"][-1]["content"] == "First.\n\n"
