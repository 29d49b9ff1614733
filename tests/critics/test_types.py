"""Output types of every kind: the engine is held to them where it can be, and no type is refused."""

from __future__ import annotations

import datetime
import enum
import ipaddress
import json
import re
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, Base64Bytes, BaseModel, Field, HttpUrl, SecretStr, TypeAdapter

from stepwise.critics.formats import adapter
from stepwise.models.engine import Engine, GenerationJob, schema_grammar
from tests.engine.test_schema import small

FORMS: list[Any] = ["compact", "chat", "json"]


class Node(BaseModel):
    name: str = Field(max_length=4)
    children: list[Node] = Field(default=[], max_length=2)


class Term(BaseModel):
    op: Literal["+", "value"]
    left: Optional[Term]  # noqa: UP045
    right: Optional[Term]  # noqa: UP045
    value: int = Field(ge=0, le=9)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: set[int] = Field(max_length=2)


class Loop(BaseModel):
    again: Loop


class Tone(enum.Enum):
    HIGH = "high"
    LOW = 2


LEAVES: list[Any] = [
    int, float, bool, str, HttpUrl, AnyUrl, Path, bytes, Base64Bytes, SecretStr, Decimal, Tone, Literal["a", 1, None],
    datetime.timedelta, datetime.date, datetime.datetime, datetime.time, uuid.UUID, ipaddress.IPv4Address,
    ipaddress.IPv6Address,
]  # fmt: skip
RECORDS: list[Any] = [Node, Term, Annotated[Union[Cat, Dog], Field(discriminator="kind")], Dog, Any]  # noqa: UP007
LOOSE: list[Any] = [  # what a grammar cannot hold to is checked when it is read
    Loop, Annotated[int, Field(multiple_of=5)], Annotated[str, Field(pattern="^a+$")], dict[Annotated[str, Field(
        pattern="^k")], int], list[Any], dict, object,
]  # fmt: skip
HASHED = st.sampled_from(LEAVES[:4] + LEAVES[13:])
TYPES = st.recursive(
    st.sampled_from(LEAVES + RECORDS),
    lambda inner: st.one_of(
        inner.map(lambda kind: list[kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: kind | None if isinstance(kind, type) else Optional[kind]),  # noqa: UP045
        inner.map(lambda kind: dict[str, kind]),  # type: ignore[valid-type]
        st.tuples(inner, inner).map(lambda pair: tuple[pair]),  # type: ignore[valid-type]
        HASHED.map(lambda kind: set[kind]),  # type: ignore[valid-type]
        HASHED.map(lambda kind: dict[Tone, kind]),  # type: ignore[valid-type]
    ),
    max_leaves=3,
)


class Held:
    """Stands for a model of this process, or with another name for a hosted one."""

    supported_params = ("response_format",)
    supports_response_schema = True

    def __init__(self, model: str = "llamacpp/x") -> None:
        self.model = model


def signature(kind: Any) -> Any:
    return dspy.Signature({"q": (str, dspy.InputField()), "a": (kind, dspy.OutputField()),
                           "sure": (bool, dspy.OutputField())})  # fmt: skip


def grammar_of(form: Any, kind: Any) -> str:
    """What the engine is held to; strings and lists in JSON short, so that it ends soon."""
    options: dict[str, Any] = {}
    adapter(form).constrain(Held(), options, signature(kind))
    if form != "json":
        return str(options["grammar"])
    return schema_grammar(small(options["response_format"]["json_schema"]["schema"])).gbnf


@pytest.fixture(scope="module")
def engine(tiny_gguf_path: Path) -> Iterator[Engine]:
    with Engine.load(tiny_gguf_path, context=1024, sequences=16) as loaded:
        yield loaded


def drawn(engine: Engine, form: Any, kind: Any, n: int = 2) -> list[str]:
    """Texts of a random model under the grammar that ended."""
    job = GenerationJob((7, 8, 9), max_tokens=900, n=n, temperature=1.0, seed=1, grammar=grammar_of(form, kind))
    samples = engine.generate([job])
    assert {sample.finish for sample in samples} <= {"eos", "length"}, samples[0].error
    return [sample.data.decode("utf-8") for sample in samples if sample.finish == "eos"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [*LEAVES, *RECORDS, set[int], frozenset[str]], ids=str)
def test_whatever_a_random_model_writes_under_the_grammar_is_read_as_the_type(
    engine: Engine, form: Any, kind: Any
) -> None:
    for text in drawn(engine, form, kind):
        assert set(adapter(form).parse(signature(kind), text)) == {"a", "sure"}


@given(kind=TYPES, form=st.sampled_from(FORMS))
@settings(max_examples=25)
def test_any_combination_of_types_is_held_to(engine: Engine, kind: Any, form: Any) -> None:
    for text in drawn(engine, form, kind, n=1):
        assert set(adapter(form).parse(signature(kind), text)) == {"a", "sure"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LOOSE, ids=str)
def test_what_cannot_be_held_to_is_asked_for_as_json_and_checked(engine: Engine, form: Any, kind: Any) -> None:
    for text in drawn(engine, form, kind):
        try:
            fields = adapter(form).parse(signature(kind), text)
        except AdapterParseError:
            continue
        assert set(fields) == {"a", "sure"}
        TypeAdapter(kind).validate_python(fields["a"])


@given(kind=TYPES)
@settings(max_examples=60)
def test_a_hosted_model_gets_a_strict_schema_or_json_mode(kind: Any) -> None:
    options: dict[str, Any] = {}
    adapter("json").constrain(Held("openai/x"), options, signature(kind))
    asked = options["response_format"]
    if asked["type"] == "json_object":
        assert re.search("Any|dict", str(kind))
    else:
        written = json.dumps(asked)
        assert not [word for word in ("uniqueItems", '"uri"', '"path"', '"binary"', "oneOf") if word in written]
