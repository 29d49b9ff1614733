"""DSPy programs on `sw.lm`: caches, schemas, threads, saved programs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import stepwise as sw
from stepwise.models.shared import close_engines

dspy = pytest.importorskip("dspy")
EXACT = {"context": 2048, "sequences": 8, "kv_type": "f32", "flash_attention": False}


@pytest.fixture(autouse=True)
def _empty_cache_and_closed_engines(tmp_path: Path) -> Iterator[None]:
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=True, disk_cache_dir=str(tmp_path / "cache"))
    yield
    dspy.cache = before
    close_engines()


class Judge(dspy.Signature):
    """Which step is the first wrong one?"""

    question: str = dspy.InputField()
    first_error: Literal[0, 1, 2, 3] = dspy.OutputField()
    sure: bool = dspy.OutputField()


def load(path: Path, **settings: Any) -> Any:
    return sw.lm(f"llamacpp/{path}", **(EXACT | settings))


def test_it_goes_through_litellm_and_its_name_holds_the_hash(tiny_gguf_path: Path) -> None:
    lm = load(tiny_gguf_path)
    assert lm.engine == "litellm"
    prefix, _, digest = lm.model.rpartition("@")
    assert prefix == f"llamacpp/{tiny_gguf_path}"
    assert len(digest) == 8


def test_a_program_gets_answers_of_the_declared_types_from_a_random_model(tiny_gguf_path: Path) -> None:
    lm = load(tiny_gguf_path, temperature=1.0, seed=3)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        answer = dspy.Predict(Judge)(question="2 + 2 = 5?")
    assert answer.first_error in (0, 1, 2, 3)
    assert isinstance(answer.sure, bool)
    assert lm.history[-1]["kwargs"]["response_format"]  # a schema was sent, not a plea for JSON


class Sets(dspy.Signature):
    """Some numbers."""

    question: str = dspy.InputField()
    numbers: set[int] = dspy.OutputField()
    words: frozenset[str] = dspy.OutputField()


@pytest.mark.parametrize("engine", ["litellm", "native"])
def test_dspys_own_json_format_takes_types_that_no_grammar_holds_to(tiny_gguf_path: Path, engine: Any) -> None:
    lm = load(tiny_gguf_path, engine=engine, temperature=1.0, seed=5, max_tokens=900, cache=False)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        made = dspy.Predict(Sets)(question="Which?")
    assert isinstance(made.numbers, set)
    assert isinstance(made.words, frozenset)
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    with pytest.raises(dspy.LMError, match="uniqueItems"):  # of somebody who may not check what is read
        lm("Which?", response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})


def test_equal_calls_are_answered_from_the_cache_and_other_rollouts_are_not(tiny_gguf_path: Path) -> None:
    lm = load(tiny_gguf_path, temperature=1.0, max_tokens=12)
    first = lm("Say something.")
    assert lm("Say something.") == first
    assert len({lm("Say something.", rollout_id=i)[0] for i in range(1, 6)}) > 1


def test_two_weights_under_one_path_never_share_an_answer(tiny_gguf_path: Path, tmp_path: Path) -> None:
    from tests.tiny_models import tiny_gguf

    path = tmp_path / "model.gguf"
    shutil.copy(tiny_gguf_path, path)
    before = load(path, temperature=0.0, max_tokens=12)
    answer = before("Say something.")
    path.unlink()
    shutil.copy(tiny_gguf(tmp_path / "other", seed=7), path)
    after = load(path, temperature=0.0, max_tokens=12)
    assert after.model != before.model
    assert after("Say something.") != answer
    with pytest.raises(Exception, match="were changed"):
        before("Say something else.")


def test_an_evaluation_in_threads_gets_what_single_calls_get(tiny_gguf_path: Path) -> None:
    lm = load(tiny_gguf_path, temperature=0.0, max_tokens=8, cache=False)
    program = dspy.Predict("question -> answer")
    questions = [f"Tom has {i} books." for i in range(8)]
    examples = [dspy.Example(question=question).with_inputs("question") for question in questions]
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):

        def metric(example: Any, prediction: Any, trace: Any = None) -> float:
            with dspy.context(lm=lm.copy(cache=False)):
                return float(program(question=example.question).answer == prediction.answer)

        evaluate = dspy.Evaluate(devset=examples, metric=metric, num_threads=4, display_progress=False)
        lm.kwargs["max_tokens"] = 1300  # room for the schema's longest string
        assert evaluate(program).score == 100


def test_a_saved_program_finds_its_model_again(tiny_gguf_path: Path, tmp_path: Path) -> None:
    program = dspy.Predict(Judge)
    program.lm = load(tiny_gguf_path, temperature=0.0, seed=1, cache=False)
    with dspy.context(adapter=dspy.JSONAdapter()):
        answer = program(question="2 + 2 = 5?")
        program.save(tmp_path / "program.json")
        close_engines()
        again = dspy.Predict(Judge)
        again.load(tmp_path / "program.json")
        assert again.lm.model == program.lm.model
        assert dict(again(question="2 + 2 = 5?")) == dict(answer)


def test_a_mistake_of_the_caller_is_not_tried_again(tiny_gguf_path: Path) -> None:
    lm = load(tiny_gguf_path, num_retries=5, min_p=0.1, cache=False)
    with pytest.raises(dspy.LMInvalidRequestError, match="min_p"):
        lm("Say something.")


def test_usage_reaches_the_tracker(tiny_gguf_path: Path) -> None:
    lm = load(tiny_gguf_path, temperature=0.0, max_tokens=6, cache=False)
    with dspy.track_usage() as tracker, dspy.context(lm=lm):
        lm("Say something.")
    (usage,) = tracker.get_total_tokens().values()
    assert usage["completion_tokens"] == 6


def test_api_models_get_their_address_and_key_and_the_same_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "value-of-the-key")
    lm = sw.lm("openai/some-model", api_base="http://localhost:1/v1", api_key_env="SOME_KEY", temperature=0.2)
    assert lm.engine == "litellm"
    assert lm.kwargs["api_base"] == "http://localhost:1/v1"
    assert lm.kwargs["api_key"] == "value-of-the-key"
    with pytest.raises(sw.ConfigError, match="SOME_OTHER_KEY"):
        sw.lm("openai/some-model", api_key_env="SOME_OTHER_KEY")
