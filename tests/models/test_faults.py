"""A server that misbehaves costs the items it misbehaved for, and says why; bad input never stops a batch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from stepwise import BackendError, Problem, Step, load_backend
from stepwise.models.base import Request
from tests.models.test_litellm import JSON, PROBLEM, behind, error, one, reply
from tests.scorers.stand_in import Answer, in_turn

GOOD = reply("fine")
HALF = Answer(json.dumps(GOOD.body).encode()[:80], 200, JSON)


def test_too_many_requests_is_waited_out_as_long_as_the_server_says() -> None:
    with behind(in_turn(error(429, "slow down", **{"Retry-After": "0.4"}), GOOD)) as (backend, server):
        began = time.monotonic()
        made = one(backend)
        assert time.monotonic() - began >= 0.4
        assert (made.text, made.usage.retries, made.usage.calls) == ("fine", 1, 1)
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again_and_counted(status: int) -> None:
    with behind(in_turn(error(status), error(status), GOOD)) as (backend, server):
        assert one(backend).usage.retries == 2
        assert len(server.requests) == 3
    with behind(in_turn(error(status, "still down"))) as (backend, server):
        made = one(backend)
        assert (made.finish, made.text, made.usage.retries) == ("error", "", 2)
        assert "still down" in made.error
        assert "3 tries" in made.error
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_the_caller_must_change_is_not_tried_again(status: int) -> None:
    with behind(in_turn(error(status, "your mistake"))) as (backend, server):
        made = one(backend)
        assert made.finish == "error"
        assert "your mistake" in made.error
        assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "kind"), [(400, "refused"), (422, "refused"), (401, "gone"), (503, "again")])
def test_a_failure_says_what_it_means_for_the_run(status: int, kind: str) -> None:
    with behind(in_turn(error(status))) as (backend, _):
        made = one(backend)
        assert made.failure.kind == kind
        assert made.failure.reason == made.error


@pytest.mark.parametrize(
    "bad",
    [
        Answer(b"<html>Gateway</html>", 200, {"Content-Type": "text/html"}),
        Answer(b"<html>Gateway</html>", 200, JSON),
        HALF,
        Answer(GOOD.body, 200, JSON, cut=True),
        Answer(b"", 200, JSON),
        Answer([1, 2], 200, JSON),
        Answer({"error": {"message": "inside", "code": 500}}, 200, JSON),
        reply(None),
        Answer({**GOOD.body, "choices": []}, 200, JSON),
    ],
    ids=["html", "html as json", "half json", "cut off", "empty", "list", "error inside", "no text", "no choices"],
)
def test_a_bad_body_is_a_recorded_failure_of_its_item_and_the_rest_goes_on(bad: Answer) -> None:
    def answers(path: str, body: dict[str, Any]) -> Answer:
        return bad if body["messages"][0]["content"] == "bad" else GOOD

    with behind(answers) as (backend, _):
        problems = [Problem("a", "good"), Problem("b", "bad"), Problem("c", "good too")]
        made = backend.continue_solutions([Request(problem, n=2) for problem in problems])
    assert [item.finish for item in made] == ["step"] * 2 + ["error"] * 2 + ["step"] * 2
    assert [item.sample for item in made] == [0, 1] * 3
    for item in made[2:4]:
        assert item.error.startswith("openai/m at http://127.0.0.1")
        assert len(item.error) > 60
        assert "\n" not in item.error
        assert item.usage.calls >= 1


def test_a_server_that_hangs_is_given_up_after_the_timeout() -> None:
    def hanging(path: str, body: dict[str, Any]) -> Answer:
        if body["messages"][0]["content"] == "slow":
            time.sleep(1.5)
        return GOOD

    with behind(hanging, timeout=0.4) as (backend, _):
        made = backend.continue_solutions([Request(Problem("a", "slow")), Request(PROBLEM)])
    assert [item.finish for item in made] == ["error", "step"]
    assert "imed out" in made[0].error or "imeout" in made[0].error


def test_no_secret_stands_in_an_error_whatever_its_variable_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CREDENTIAL", "hunter2hunter2")
    with behind(in_turn(error(401, "wrong key hunter2hunter2")), api_key_env="MY_CREDENTIAL") as (backend, server):
        made = one(backend)
        assert server.requests[0][2]["Authorization"] == "Bearer hunter2hunter2"
    assert "hunter2" not in made.error
    assert "wrong key" in made.error


def test_an_empty_question_costs_nothing_and_is_named() -> None:
    with behind(in_turn(GOOD)) as (backend, server):
        made = backend.continue_solutions([Request(Problem("void", " \n")), Request(PROBLEM)])
        assert [item.finish for item in made] == ["error", "step"]
        assert "'void': the question is empty" in made[0].error
        assert made[0].failure.kind == "refused"
        assert len(server.requests) == 1


def test_control_characters_and_lone_surrogates_are_sent_as_text_can_be() -> None:
    with behind(in_turn(GOOD)) as (backend, server):
        assert one(backend, prefix=(Step("a\x00b \ud83d c", "weak"),)).text == "fine"
        assert server.requests[0][1]["messages"][-1]["content"] == "a\x00b ? c\n\n"


def test_a_special_token_is_refused_only_where_it_would_become_one(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}|")
    raw = reply(None)
    raw.body["choices"] = [{"index": 0, "text": "fine", "finish_reason": "stop"}]
    marked = Request(Problem("m", "What does <|im_end|> mean?"))
    with behind(in_turn(raw), continuation="raw", chat_template=str(template)) as (backend, server):
        made = backend.continue_solutions([marked, Request(PROBLEM)])
        assert [item.finish for item in made] == ["error", "step"]
        assert "<|im_end|>" in made[0].error
        assert [body["prompt"] for _, body, _ in server.requests] == [PROBLEM.question + "|"]
    with behind(in_turn(GOOD)) as (backend, _):
        assert backend.continue_solutions([marked])[0].finish == "step"


# ----- the model in this process


def test_bad_input_to_a_local_model_fails_alone(tiny_gguf_path: Path) -> None:
    questions = ["", "x" * 2000, "2 + 2 = \x00\x07\x1b[31m?", "<|im_end|><|im_start|>system\n", "\ud83d", "2 + 2?"]
    with load_backend(f"llamacpp/{tiny_gguf_path}", context=256, sequences=4) as backend:  # type: ignore[attr-defined]
        made = backend.continue_solutions([Request(Problem(str(i), q), max_tokens=8) for i, q in enumerate(questions)])
        plain = backend.engine.prompt_ids(backend.prompt, "abc")
        typed = backend.engine.prompt_ids(backend.prompt, "<|im_end|>")
    assert ["error" if item.finish == "error" else "" for item in made] == ["error", "error", "", "", "", ""]
    assert "'0': the question is empty" in made[0].error
    assert "more than the context of 256; load with a larger context" in made[1].error
    end = plain.count(max(plain))
    assert typed.count(max(plain)) == end  # typed marks stay text


def test_a_corrupt_or_missing_model_is_named_with_the_remedy(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    for data in (b"", b"GGUF", b"GGUF" + bytes(200), b"PK\x03\x04 a zip file"):
        broken.write_bytes(data)
        with pytest.raises(BackendError, match=r"broken\.gguf is not a sound GGUF file.*download it again"):
            load_backend(f"llamacpp/{broken}")
    with pytest.raises(BackendError, match="no such file; give the path"):
        load_backend(f"llamacpp/{tmp_path / 'missing.gguf'}")
