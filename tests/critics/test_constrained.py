"""A model with random weights, which knows no format, cannot leave one that it is held to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from pydantic import BaseModel, Field

import stepwise as sw
from evals.adapters import OneCall, invalid, tasks
from stepwise.config import ModelConfig
from stepwise.critics.formats import adapter
from stepwise.critics.formats.compact_format import chat_grammar, fields_grammar, read_fields, write_fields
from stepwise.critics.module import run_all
from stepwise.critics.signatures import JudgeStep, ProposeIntervention, numbered
from stepwise.lab import generate
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.shared import close_engines, shared_engine

LOAD: dict[str, Any] = {"context": 6144, "sequences": 8, "kv_type": "f32", "flash_attention": False}


class Line(BaseModel):
    name: Annotated[str, Field(min_length=3, max_length=12)]
    ratio: float
    sure: bool | None
    kind: Literal["sum", "#product"]


class Pair(BaseModel):
    left: Annotated[list[str], Field(max_length=2)]
    right: Annotated[int, Field(ge=-5, le=1000)] | None


KINDS: dict[str, Any] = {
    "a table": Annotated[list[Line], Field(min_length=1, max_length=3)],
    "a table that may be empty": Annotated[list[Line], Field(max_length=1)],
    "nested": Annotated[list[Pair], Field(max_length=2)],
    "a map": dict[str, Literal["x", "y"]],
    "a number in bounds": Annotated[int, Field(ge=7, le=1203)],
    "an optional number": int | None,
    "a real number": Annotated[float, Field(gt=0, lt=2)],
    "a truth value": bool,
    "a choice": Literal["keep", "escalate", 3],
    "a date": date | None,
    "a short text": Annotated[str, Field(min_length=5, max_length=6)],
    "a text of one character": Annotated[str, Field(min_length=1, max_length=1)],
    "an optional text": Annotated[str, Field(max_length=9)] | None,
    "a text of lines": Annotated[str, Field(min_length=30, max_length=402)],
}


@pytest.fixture(autouse=True, scope="module")
def _closed_engines() -> Iterator[None]:
    yield
    close_engines()


@pytest.fixture(scope="module")
def engine(tiny_gguf_path: Path) -> Engine:
    return shared_engine(ModelConfig(model=f"llamacpp/{tiny_gguf_path}", **LOAD))


def samples(engine: Engine, grammar: str, n: int, max_tokens: int = 2000) -> list[str]:
    ids = tuple(engine.chat_ids([{"role": "user", "content": "2 + 2 = 5?"}]))
    made = engine.generate([GenerationJob(ids, max_tokens=max_tokens, n=n, temperature=1.5, seed=7, grammar=grammar)])
    assert {one.finish for one in made} == {"eos"}
    return [one.data[: one.end].decode() for one in made]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_every_kind_that_a_grammar_lets_through_are_read_with_the_right_type(
    engine: Engine, kind: str
) -> None:
    made = dspy.Signature({
        "question": (str, dspy.InputField()),
        "value": (KINDS[kind], dspy.OutputField()),
        "end": (Annotated[str, Field(max_length=9)], dspy.OutputField()),
    })  # fmt: skip
    for text in samples(engine, fields_grammar(made), 6):
        values = read_fields(made, text)
        assert invalid(made, values) == []
        assert read_fields(made, write_fields(made, values)) == values
    for text in samples(engine, chat_grammar(made), 6):
        assert invalid(made, adapter("chat").parse(made, text)) == []


def test_a_text_without_a_limit_ends_where_other_fields_follow_it(engine: Engine) -> None:
    made = dspy.Signature("question -> reasoning, right: bool")
    for text in samples(engine, fields_grammar(made), 4, 5000):
        assert invalid(made, read_fields(made, text)) == []


@pytest.mark.parametrize("form", ["compact", "chat", "json"])
def test_every_call_of_the_librarys_signatures_parses_at_once(tiny_gguf_path: Path, form: Any) -> None:
    lm = sw.lm(f"llamacpp/{tiny_gguf_path}", **LOAD, temperature=1.0, max_tokens=4096, cache=False)
    made = tasks(generate("val", 1))
    items = [
        {"signature": signature, "given": given, "config": {"seed": seed}}
        for seed, (name, signature, given) in zip(range(7), made, strict=False)
        if name not in ("propose", "solve", "judge by chain of thought")  # long texts: evals.adapters has them
    ]
    results = run_all(OneCall(lm, form), items)
    assert [result.failure for result in results] == [None] * 4
    assert sum(len(result.repairs) for result in results) == 0
    assert sum(result.usage.calls for result in results) == 4


ATTEMPT = {"problem": "1 + 1?", "reference": "2", "attempt": numbered(["It is 3."])}


@pytest.mark.parametrize("form", ["compact", "chat"])
def test_a_text_at_the_end_may_be_cut_by_max_tokens_and_is_read(tiny_gguf_path: Path, form: Any) -> None:
    lm = sw.lm(f"llamacpp/{tiny_gguf_path}", **LOAD, temperature=1.0, max_tokens=60, cache=False)
    with dspy.context(lm=lm, adapter=adapter(form)):
        for seed in range(5):
            made = dspy.Predict(ProposeIntervention)(**ATTEMPT, first_error=0, config={"seed": seed})
            assert made.content
            assert len(lm.history) == seed + 1


def test_a_reply_that_is_cut_before_its_last_field_is_a_failure_after_one_repair(tiny_gguf_path: Path) -> None:
    lm = sw.lm(f"llamacpp/{tiny_gguf_path}", **LOAD, temperature=1.0, max_tokens=12, cache=False, seed=1)
    with dspy.context(lm=lm, adapter=adapter("compact")), pytest.raises(AdapterParseError, match="right is missing"):
        dspy.Predict(JudgeStep)(**ATTEMPT)
    assert len(lm.history) == 2
