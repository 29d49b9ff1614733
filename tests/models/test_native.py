"""`sw.lm(..., engine="native")`: DSPy asks the engine itself, and gets what it gets through LiteLLM."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import stepwise as sw
from stepwise.critics.formats import adapter
from stepwise.errors import ConfigError
from stepwise.models.shared import close_engines

dspy = pytest.importorskip("dspy")
EXACT = {"context": 2048, "sequences": 8, "kv_type": "f32", "flash_attention": False, "cache": False}
QUESTION = "Mia has 12 apples and buys 5 more. How many apples does Mia have now?"


@pytest.fixture(autouse=True)
def _shared_engines_are_closed() -> Iterator[None]:
    yield
    close_engines()


@pytest.fixture
def doors(tiny_gguf_path: Path) -> list[Any]:
    """The same model through DSPy's engine and through LiteLLM."""
    doors: list[Any] = ["native", "litellm"]
    return [sw.lm(f"llamacpp/{tiny_gguf_path}", engine=door, temperature=0.0, max_tokens=12, **EXACT) for door in doors]


class Judge(dspy.Signature):
    """Which step is the first wrong one?"""

    question: str = dspy.InputField()
    first_error: Literal[0, 1, 2, 3] = dspy.OutputField()
    checks: list[bool] = dspy.OutputField()
    note: str = dspy.OutputField()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0, "seed": 5, "top_p": 0.9, "top_k": 20},
        {"temperature": 1.0, "seed": 6, "stop": ["e", "a"]},
        {"temperature": 1.0, "seed": 7, "response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ["yes", "no"]}}}},
    ],
)
def test_both_doors_give_the_same_texts_and_usage(doors: list[Any], options: dict[str, Any]) -> None:
    native, litellm = doors
    assert native(QUESTION, **options) == litellm(QUESTION, **options)
    kept = ("prompt_tokens", "completion_tokens")
    used = [{key: lm.history[-1]["usage"][key] for key in kept} for lm in doors]
    assert used[0] == used[1]
    assert asyncio.run(native.acall(QUESTION, **options)) == native(QUESTION, **options)


def test_logprobs_are_those_that_litellm_gets(doors: list[Any]) -> None:
    native, other = [lm(QUESTION, logprobs=True, top_logprobs=2)[0] for lm in doors]
    assert native["text"] == other["text"]
    theirs = other["logprobs"].content
    assert [entry["token"] for entry in native["logprobs"]["content"]] == [entry.token for entry in theirs]
    assert [e["logprob"] for e in native["logprobs"]["content"]] == pytest.approx([e.logprob for e in theirs], abs=1e-4)
    tops = [[top["token"] for top in entry["top_logprobs"]] for entry in native["logprobs"]["content"]]
    assert tops == [[top.token for top in entry.top_logprobs] for entry in theirs]
    assert len(tops[0]) == 2


def test_a_last_message_of_the_assistant_is_continued_and_the_system_message_read(doors: list[Any]) -> None:
    messages = [{"role": "system", "content": "Count."}, {"role": "user", "content": QUESTION}]
    begun = [*messages, {"role": "assistant", "content": "Mia starts with 12"}]
    texts = [[lm(messages=given) for given in (messages, begun)] for lm in doors]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


@pytest.mark.parametrize("form", ["compact", "chat", "json"])
def test_a_random_model_is_held_to_every_format(tiny_gguf_path: Path, form: Any) -> None:
    lm = sw.lm(f"llamacpp/{tiny_gguf_path}", engine="native", temperature=1.0, max_tokens=900, **EXACT)
    with dspy.context(lm=lm, adapter=adapter(form)):
        for seed in range(4):
            answer = dspy.Predict(Judge)(question="2 + 2 = 5?", config={"seed": seed})
            assert answer.first_error in (0, 1, 2, 3)
            assert all(isinstance(check, bool) for check in answer.checks)
    assert len(lm.history) == 4  # nothing was asked for twice


def test_two_grammars_never_share_an_answer_of_the_cache(tiny_gguf_path: Path, tmp_path: Path) -> None:
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=True, disk_cache_dir=str(tmp_path / "cache"))
    try:
        lm = sw.lm(f"llamacpp/{tiny_gguf_path}", engine="native", **{**EXACT, "cache": True})
        held = [lm("Say.", response_format=lm.engine.grammar_format(f'root ::= "{word}"')) for word in ("a", "b", "a")]
        assert held == [["a"], ["b"], ["a"]]
        assert len([call for call in lm.history if call["usage"]]) == 2
    finally:
        dspy.cache = before


def test_a_stream_gives_the_same_text_in_pieces(doors: list[Any]) -> None:
    from dspy import lm15

    native, _ = doors
    config = lm15.Config(max_tokens=12, temperature=0.0)
    request = lm15.Request(model=native.model, messages=(lm15.Message.user(QUESTION),), config=config)
    whole = native.engine.complete(request)

    async def streamed() -> list[Any]:
        return [event async for event in native._async_engine_spec.stream(request)]

    for events in (list(native.engine.stream(request)), asyncio.run(streamed())):
        assert [event.type for event in (events[0], events[-1])] == ["start", "end"]
        pieces = [event.delta.text for event in events[1:-1]]
        assert len(pieces) > 1
        assert "".join(pieces) == whole.message.text
        assert (events[-1].finish_reason, events[-1].usage.output_tokens) == (whole.finish_reason, 12)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}, "tools"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"multipleOf": 3}}}}, "multipleOf"),
    ],
)
def test_what_it_cannot_do_is_named_and_not_tried_again(doors: list[Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=says) as raised:
        doors[0](QUESTION, **options)
    assert not dspy.utils.exceptions.is_retryable_lm_error(raised.value)


def test_a_prompt_that_is_too_long_is_the_error_that_callers_know(doors: list[Any]) -> None:
    with pytest.raises(dspy.ContextWindowExceededError, match="larger context"):
        doors[0]("word " * 3000)


def test_it_is_for_models_of_this_process(tiny_gguf_path: Path) -> None:
    with pytest.raises(ConfigError, match="not for openai/x; leave it out"):
        sw.lm("openai/x", engine="native")
    with pytest.raises(ConfigError, match="litellm, native"):
        sw.lm(f"llamacpp/{tiny_gguf_path}", engine="lm15")  # type: ignore[arg-type]


def test_a_saved_module_finds_its_model_again(tiny_gguf_path: Path, tmp_path: Path) -> None:
    attempt = {"problem": "How many are left?", "steps": ["There are 41.", "41 - 4 = 39."]}
    settings: Any = {**EXACT, "context": 1500, "temperature": 0.0, "max_tokens": 300}
    saved = sw.StepJudge(sw.lm(f"llamacpp/{tiny_gguf_path}", engine="native", **settings))
    saved.save(tmp_path / "judge.json")
    loaded = sw.StepJudge()
    loaded.load(tmp_path / "judge.json", allow_unsafe_lm_state=True)
    assert loaded.get_lm().engine.load == saved.get_lm().engine.load
    assert loaded.get_lm().engine.load["context"] == 1500
    answers = [(found.failure, found.right, found.reason) for found in (loaded(**attempt), saved(**attempt))]
    assert answers[0] == answers[1]


WITHOUT = """
import sys
sys.modules["litellm"] = None
import stepwise as sw
from stepwise.errors import MissingDependencyError
model = sys.argv[1]
judge = sw.StepJudge(sw.lm(model, engine="native", context=2048, temperature=0.0, max_tokens=900), adapter="json")
found = judge(problem="How many are left?", steps=["There are 41.", "41 - 4 = 39."])
assert found.failure is None, found.failure
with sw.StepRouter(model, model, policy=sw.routing.Never(), max_steps=2) as router:
    assert router(problem="How many?").trace.steps
try:
    sw.lm(model)
except MissingDependencyError as error:
    print(error)
"""


def test_without_litellm_local_models_work_and_the_default_door_says_what_to_do(tiny_gguf_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, f"llamacpp/{tiny_gguf_path}"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "pip install litellm" in run.stdout
    assert 'engine="native"' in run.stdout
