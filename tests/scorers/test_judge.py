"""The judge: what it asks, which answers count, one repair, and who pays."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import ScorerConfig
from stepwise.errors import BackendError, ScorerError
from stepwise.models.scorers import JudgeScorer, LabelTokenScorer, load_scorer
from stepwise.models.scorers.judge import Ask, Message, api_completion, parse
from stepwise.models.scorers.layouts import QUESTION, question_about
from stepwise.types import Problem, Usage
from tests.scorers.stand_in import Answer, in_turn, serving

P = Problem("p", "How many?", "4")
SPENT = Usage("m", 1, 10, 10, 2, cost=0.5)


class Script:
    """Answers from a list, one per call; the last for ever."""

    def __init__(self, *answers: str | Exception):
        self.answers, self.chats = list(answers), list[list[Message]]()
        self.lock = threading.Lock()

    def __call__(self, chat: list[Message]) -> tuple[str, Usage]:
        with self.lock:
            self.chats.append(chat)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer, SPENT


def judge(script: Script, ask: Ask = "probability") -> JudgeScorer:
    return JudgeScorer(script, "m", ask=ask, requests=1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.85", 0.85), ("0", 0.0), ("1", 1.0), ("1.00", 1.0), (".5", 0.5), (" 0.7\n", 0.7), ("0.7.", 0.7),
        ("85%", 0.85), ("100 %", 1.0), ('{"p": 0.25}', 0.25), ("probability: 0.3", 0.3), ("p=0.3", 0.3),
        ("<think>0.1 or so? no</think>\n0.9", 0.9),
        ("", None), ("yes", None), ("1.5", None), ("-0.5", None), ("nan", None), ("0.5 or 0.6", None),
        ("I would say 0.9 because", None), ("120%", None), ("<think>0.5", None), ("0,5", None),
    ],
)  # fmt: skip
def test_a_probability_is_one_number_and_nothing_else(text: str, value: float | None) -> None:
    assert parse(text, "probability") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", 1.0), ("No.", 0.0), ('"YES"', 1.0), ("<think>no</think> yes", 1.0), ("yes and no", None), ("0.9", None)],
)
def test_a_verdict_is_one_word(text: str, value: float | None) -> None:
    assert parse(text, "verdict") == value


def test_each_step_is_asked_about_with_the_problem_and_the_steps_before() -> None:
    script = Script("0.9", "0.2", "0.4")
    assert judge(script).score(P, ["First.", "Second.", "Third."]) == [0.9, 0.2, 0.4]
    asked = script.chats[1][-1]["content"]
    assert P.question in asked
    assert "Step 1: First." in asked
    assert "Second." in asked
    assert "Third." not in asked
    assert question_about("{steps}", "Q", ["a", "b"], "yes?")[-1]["content"] == "Step 1: a\n\nStep 2: b yes?"


@pytest.mark.parametrize("ask", ["probability", "verdict"])
def test_no_prompt_holds_a_number_that_a_small_model_could_copy(ask: Ask) -> None:
    script = Script("1" if ask == "probability" else "yes")
    judge(script, ask).score("Sum?", ["Add."])
    text = "".join(message["content"] for message in script.chats[0])
    assert "0." not in text
    assert "%" not in text


def test_known_steps_are_not_asked_about_again() -> None:
    script = Script("0.9", "0.2", "0.4")
    made = judge(script)
    made.score(P, ["a", "b"])
    assert made.score(P, ["a", "b", "c"]) == [0.9, 0.2, 0.4]
    assert len(script.chats) == 3
    assert made.usage == Usage(made.name, 3, 30, 30, 6, cost=1.5)


def test_an_answer_that_cannot_be_read_is_asked_for_once_more_and_counted() -> None:
    script = Script("I think it is fine", "0.75")
    (scored,) = judge(script).score_detailed([(P, ["a"])])
    assert scored.scores == [0.75]
    assert (scored.usage.calls, scored.usage.retries, scored.usage.prompt_tokens) == (2, 1, 20)
    assert [m["role"] for m in script.chats[1]] == ["system", "user", "assistant", "user"]


def test_two_unreadable_answers_are_an_error_with_the_raw_text() -> None:
    script = Script("0.9", "hm", "who knows")
    made = judge(script)
    with pytest.raises(ScorerError, match=r"scorer 'judge m', problem 'p', step 1: .*asked twice.*'who knows'"):
        made.score(P, ["a", "b"])
    assert len(script.chats) == 3
    assert made.usage.retries == 1


def test_a_model_that_fails_fails_its_item_only() -> None:
    made = judge(Script(BackendError("the API is down"), "0.5"))
    bad, fine = made.score_detailed([(P, ["a"]), (Problem("q", "Another?"), ["a"])])
    assert "step 0: the API is down" in bad.error
    assert bad.failed is not None
    assert bad.failed.kind == "gone"
    assert (fine.scores, fine.error) == ([0.5], "")


def test_threads_share_one_judge() -> None:
    made = JudgeScorer(Script("0.5"), "m", requests=3)
    threads = [
        threading.Thread(target=lambda k=k: made.score_batch([(P, [f"{k}", f"{j}"]) for j in range(5)]))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.usage.calls == 40
    made.close()
    made.close()


@pytest.fixture
def local(tiny_gguf_path: Path) -> dict[str, Any]:
    pytest.importorskip("llama_cpp")
    return {"kind": "judge", "model": f"llamacpp/{tiny_gguf_path}", "context": 512, "sequences": 2}


def test_on_the_engine_p_of_yes_is_read_from_the_logits(local: dict[str, Any]) -> None:
    made = load_scorer(ScorerConfig(**local, good="a", bad="b"))
    assert isinstance(made, LabelTokenScorer)
    steps = ["First.", "Second."]
    scores = made.score(P, steps)
    engine = made.engine
    for number, score in enumerate(scores, start=1):
        form = 'Answer with one word: "a" if it is correct, "b" if it is not.'
        ids = engine.chat_ids(question_about(QUESTION, P.question, steps[:number], form), enable_thinking=False)
        assert made.layout.readings(P.question, steps, number - 1)[0] == (ids, [len(ids) - 1])
        labels = [engine.token_id("a"), engine.token_id("b")]
        ((good, bad),) = engine.score([ids], [[len(ids) - 1]], labels)[0].logits.tolist()
        assert score == pytest.approx(1 / (1 + math.exp(bad - good)), abs=0.01)  # a batch of another shape rounds so
    assert (made.usage.calls, made.usage.generated_tokens) == (2, 0)
    made.close()
    sure = load_scorer(ScorerConfig(**local, good="a", bad="b", ask="verdict"))
    assert sure.score(P, steps) == [float(score >= 0.5) for score in scores]
    assert sure.identity != made.identity
    sure.close()


def test_a_solution_too_long_for_the_engine_is_an_error(local: dict[str, Any]) -> None:
    made = load_scorer(ScorerConfig(**local, good="a", bad="b"))
    with pytest.raises(ScorerError, match=r"problem 'p': the prompt has \d+ tokens, more than the context of 512"):
        made.score(P, ["word " * 900])
    made.close()  # type: ignore[attr-defined]


def chat_answer(text: str) -> Answer:
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    counted = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    return Answer({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [message],
                   "usage": counted})  # fmt: skip


def api(url: str, monkeypatch: pytest.MonkeyPatch) -> ScorerConfig:
    monkeypatch.setenv("JUDGE_KEY", "sk-secretsecret99")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return ScorerConfig(kind="judge", model="openai/m", api_base=url + "/v1", api_key_env="JUDGE_KEY", sequences=2)


def test_a_model_behind_an_api_is_asked_through_litellm(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(in_turn(chat_answer("0.25"))) as stand_in:
        made = load_scorer(api(stand_in.url, monkeypatch))
        assert made.score(P, ["a"]) == [0.25]
        path, body, headers = stand_in.requests[0]
        assert path == "/v1/chat/completions"
        assert body["temperature"] == 0
        assert headers["Authorization"] == "Bearer sk-secretsecret99"
        assert made.usage == Usage(made.name, 1, 11, 11, 3)
        assert made.parameters is None


def test_errors_that_may_pass_are_tried_again_and_counted_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, wrong = Answer({"error": {"message": "overloaded"}}, 500), Answer({"error": {"message": "no model"}}, 404)
    with serving(in_turn(bad, bad, chat_answer("0.5"))) as stand_in:
        complete = api_completion(api(stand_in.url, monkeypatch), attempts=3, backoff=0.0)
        text, usage = complete([{"role": "user", "content": "?"}])
        assert (text, usage.retries, len(stand_in.requests)) == ("0.5", 2, 3)
    for answer, requests in ((bad, 3), (wrong, 1)):
        with serving(in_turn(answer)) as stand_in:
            complete = api_completion(api(stand_in.url, monkeypatch), attempts=3, backoff=0.0)
            with pytest.raises(BackendError, match="openai/m at http") as failed:
                complete([{"role": "user", "content": "?"}])
            assert len(stand_in.requests) == requests
            assert "sk-secret" not in str(failed.value)
            (scored,) = JudgeScorer(complete, "m").score_detailed([(P, ["a"])])
            assert scored.usage.retries == requests - 1
