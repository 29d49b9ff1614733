"""Options on the command line: a class of pydantic, read and checked through cyclopts."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from cyclopts import App, ArgumentCollection, CycloptsError, Group, Parameter, UnusedCliTokensError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    create_model,
    field_validator,
)

from stepwise.errors import ConfigError

POSITIONAL = Parameter(show_default=False)
"""Marks an option that is given by its place: `file: Annotated[Path, POSITIONAL]`."""
_SHARED = Group("Shared by all programs", sort_key=1)
_NEGATABLE = Parameter(negative_bool="no-")
PIPE = Parameter(allow_leading_hyphen=True)
"""Marks an option that takes "-" for standard input."""
ColumnNames = Annotated[
    str | None, Field(description="names of a file's columns, question=QUERY,answer=RESULT; needed for unknown ones")
]
"""The option of a program that reads problems."""


def one_of(title: str, *, required: bool = False) -> Parameter:
    """Marks options of which at most one may be given, or exactly one where it is `required`.

    Example:
        from_one = one_of("where problems come from", required=True)
        lab: Annotated[int | None, from_one] = None
        problems: Annotated[Path | None, from_one] = None
    """

    def check(arguments: ArgumentCollection) -> None:
        # By tokens: of a model's fields, cyclopts' own validators see no values.
        given = [argument.name for argument in arguments if argument.tokens]
        if len(given) > 1 or (required and not given):
            names = given or [argument.name for argument in arguments]
            raise ValueError(f"give {'one' if required else 'only one'} of {', '.join(names)}")

    return Parameter(group=Group(title, validator=check))


class Options(BaseModel):
    """Options of a program, one a field: its type is checked by pydantic, and its docstring is shown by --help.

    An option that may be None takes "none". `neutral` names those that do not change what is computed, so that a run
    goes on when they change.

    >>> class Mine(Options):
    ...     n: int = 100
    ...     "how many problems"
    >>> Mine(n=5).n
    5
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    neutral: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for field in cls.model_fields.values():
            field.kw_only = POSITIONAL not in field.metadata
            if field.default is True and _NEGATABLE not in field.metadata:
                field.metadata.append(_NEGATABLE)

    @field_validator("*", mode="wrap")
    @classmethod
    def _none(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            if value == "none":
                return handler(None)
            raise

    def overrides(self) -> list[str]:
        """Settings of the configuration that options of the program's own stand for, as in --set."""
        return []


class SharedOptions(Options):
    """What every program takes.

    >>> SharedOptions(dry_run=True).out
    """

    config: Path | None = None
    """TOML file; without it, the embedded lab"""
    set: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = ()
    """change one setting, for example routing.threshold=0.4"""
    out: Path | None = None
    """output directory; out/NAME without it"""
    dry_run: bool = False
    """print what the run would spend, and do not run"""
    overwrite: bool = False
    """remove the files of an earlier run in --out first"""
    verbose: bool = False
    """show what the library logs, not its warnings alone"""
    debug: bool = False
    """show tracebacks of errors, and all that the library logs"""


OptionsT = TypeVar("OptionsT", bound=Options)


def parse_options(
    command: str, doc: str | None, options: type[OptionsT], argv: Sequence[str]
) -> tuple[OptionsT, SharedOptions] | None:
    """The program's own options and the shared ones; None where help was asked for and has been printed.

    Raises ConfigError for an option that is unknown, missing or wrong.

    >>> class Mine(Options):
    ...     n: int = 100
    >>> own, shared = parse_options("stepwise mine", "Does it.", Mine, ["--n", "5", "--dry-run"])
    >>> own.n, shared.dry_run
    (5, True)
    """

    def read(args: Any = None, shared: Any = None) -> tuple[OptionsT, SharedOptions]:
        return args or options(), shared or SharedOptions()

    read.__annotations__ = {
        "args": Annotated[_shown_for(options, argv) | None, Parameter("*")],
        "shared": Annotated[SharedOptions | None, Parameter("*", group=_SHARED)],
    }
    each = Parameter(
        consume_multiple=1,
        allow_repeating=True,
        negative_bool="",
        negative_iterable="",
        show_default=lambda value: None if value is False or value in (None, ()) else value,
    )
    app = App(
        command,
        doc,
        default_command=read,
        default_parameter=each,
        group_commands=_SHARED,
        help_format="markdown",
        version_flags=(),
    )
    try:
        action, bound, _ = app.parse_args(list(argv), exit_on_error=False, print_error=False)
        result = action(*bound.args, **bound.kwargs)
    except (CycloptsError, ValidationError) as error:
        raise ConfigError(_reason(error)) from None
    return result if action is read else None


def _shown_for(options: type[OptionsT], argv: Sequence[str]) -> type[OptionsT]:
    """For help, the options without those of another choice: `train sft --help` shows no "rl: ..."."""
    possible = _choices_of(options)
    chosen = {*argv[:1]} & possible if {"--help", "-h"}.intersection(argv) else set()
    hidden: dict[str, Any] = {}
    for name, field in options.model_fields.items():
        words, colon, _ = (field.description or "").partition(": ")
        of = {*words.split(", ")}
        if chosen and colon and of <= possible and not chosen & of:
            other = copy(field)
            other.metadata = [*field.metadata, Parameter(show=False)]
            hidden[name] = (field.annotation, other)
    return create_model(options.__name__, __base__=options, __doc__=options.__doc__, **hidden) if hidden else options


def _choices_of(options: type[Options]) -> set[Any]:
    """The words that the option given by its place may be."""
    fields = [field for field in options.model_fields.values() if POSITIONAL in field.metadata]
    return {word for field in fields for word in get_args(field.annotation)}


def _reason(error: CycloptsError | ValidationError) -> str:
    """One line: which option, what was given, what is wrong with it."""
    invalid = error if isinstance(error, ValidationError) else error.__cause__
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{' '.join(error.unused_tokens)} is given, but no option takes it; write --OPTION before it"
    if not isinstance(invalid, ValidationError):
        return str(error.__cause__ if isinstance(error.__cause__, ValueError) else error)
    detail = invalid.errors(include_url=False)[0]
    option = f"--{detail['loc'][0]}".replace("_", "-")
    if detail["type"] == "missing":
        return f"{option} is missing"
    return f"{option} is {detail['input']!s:.80}: {detail['msg'].replace('Input should be', 'it should be')}"
