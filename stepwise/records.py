"""Small frozen types that check what they are given, and say what is wrong with it in one line.

`@record` makes a pydantic dataclass: positional construction, equality, hashing, JSON by `types.to_json`. What pydantic
refuses becomes a `DataError` that names class, field and value, without pydantic's own text and its URL.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from stepwise.errors import DataError, reason_of

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(Field, dataclasses.field))
def record(*, allow_inf_nan: bool = True, repr: bool = True, eq: bool = True) -> Callable[[type[T]], type[T]]:
    """Decorate a class with annotated fields.

    Args:
        allow_inf_nan: False refuses infinities and NaN in its numbers.
        repr: whether it shows its fields.
        eq: whether equal fields make equal objects; else each is equal to itself alone.

    Example:
        >>> @record()
        ... class Point:
        ...     x: int
        >>> Point(0.5)
        Traceback (most recent call last):
        stepwise.errors.DataError: Point: x is 0.5: input should be a valid integer, got a number with a fractional part
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=allow_inf_nan, arbitrary_types_allowed=True)

    def decorate(cls: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True, repr=repr, eq=eq, config=config)(cls)
        names = [field.name for field in dataclasses.fields(made) if field.init]
        checked = made.__init__

        @functools.wraps(checked)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                checked(self, *args, **kwargs)
            except ValidationError as error:
                raise DataError(f"{type(self).__name__}: {explain(error, names)}") from None

        made.__init__ = __init__
        return made  # type: ignore[no-any-return]

    return decorate


def explain(error: ValidationError, names: list[str]) -> str:
    """What pydantic found wrong with the arguments of a class whose fields are `names`, on one line."""
    unknown = [str(item["loc"][0]) for item in error.errors() if item["type"] == "unexpected_keyword_argument"]
    missing = [str(item["loc"][0]) for item in error.errors() if item["type"] in ("missing", "missing_argument")]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(names)}"
        return f"there is no field {unknown[0]!r}; {hint}"
    if missing:
        return f"{', '.join(missing)} must be given"
    return reason_of(error, names)
