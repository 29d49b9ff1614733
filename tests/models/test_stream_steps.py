"""Steps of a solution as they are written, over server-sent events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stepwise.models.base import Request
from tests.models.test_litellm import PREFIX, PROBLEM, behind, error
from tests.scorers.stand_in import Answer, in_turn

pytest.importorskip("litellm")


def events(*pieces: str, ended: str | None = "stop", usage: bool = True, after: bytes = b"data: [DONE]\n\n") -> Answer:
    def chunk(**fields: Any) -> bytes:
        body = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}
        return b"data: " + json.dumps(body).encode() + b"\n\n"

    def choice(text: str, reason: str | None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}]

    raw = b"".join(chunk(choices=choice(piece, None)) for piece in pieces)
    if ended:
        raw += chunk(choices=choice("", ended))
    if usage:
        raw += chunk(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 21, "total_tokens": 30})
    return Answer(raw + after, 200, {"Content-Type": "text/event-stream"})


def stream(answer: Answer, **settings: Any) -> list[Any]:
    with behind(in_turn(answer)) as (backend, server):
        made = list(backend.stream_steps(Request(PROBLEM, PREFIX, stop="solution", **settings)))
        assert server.requests[0][1]["stream"] is True
        assert "stop" not in server.requests[0][1]
        assert sum(one.usage.generated_tokens for one in made) == backend.usage.generated_tokens
    return made


def test_each_step_comes_when_it_is_complete_and_the_last_carries_the_cost() -> None:
    made = stream(events("First st", "ep.", "\n", "\nSecond.\n\nThi", "rd: \\boxed{4}."))
    assert [(one.text, one.finish) for one in made] == [
        ("First step.", "step"),
        ("Second.", "step"),
        ("Third: \\boxed{4}.", "answer"),
    ]
    assert [one.usage.generated_tokens for one in made] == [0, 0, 21]
    assert made[2].usage.prompt_tokens == 9


def test_nothing_is_read_after_the_answer() -> None:
    made = stream(events("So \\boxed{4}.\n", "And so on.\n\n", "And on."))
    assert [(one.text, one.finish) for one in made] == [("So \\boxed{4}.", "answer")]
    assert made[0].usage.generated_tokens > 0  # at least the bytes that came, where the server has not said


def test_thoughts_are_not_steps_and_code_is_not_cut() -> None:
    made = stream(events("<thi", "nk>\n\nHm.\n\n", "</think>", "\n\n```\na\n\nb\n```\n\nEnd"))
    assert [one.text for one in made] == ["```\na\n\nb\n```", "End"]
    assert made[-1].finish == "eos"
    assert [one.text for one in stream(events("<", "b> is bold."))] == ["<b> is bold."]


def test_a_stream_that_is_cut_by_length_or_breaks_says_so() -> None:
    assert stream(events("Half a st", ended="length"))[-1].finish == "length"
    inside = b'data: {"error": {"message": "overloaded", "code": 500}}\n\n'
    made = stream(events("One.\n\n", "Tw", ended=None, usage=False, after=inside))
    assert [one.finish for one in made] == ["step", "error"]
    assert "overloaded" in made[1].error
    with behind(in_turn(error(500, "down"))) as (backend, server):
        made = list(backend.stream_steps(Request(PROBLEM)))
        assert [one.finish for one in made] == ["error"]
        assert len(server.requests) == 3


def test_a_caller_who_stops_early_still_sees_the_cost_in_the_sum() -> None:
    with behind(in_turn(events("One.\n\n", "Two.\n\n", "Three."))) as (backend, _):
        steps = backend.stream_steps(Request(PROBLEM))
        assert next(steps).text == "One."
        steps.close()  # type: ignore[attr-defined]
        assert backend.usage.generated_tokens > 0
