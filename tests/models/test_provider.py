"""`llamacpp/...` through LiteLLM and DSPy gives what the engine gives, and says clearly what it does not take."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import stepwise as sw
from stepwise.config import ModelConfig
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.shared import close_engines, shared_engine

litellm = pytest.importorskip("litellm")
EXACT = {"context": 256, "sequences": 8, "kv_type": "f32", "flash_attention": False}
QUESTION = "Mia has 12 apples and buys 5 more. How many apples does Mia have now?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(autouse=True)
def _shared_engines_are_closed() -> Iterator[None]:
    yield
    close_engines()


@pytest.fixture
def model(tiny_gguf_path: Path) -> str:
    sw.register_litellm()
    return f"llamacpp/{tiny_gguf_path}"


@pytest.fixture
def engine(tiny_gguf_path: Path) -> Engine:
    return shared_engine(ModelConfig(model=f"llamacpp/{tiny_gguf_path}", **EXACT))  # type: ignore[arg-type]


def complete(model: str, **settings: Any) -> Any:
    return litellm.completion(model=model, **({"messages": MESSAGES, "temperature": 0.0} | EXACT | settings))


def text_of(response: Any) -> str:
    return str(response.choices[0].message.content)


def expected(engine: Engine, ids: list[int], **settings: Any) -> str:
    made = engine.generate([GenerationJob(tuple(ids), **({"temperature": 0.0} | settings))])[0]
    return made.data.decode("utf-8", "replace")


def test_a_completion_is_the_engines_own_with_its_usage(model: str, engine: Engine) -> None:
    ids = engine.chat_ids(MESSAGES, enable_thinking=False)
    response = complete(model, max_tokens=12)
    assert text_of(response) == expected(engine, ids, max_tokens=12)
    assert response.choices[0].finish_reason == "length"
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (len(ids), 12)
    again = complete(model, max_tokens=12)
    assert again.usage.prompt_tokens_details.cached_tokens == len(ids) - 1


def test_an_assistants_last_message_is_continued_where_it_stands(model: str, engine: Engine) -> None:
    begun = "Mia starts with 12 apples.\n\n"
    response = complete(model, messages=[*MESSAGES, {"role": "assistant", "content": begun}], max_tokens=10)
    ids = engine.chat_ids(MESSAGES, enable_thinking=False) + engine.tokenize(begun)
    assert text_of(response) == expected(engine, ids, max_tokens=10)
    assert response.usage.prompt_tokens == len(ids)


def test_a_raw_text_gets_no_template_and_its_special_tokens_count(model: str, engine: Engine) -> None:
    prompt = "<|im_start|>user\nHow many?<|im_end|>\n"
    response = litellm.text_completion(model=model, prompt=prompt, max_tokens=8, temperature=0.0, **EXACT)
    assert response.choices[0].text == expected(engine, engine.tokenize(prompt, special=True), max_tokens=8)
    assert response.usage.prompt_tokens == len(engine.tokenize(prompt, special=True))


def test_several_samples_come_from_one_prompt_and_one_seed(model: str, engine: Engine) -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": 8, "seed": 5}
    response = complete(model, n=3, **settings)
    job = GenerationJob(tuple(engine.chat_ids(MESSAGES, enable_thinking=False)), n=3, **settings)
    made = engine.generate([job])
    texts = [sample.data.decode("utf-8", "replace") for sample in made]
    assert [choice.message.content for choice in response.choices] == texts
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    assert response.usage.completion_tokens == sum(len(sample.ids) for sample in made)
    fresh = {text_of(complete(model, temperature=1.0, max_tokens=8)) for _ in range(4)}
    assert len(fresh) > 1  # without a seed a new one is drawn


def test_a_stop_string_is_left_out_of_a_text_and_of_a_stream(model: str) -> None:
    whole = text_of(complete(model, max_tokens=20))
    ending = next(whole[i : i + 2] for i in range(2, 18) if whole[i : i + 2].isascii())
    stop = [ending, "never written"]
    cut = complete(model, max_tokens=20, stop=stop)
    assert text_of(cut) == whole[: whole.index(ending)]
    assert cut.choices[0].finish_reason == "stop"
    assert "".join(pieces(complete(model, max_tokens=20, stop=stop, stream=True))) == text_of(cut)


def pieces(stream: Any) -> list[str]:
    return [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]


def test_a_stream_gives_the_same_text_in_pieces_and_the_usage_at_its_end(model: str) -> None:
    whole = complete(model, max_tokens=15)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(complete(model, max_tokens=15, **options))
    assert "".join(pieces(chunks)) == text_of(whole)
    assert len([piece for piece in pieces(chunks) if piece]) > 3
    assert chunks[-1].usage.completion_tokens == 15
    reasons = [
        choice.finish_reason for chunk in chunks for choice in chunk.choices
    ]  # that with the usage may have none
    assert list(filter(None, reasons)) == ["length"]

    async def collect() -> tuple[str, str]:
        common = {"messages": MESSAGES, "temperature": 0.0, "max_tokens": 15} | EXACT
        stream = await litellm.acompletion(model=model, stream=True, **common)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return streamed, text_of(await litellm.acompletion(model=model, **common))

    assert asyncio.run(collect()) == (text_of(whole), text_of(whole))


def test_logprobs_are_those_of_the_engine_with_the_likeliest_tokens(model: str, engine: Engine) -> None:
    response = complete(model, max_tokens=6, logprobs=True, top_logprobs=2)
    ids = tuple(engine.chat_ids(MESSAGES, enable_thinking=False))
    made = engine.generate([GenerationJob(ids, max_tokens=6, temperature=0.0)])[0]
    entries = response.choices[0].logprobs.content
    assert [entry.logprob for entry in entries] == pytest.approx(made.logprobs, abs=1e-4)
    assert b"".join(bytes(entry.bytes) for entry in entries) == made.data
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


SCHEMA = {
    "type": "object",
    "properties": {"first_error": {"type": "integer", "minimum": 0, "maximum": 9}, "why": {"enum": ["a", "b"]}},
    "required": ["first_error", "why"],
}


def test_a_schema_is_held_to_whatever_the_model_would_say(model: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": True}}
    response = complete(model, response_format=wanted, temperature=1.0, n=4, seed=1)
    for choice in response.choices:
        answer = json.loads(choice.message.content)
        assert list(answer) == ["first_error", "why"]
        assert answer["first_error"] in range(10)
        assert answer["why"] in ("a", "b")
        assert choice.finish_reason == "stop"


def test_json_mode_begins_an_object_even_where_the_model_would_not(model: str) -> None:
    response = complete(model, response_format={"type": "json_object"}, temperature=1.0, n=8, seed=2, max_tokens=120)
    done = [choice.message.content for choice in response.choices if choice.finish_reason == "stop"]
    assert done
    assert all(isinstance(json.loads(text), dict) for text in done)
    assert all(choice.message.content.startswith("{") for choice in response.choices)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"min_p": 0.1}, "do not take min_p"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": {"type": "string", "pattern": "a+"}}}, "pattern"),
        ({"grammar": "root ::= ("}, "grammar cannot be read"),
        ({"messages": [{"role": "user", "content": QUESTION * 20}]}, "larger context"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "text only"),
        ({"kv_type": "f17"}, "kv_type"),
        ({"adapter": "nowhere.gguf"}, "nowhere.gguf"),
        ({"n": 2, "stream": True}, "one sample"),
    ],
)
def test_what_the_caller_must_change_is_not_retryable_and_says_so(
    model: str, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(litellm.BadRequestError, match=says) as raised:
        list(complete(model, **settings))  # a stream fails when it is read
    assert raised.value.status_code == 400


def test_a_prompt_that_is_too_long_is_the_error_that_callers_know(model: str) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        complete(model, messages=[{"role": "user", "content": QUESTION * 20}])


def test_a_missing_and_a_corrupt_file_are_named(tmp_path: Path) -> None:
    sw.register_litellm()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    for path in (tmp_path / "missing.gguf", broken):
        with pytest.raises(litellm.BadRequestError, match=path.name):
            litellm.completion(model=f"llamacpp/{path}", messages=MESSAGES)


def test_a_provider_that_was_there_before_stays(model: str) -> None:
    other = {"provider": "somebodys", "custom_handler": object()}
    litellm.custom_provider_map.append(other)
    try:
        sw.register_litellm()
        assert other in litellm.custom_provider_map
        assert sum(item["provider"] == "llamacpp" for item in litellm.custom_provider_map) == 1
    finally:
        litellm.custom_provider_map.remove(other)


def test_the_handler_is_one_that_litellm_takes(model: str) -> None:
    from litellm.llms.custom_llm import CustomLLM

    ours = [item["custom_handler"] for item in litellm.custom_provider_map if item["provider"] == "llamacpp"]
    assert len(ours) == 1
    assert isinstance(ours[0], CustomLLM)  # since LiteLLM 1.108.14 no other is called


def test_engines_are_shared_by_weights_and_settings_and_close(model: str, engine: Engine) -> None:
    config = ModelConfig(model=model, **EXACT)  # type: ignore[arg-type]
    assert shared_engine(config) is engine
    with ThreadPoolExecutor(4) as pool:
        others = list(pool.map(lambda _: shared_engine(config.model_copy(update={"context": 128})), range(4)))
    assert len({id(other) for other in others}) == 1
    assert others[0] is not engine
    assert close_engines(engine.path) == 2
    assert text_of(complete(model, max_tokens=3))  # loaded anew


def test_many_threads_get_what_one_gets(model: str) -> None:
    questions = [f"Tom has {i} books." for i in range(12)]
    ask = [[{"role": "user", "content": question}] for question in questions]
    alone = [text_of(complete(model, messages=messages, max_tokens=10)) for messages in ask]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda m: text_of(complete(model, messages=m, max_tokens=10)), ask))
    assert together == alone


def test_a_name_with_the_hashes_of_other_weights_is_refused(model: str, tiny_gguf_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(tiny_gguf_path, path)
    name = sw.lm(f"llamacpp/{path}", **EXACT).model
    assert text_of(complete(name, max_tokens=3))
    data = bytearray(path.read_bytes())
    data[-64:] = bytes(64)
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(litellm.BadRequestError, match="were changed"):
        complete(name, max_tokens=3)
    assert sw.lm(f"llamacpp/{path}", **EXACT).model != name
