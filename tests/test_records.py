"""What a frozen type or a section of the configuration says of wrong arguments: one line, the field, a remedy."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
from pydantic import Field, ValidationError

import stepwise as sw
from stepwise import routing
from stepwise.errors import ConfigError, DataError
from stepwise.records import record


@record()
class Pair:
    left: int = Field(default=1, ge=0)
    right: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.left == 13:
            raise ValueError("left is 13; take another")


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Pair(-1), "Pair: left is -1: input should be greater than or equal to 0"),
        (lambda: Pair(lift=1), "Pair: there is no field 'lift'; did you mean 'left'?"),
        (lambda: Pair(zzz=1), "Pair: there is no field 'zzz'; its fields are left, right"),
        (lambda: Pair(1, (2,)), "Pair: right.0 is 2: input should be a valid string"),
        (lambda: Pair(1, (), 3), "Pair: it takes at most 2 arguments: left, right"),
        (lambda: Pair(13), "Pair: left is 13; take another"),
        (lambda: dataclasses.replace(Pair(), left="x"), "Pair: left is 'x': input should be a valid integer"),
        (lambda: sw.Problem("p"), "Problem: question must be given"),
        (lambda: sw.Threshold("high"), "Threshold: threshold is 'high'"),
    ],
)
def test_a_record_names_class_field_and_value(build: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        build()
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: sw.BudgetConfig(strong_token=1), "BudgetConfig: there is no field 'strong_token'; did you mean"),
        (lambda: sw.SamplingConfig(temperature=-1), "SamplingConfig: temperature is -1: .* (0 is greedy; unset"),
        (lambda: sw.ModelConfig(model="gpt"), "ModelConfig: model: 'gpt' is not provider/name .*llamacpp/path"),
        (lambda: sw.Config(routing={"policy": "treshold"}), "Config: .*did you mean 'threshold'"),
        (lambda: sw.SolvePrompt(user="?"), "SolvePrompt: user: .*has no {question}"),
    ],
)
def test_a_section_of_the_configuration_does_so_too_and_says_what_the_key_means(build: Any, says: str) -> None:
    first, _, last = says.partition(".*")
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(first)
    assert last in str(caught.value)
    assert "http" not in str(caught.value)


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    secret = "sk-abcdefghijklmnopqrst"
    with pytest.raises(ConfigError) as caught:
        sw.ModelConfig(model=secret)
    assert secret not in str(caught.value)


def test_a_record_is_a_frozen_value() -> None:
    assert Pair(1, ["a"]) == Pair(1, ("a",))  # type: ignore[arg-type]
    assert len({Pair(), Pair(1)}) == 1
    with pytest.raises(AttributeError):
        Pair().left = 2  # type: ignore[misc]


_CLASSES = {
    value
    for home in (sw, routing)
    for name in home.__all__
    if isinstance(value := getattr(home, name), type) and not issubclass(value, BaseException)
}


@pytest.mark.parametrize("cls", sorted(_CLASSES, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_no_public_constructor_shows_an_error_of_pydantics(cls: type) -> None:
    raised: list[Exception] = []
    for arguments in ({"nonsense": 1}, dict.fromkeys(inspect.signature(cls).parameters, object())):
        try:
            cls(**arguments)
        except Exception as error:
            raised.append(error)
    assert not any(isinstance(error, ValidationError) or "errors.pydantic.dev" in str(error) for error in raised)
