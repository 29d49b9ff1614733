"""What every section of a configuration is; TOML and dotted overrides, and what is wrong with them in words."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from stepwise.errors import ConfigError, keep_secret, redact
from stepwise.records import Section
from stepwise.types import InNotebook


class FrozenConfig(Section, InNotebook):
    """Immutable, hashable, strict; an error never repeats what may be a secret put in the wrong place.

    >>> class Mine(FrozenConfig):
    ...     threshold: float = 0.5
    >>> Mine(threshold=0.3).model_copy(update={"threshold": 0.4}).threshold
    0.4
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    def __str__(self) -> str:
        return InNotebook.__str__(self)  # pydantic's own puts all settings on one line


def merged(
    defaults: dict[str, Any], path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """`defaults` with the tables of a TOML file on top, and each "dotted.key=value" of `overrides` on top of these.

    Raises ConfigError naming the file when it is missing or not TOML, and for an override without a key or a value.

    >>> merged({"routing": {"threshold": 0.5}, "seed": 0}, None, ["routing.threshold=0.3"])
    {'routing': {'threshold': 0.3}, 'seed': 0}
    """
    data = {} if path is None else _read_toml(Path(path))
    for override in overrides:
        _apply_override(data, override)
    return _merge(defaults, data)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); give the path of a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {redact(str(error))}") from None


def _apply_override(data: dict[str, Any], override: str) -> None:
    """Set one "dotted.key=value" in `data`; a value that is not TOML is taken as a string."""
    key, equals, text = str(override).partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f'override "{redact(key)}": expected key=value, for example routing.threshold=0.4')
    for depth, part in enumerate(parts[:-1], start=1):
        below: Any = data.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f'override "{key.strip()}": {".".join(parts[:depth])} is a value, not a table of keys')
        data = below
    data[parts[-1]] = _toml_value(text.strip())


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` on top, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {'0' if text.startswith('.') else ''}{text}")  # .5 is no TOML
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def explain(error: ValidationError, model: type[BaseModel], file: str, overrides: Sequence[str] = ()) -> str:
    """One line per mistake: where it was given, the dotted key, what is wrong, and what to write instead.

    Example:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(explain(error, cls, "mine.toml", overrides)) from None
    """
    given = [override.partition("=")[0].strip() for override in overrides]
    return "\n".join(_line(item, model, file, given) for item in error.errors(include_url=False))


def _line(item: ErrorDetails, model: type[BaseModel], file: str, given: Sequence[str]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    source = file
    for override in given:
        if key == override or key.startswith(override + ".") or override.startswith(key + "."):
            source = f"--set {override}"
    if item["type"] == "extra_forbidden":
        return f'{source}: unknown key "{redact(key)}"; {_nearest(key, model)}'
    if item["type"] == "missing":
        return f'{source}: "{key}" is missing; {_description(key, model)}'
    if item["type"] == "value_error":
        return f'{source}: "{key}": {item["msg"].removeprefix("Value error, ")}'
    wrong = f'{source}: "{key}" is {_show(item["input"])}'
    if item["type"] == "model_type":
        example = next(dotted for dotted, _ in _keys(model) if dotted.startswith(key + "."))
        return f"{wrong}: expected a table of keys; set one of them, for example {example}"
    expected = item["msg"].replace("Input should be", "expected")
    return f"{wrong}: {expected} ({_description(key, model)})"


def _show(value: Any) -> str:
    text = redact(repr(value))
    kind = {"dict": "table", "list": "array", "str": "string"}.get(type(value).__name__, type(value).__name__)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind})"


def _nearest(key: str, model: type[BaseModel]) -> str:
    """Closest valid key, first among those of the same table, then anywhere by its last part."""
    known = [dotted for dotted, _ in _keys(model)]
    table, _, leaf = key.rpartition(".")
    if leaf == "api_key":
        return f'give the NAME of the environment variable that holds it as "{table}.api_key_env"'
    here = {dotted.rpartition(".")[2]: dotted for dotted in known if dotted.rpartition(".")[0] == table}
    anywhere = {dotted.rpartition(".")[2]: dotted for dotted in reversed(known)}
    for keys, cutoff in ((here, 0.6), (anywhere, 0.8)):
        close = difflib.get_close_matches(leaf, keys, n=1, cutoff=cutoff)
        if close:
            return f'did you mean "{keys[close[0]]}"?'
    said = f"valid keys here are {', '.join(here)}"
    own = f"; an option of the policy, scorer or scheme itself belongs into {table}.options"
    return said + own if "options" in here else said


def _description(key: str, model: type[BaseModel]) -> str:
    text = dict(_keys(model)).get(key)
    return text or "see `stepwise config` for every key and its meaning"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key below `model` with its description, tables before what they hold."""
    for name, field in model.model_fields.items():
        yield prefix + name, field.description or ""
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")


_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


_UPPERCASE_KEY = re.compile(r"(AKIA|ASIA)[A-Z0-9]{12,}")


def variable_name(value: str) -> str:
    """`value`, the name of an environment variable that holds a key; raises ValueError for what may be the key itself.

    >>> variable_name("OPENAI_API_KEY")
    'OPENAI_API_KEY'
    """
    if not _ENV_NAME.fullmatch(value) or _UPPERCASE_KEY.match(value):
        raise ValueError(
            "this does not look like the name of an environment variable (capitals, digits, underscores), so it is "
            "not shown here; put the key in the environment and write its name, for example "
            'api_key_env = "OPENAI_API_KEY"'
        )
    keep_secret(value)
    return value
