"""Small frozen types that check what they are given, and say what is wrong with it in one line.

`@record` makes a pydantic dataclass: positional construction, equality, hashing, JSON by `to_json`. What pydantic
refuses becomes a `DataError` that names class, field and value, without pydantic's own text and its URL.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from stepwise.errors import ConfigError, DataError, reason_of, redact, wrong_type

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(Field, dataclasses.field))
def record(
    *, allow_inf_nan: bool = True, repr: bool = True, extra: Literal["forbid", "ignore"] = "forbid"
) -> Callable[[type[T]], type[T]]:
    """Decorate a class with annotated fields.

    Args:
        allow_inf_nan: False refuses infinities and NaN in its numbers.
        repr: whether it shows its fields.
        extra: what becomes of arguments that are no fields, where one is read from JSON or by name.

    Example:
        >>> @record()
        ... class Point:
        ...     x: int
        >>> Point(0.5)
        Traceback (most recent call last):
        stepwise.errors.DataError: Point: x is 0.5: input should be a valid integer, got a number with a fractional part
    """
    config = ConfigDict(extra=extra, allow_inf_nan=allow_inf_nan, arbitrary_types_allowed=True)

    def decorate(cls: type[T]) -> type[T]:
        decorated: Any = dataclass(frozen=True, repr=repr, config=config)(cls)
        fields = {f.name: decorated.__pydantic_fields__[f.name] for f in dataclasses.fields(decorated) if f.init}
        checked = decorated.__init__

        @functools.wraps(checked)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if args and (refuse := getattr(self, "_refuse_by_position", None)):
                refuse(*args)
            try:
                checked(self, *args, **kwargs)
            except ValidationError as error:
                raise DataError(f"{type(self).__name__}: {_explain(error, fields)}") from None

        decorated.__init__ = __init__
        return decorated  # type: ignore[no-any-return]

    return decorate


class _Checked(ModelMetaclass):
    """Metaclass of pydantic models whose constructor raises `ConfigError`, as that of a `record` raises `DataError`."""

    model_fields: dict[str, Any]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """A model."""
        if args:
            first = next(iter(cls.model_fields))
            raise ConfigError(f"{cls.__name__} takes its fields by name, such as {cls.__name__}({first}=...)")
        try:
            return super().__call__(**kwargs)
        except ValidationError as error:
            raise ConfigError(f"{cls.__name__}: {_explain(error, cls.model_fields)}") from None


class Section(BaseModel, metaclass=_Checked):
    """A frozen model of settings, whose copies are checked too.

    >>> class Settings(Section):
    ...     rounds: int = 3
    >>> Settings.of({"rounds": 5}, "settings").rounds, Settings.of(None, "settings").rounds
    (5, 3)
    """

    reads: ClassVar[str] = ""  # what `read` takes, for errors

    @classmethod
    def of(cls, value: Any, name: str) -> Self:
        """`value` itself, or what a dictionary of its fields describes, or a text or path where `read` takes one; the
        defaults for None. Whatever takes settings from a user takes them through here.

        Raises `ConfigError`, beginning with `name`, for anything else and for what `cls` does not take.
        """
        if isinstance(value, cls):
            return value
        try:
            if cls.reads and isinstance(value, str | os.PathLike):
                return cls.read(value)
            if value is None or isinstance(value, Mapping):
                return cls(**(value or {}))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        remedy = f"give {cls.__name__}{cls.reads}, or a dictionary of {', '.join([*cls.model_fields][:6])}"
        raise ConfigError(wrong_type(name, value, remedy))

    @classmethod
    def read(cls, text: str | os.PathLike[str]) -> Self:
        """What a text or a path stands for."""
        raise ConfigError(wrong_type(cls.__name__, text, "it is read from no text; give a dictionary of its fields"))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, which are checked; raises `ConfigError`."""
        copy = super().model_copy(deep=deep)
        return copy if update is None else type(self)(**{**dict(copy), **update})

    def __setattr__(self, name: str, value: Any) -> None:
        remedy = f"make another: model_copy(update={{{name!r}: {value!r:.40}}})"
        raise ConfigError(f"{type(self).__name__} cannot be changed; {redact(remedy)}")


def items_of(values: Any, kind: type | tuple[type, ...], name: str, remedy: str) -> list[Any]:
    """`values` as a list: one of `kind`, or several in any iterable.

    Raises `DataError` with `name`, what was given, and `remedy` for anything else.

    Example:
        >>> items_of(["x"], int, "numbers", "give integers")
        Traceback (most recent call last):
        stepwise.errors.DataError: numbers[0] is 'x' (str); give integers
    """
    if isinstance(values, kind):
        return [values]
    if isinstance(values, str | Mapping | BaseModel) or not isinstance(values, Iterable):
        raise DataError(wrong_type(name, values, remedy))
    items = list(values)
    for place, item in enumerate(items):
        if not isinstance(item, kind):
            raise DataError(wrong_type(f"{name}[{place}]", item, remedy))
    return items


def _explain(error: ValidationError, fields: Mapping[str, Any]) -> str:
    """What pydantic found wrong with the arguments of a class with `fields`, on one line, with what a field means."""
    names = list(fields)
    place = next(iter(error.errors()[0]["loc"]), "")
    place = dict(enumerate(names)).get(place, "") if isinstance(place, int) else place
    meant = getattr(fields.get(place), "description", None)
    meaning = f" ({' '.join(meant.split())})" if meant else ""
    faults = {item["type"]: item["loc"] for item in reversed(error.errors()) if len(item["loc"]) == 1}
    unknown = [str(faults[kind][0]) for kind in ("unexpected_keyword_argument", "extra_forbidden") if kind in faults]
    missing = [str(item["loc"][0]) for item in error.errors() if item["type"] in ("missing", "missing_argument")]
    if "unexpected_positional_argument" in faults:
        return f"it takes at most {len(names)} arguments: {', '.join(names)}"
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(names)}"
        return f"there is no field {unknown[0]!r}; {hint}"
    if missing:
        return f"{', '.join(missing)} must be given{meaning}"
    return reason_of(error, names) + meaning


# Kept, since of a plain dataclass each takes milliseconds to make.
_adapter: Callable[[Any], TypeAdapter[Any]] = functools.lru_cache(maxsize=512)(TypeAdapter)


def to_json(value: Any) -> str:
    """One line of JSON for any of our types, always encodable: a lone surrogate becomes "?".

    >>> from stepwise.types import Problem
    >>> to_json(Problem("p", "1 + 1?", "2"))
    '{"id": "p", "question": "1 + 1?", "answer": "2", "reference": null, "source": ""}'
    """
    line = json.dumps(_adapter(type(value)).dump_python(value, mode="json"), ensure_ascii=False)
    return line.encode("utf-8", "replace").decode()


def from_json(cls: type[T], line: str | bytes) -> T:
    """The inverse of `to_json`; raises pydantic.ValidationError naming the wrong field.

    >>> from stepwise.types import Problem
    >>> from_json(Problem, '{"id": "p", "question": "1 + 1?"}').question
    '1 + 1?'
    """
    adapter: TypeAdapter[T] = _adapter(cls)
    return adapter.validate_json(line)
