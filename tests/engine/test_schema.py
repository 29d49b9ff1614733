"""Whatever a model writes under a schema's grammar, strict JSON and pydantic take it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from stepwise.errors import DataError
from stepwise.models.engine import Engine, GenerationJob, schema_grammar
from stepwise.models.engine.gbnf import integers


class Colour(Enum):
    RED = "red"
    QUOTED = 'a "b" \\ c'


class Verdict(BaseModel):
    step: int = Field(ge=0, le=30)
    right: bool
    why: str = Field(max_length=12)


class Report(BaseModel):
    verdicts: list[Verdict] = Field(max_length=3)
    first_error: int | None
    colour: Colour
    share: float = Field(gt=0, lt=1)
    tags: dict[str, int]
    pair: tuple[int, str]
    kind: Literal["a", "b", 3]
    when: date
    key: UUID
    note: str = "default"


TYPES: list[Any] = [
    str, int, float, bool, Colour, Verdict, Report, int | None, list[str], list[Verdict], dict[str, float],
    tuple[int, bool], Literal["yes", "no"], date, UUID,
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(tiny_gguf_path: Path) -> Iterator[Engine]:
    with Engine.load(tiny_gguf_path, context=512, sequences=32) as loaded:
        yield loaded


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_random_model_writes_only_what_validates(engine: Engine, kind: Any) -> None:
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    bound = small(schema)
    grammar = schema_grammar(bound)
    job = GenerationJob((7, 8, 9), max_tokens=min(grammar.max_tokens, 500), n=30, temperature=1.5, grammar=grammar.gbnf)
    for made in engine.generate([job]):
        assert made.finish == "eos", (made.finish, made.error, made.data)
        text = made.data.decode("utf-8")  # strictly
        assert len(made.data) <= grammar.max_bytes
        adapter.validate_python(adapter.validate_json(text))
        json.loads(text)


def small(schema: Any) -> Any:
    """The schema with short strings and lists, so that a random model ends within the test's context."""
    if isinstance(schema, list):
        return [small(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: small(value) for key, value in schema.items()}
    if made.get("type") == "string" and "format" not in made and "enum" not in made:
        made.setdefault("maxLength", 5)
    if made.get("type") == "array" and "prefixItems" not in made:
        made.setdefault("maxItems", 3)
    if made.get("type") == "object" and "properties" not in made:
        made.setdefault("maxProperties", 2)
    return made


def test_a_grammar_of_ones_own_holds_and_greedy_works_too(engine: Engine) -> None:
    gbnf = 'root ::= ("left" | "right") " " [0-9]{3}'
    made = engine.generate(
        [GenerationJob((5, 6), max_tokens=30, n=1, temperature=t, grammar=gbnf) for t in (0.0, 1.0, 2.0)]
    )
    for one in made:
        assert re.fullmatch(rb"(left|right) [0-9]{3}", one.data)
        assert one.finish == "eos"


def test_constrained_and_free_jobs_share_a_batch(engine: Engine) -> None:
    free = GenerationJob((5, 6, 7), max_tokens=12, temperature=0.9, seed=3)
    alone = engine.generate([free])[0]
    bound = GenerationJob((5, 6), max_tokens=12, grammar='root ::= "0"{3}')
    first, second, third = engine.generate([bound, free, bound])
    assert (first.data, third.data) == (b"000", b"000")
    assert second.ids == alone.ids


def test_a_grammar_that_cannot_be_read_fails_its_job_only(engine: Engine) -> None:
    broken, good = engine.generate(
        [GenerationJob((5, 6), max_tokens=4, grammar="root ::= nowhere"), GenerationJob((5, 6), max_tokens=4)]
    )
    assert broken.finish == "error"
    assert "grammar" in broken.error
    assert good.finish in ("length", "eos")


def test_integer_ranges_are_exactly_the_integers_in_them() -> None:
    rng = random.Random(0)
    cases = [
        (0, 0),
        (0, 9),
        (-5, 5),
        (1, 10),
        (99, 101),
        (-1000, -998),
        (7, 7),
        *(sorted(rng.sample(range(-3000, 3000), 2)) for _ in range(60)),
    ]
    for low, high in cases:
        pattern = re.compile(as_regex(integers(low, high)))
        for value in (*range(low - 25, low + 25), *range(high - 25, high + 25), *rng.sample(range(-4000, 4000), 50)):
            assert bool(pattern.fullmatch(str(value))) == (low <= value <= high), (low, high, value)
        assert not pattern.fullmatch("007")


def as_regex(gbnf: str) -> str:
    return gbnf.replace('"', "").replace(" ", "")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "string", "pattern": "a+"}, "pattern"),
        (
            {"$ref": "#/$defs/T", "$defs": {"T": {"type": "array", "items": {"$ref": "#/$defs/T"}, "minItems": 1}}},
            "refers to itself",
        ),
        ({"type": "object", "properties": {"x": {"type": "integer", "minimum": 5, "maximum": 4}}}, r"\$\.x"),
        ({"type": "string", "format": "regex"}, "regex"),
        ({"$ref": "#/$defs/missing"}, "leads nowhere"),
        ({"type": "thing"}, "unknown"),
        ({"type": "number", "exclusiveMinimum": 0.2, "maximum": 0.4}, "widen"),
        # what used to be violated without a word
        ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}, "'b' is required and no prop"),
        ({"type": "object", "required": ["b"]}, "'b' is required"),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "minProperties": 2}, "1 properties and other"),
        ({"type": "object", "additionalProperties": False, "minProperties": 1}, "may have none"),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "no number"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength is 3"),
        ({"type": "string", "format": "date", "maxLength": 9}, "a date has 10"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems is 3"),
        ({"type": "array", "prefixItems": [{"type": "null"}], "minItems": 2}, "1 'prefixItems'"),
        ({"type": "array", "contains": {}}, "'contains'"),
        ({"not": {}}, "'not'"),
        ({"$ref": "#/$defs/T", "maxLength": 2, "$defs": {"T": {"type": "string"}}}, "beside maxLength"),
        ({"anyOf": [{"type": "string"}], "maxLength": 2}, "beside maxLength"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "use 'anyOf'"),
        ({"enum": ["a"], "type": "integer"}, "no value is of type"),
        ({"type": "object", "propertyNames": {"type": "integer"}}, "no strings"),
        ({"dependentRequired": {"a": ["b"]}, "type": "object"}, "dependentRequired"),
    ],
)
def test_what_cannot_be_bounded_is_refused_with_place_and_remedy(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        schema_grammar(schema)


@pytest.mark.parametrize(
    ("more", "required"),
    [
        ({"type": "array", "items": {"$ref": "#/$defs/T"}, "maxItems": 1}, True),
        ({"anyOf": [{"$ref": "#/$defs/T"}, {"type": "null"}]}, True),
        ({"type": "object", "additionalProperties": {"$ref": "#/$defs/T"}, "maxProperties": 1}, True),
        ({"$ref": "#/$defs/T"}, False),
    ],
)
def test_a_schema_that_refers_to_itself_is_unrolled_and_ends(engine: Engine, more: Any, required: bool) -> None:
    node = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}, "more": more},
        "required": ["n", "more"][: 1 + required],
    }
    grammar = schema_grammar({"$ref": "#/$defs/T", "$defs": {"T": node}})
    job = GenerationJob((7, 8, 9), max_tokens=480, n=30, temperature=1.0, grammar=grammar.gbnf)
    texts = [made.data.decode() for made in engine.generate([job]) if made.finish == "eos"]
    assert texts
    assert 1 < max(text.count('"n":') for text in texts) <= 4
    assert all(json.loads(text) for text in texts)


def test_the_bound_counts_the_longest_text() -> None:
    assert schema_grammar({"type": "boolean"}).max_bytes == len("false")
    assert schema_grammar({"type": "integer", "minimum": 0, "maximum": 999}).max_bytes == 3
    assert schema_grammar({"type": "string", "maxLength": 3}).max_bytes == len('"\\u0041\\u0041\\u0041"')
    pair = {"type": "object", "properties": {"a": {"const": 1}, "b": {"enum": [10, 2]}}}
    assert schema_grammar(pair).max_bytes == len('{"a": 1, "b": 10}')
    assert schema_grammar({"type": "array", "items": {"const": 7}, "maxItems": 2}).max_tokens == len("[7, 7]") + 1
