"""Small frozen types that check what they are given, and say what is wrong with it in one line.

`@record` makes a pydantic dataclass: positional construction, equality, hashing, JSON by `types.to_json`. What pydantic
refuses becomes a `DataError` that names class, field and value, without pydantic's own text and its URL.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from stepwise.errors import ConfigError, DataError, reason_of

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
        names = [field.name for field in dataclasses.fields(decorated) if field.init]
        checked = decorated.__init__

        @functools.wraps(checked)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                checked(self, *args, **kwargs)
            except ValidationError as error:
                raise DataError(f"{type(self).__name__}: {explain(error, names)}") from None

        decorated.__init__ = __init__
        return decorated  # type: ignore[no-any-return]

    return decorate


class Checked(ModelMetaclass):
    """Metaclass of pydantic models whose constructor raises `ConfigError`, as that of a `record` raises `DataError`."""

    model_fields: dict[str, Any]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """A model."""
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            field = cls.model_fields.get(str(next(iter(error.errors()[0]["loc"]), "")))
            remedy = f" ({field.description})" if field is not None and field.description else ""
            raise ConfigError(f"{cls.__name__}: {explain(error, list(cls.model_fields))}{remedy}") from None


def explain(error: ValidationError, names: list[str]) -> str:
    """What pydantic found wrong with the arguments of a class whose fields are `names`, on one line."""
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
        return f"{', '.join(missing)} must be given"
    return reason_of(error, names)
