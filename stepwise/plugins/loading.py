"""A user's own class or object by its import path, "my_package.my_file:MyPolicy", checked before anything runs.

A path that the user typed himself (in code, in his TOML file, on his command line) is imported. One that stands in a
*saved* file came from somebody else, and importing is running code: it is imported only from modules named in `allowed`
(`--allow-import my_package.my_file` on the command line).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from abc import ABC
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from stepwise.errors import ConfigError, StepwiseError, reason_of, wrong_type
from stepwise.plugins.identity import settings_text, source_of

_GIVEN_AS = {
    "Policy": "policy=",
    "Scorer": "scorer=",
    "Signal": "the signal of a policy: Signalled(signal, threshold)",
    "Credit": "rl.credit",
    "Reward": "rl.reward",
}
"""Where a user hands in what inherits from a base, for errors."""
_PLAIN: dict[Any, type] = {int: Integral, float: Real, bool: bool, str: str, type(None): type(None)}
"""The types of arguments that can be told before a constructor runs, with what is taken for one."""


def is_import_path(text: str) -> bool:
    """Whether `text` is written like "package.file:Name", which no name of ours is.

    >>> is_import_path("my_package.my_file:MyPolicy"), is_import_path("threshold")
    (True, False)
    """
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def import_path(value: object) -> str:
    """The path that `load_plugin` finds this class (or the class of this object) under.

    Raises `ConfigError` for one that has none: defined inside a function, or in a notebook or the script that runs.

    Example:
        >>> import fractions
        >>> import_path(fractions.Fraction)
        'fractions:Fraction'
    """
    cls = value if isinstance(value, type) else type(value)
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__":
        raise ConfigError(
            f"{cls.__qualname__} has no import path, since it is defined in {cls.__module__!r}, not at the top of a "
            "module; move it to a file of its own, such as my_file.py, and import it from there"
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def load_plugin(path: str, base: Any, *, field: str, allowed: Collection[str] | None = None) -> Any:
    """The class, function or object at `path`, checked against `base`.

    Args:
        path: "package.file:Name"; the current directory is searched, too, as it is for a script.
        base: the class that it (or, for a class, what it makes) must inherit from; a class must have written every
            abstract method of it. `collections.abc.Callable` takes functions.
        field: where the path was given, for the errors: "routing.policy".
        allowed: the modules that a path from a saved file may name; None for a path that the user gave himself.

    Raises `ConfigError` naming `field`, the path and the remedy.

    Example:
        >>> load_plugin("fractions:Fraction", object, field="routing.policy")
        <class 'fractions.Fraction'>
    """
    if not is_import_path(path):
        raise ConfigError(f'{field} is {path!r}; write an import path as "my_package.my_file:MyClass"')
    module_name, _, name = path.partition(":")
    if allowed is not None and module_name not in allowed:
        raise ConfigError(
            f"{field} is {path!r} in a saved file, and loading it would run code of module {module_name!r}; allow that "
            f"by name if you trust it: allow_import=[{module_name!r}] where it is loaded (of a router "
            f"within a program: where it is made), or --allow-import {module_name}"
        )
    value: Any = _module(module_name, path, field)
    for part in name.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "define it there, or correct the name"
            raise ConfigError(f"{field} is {path!r}: {value.__name__} has no {part!r}; {hint}")
        value = getattr(value, part)
    check_plugin(value, base, field=f"{field} is {path!r}")
    return value


def check_plugin(value: Any, base: Any, *, field: str) -> None:
    """Raise `ConfigError`, beginning with `field`, unless `value` is a `base` or a complete subclass of it, in which no
    name is a misspelt one of `base`.

    >>> from stepwise.routing import Never, Policy
    >>> check_plugin(Never(), Policy, field="policy")
    """
    cls = value if inspect.isclass(value) else type(value)
    name, wanted = cls.__qualname__, getattr(base, "__qualname__", str(base))
    if not (issubclass(value, base) if inspect.isclass(value) else isinstance(value, base)):
        if cls.__module__ == "builtins":
            remedy = f"give a class that inherits from {wanted} of {base.__module__}"
            raise ConfigError(wrong_type(f"{field}, which" if " is " in field else field, value, remedy))
        raise ConfigError(f"{field}: {name} is {_kind_of(cls, wanted, base.__module__)}")
    if not isinstance(base, type) or base not in cls.__mro__:  # a function
        return
    _check_complete(cls, field)
    public = [part for part in dir(base) if not part.startswith("_")]
    fields = {*getattr(cls, "__dataclass_fields__", ()), *_parameters(cls)}
    for part in (part for above in cls.__mro__[: cls.__mro__.index(base)] for part in vars(above)):
        if part.startswith("_") or part in public or part in fields:
            continue
        if near := difflib.get_close_matches(part, public, n=1, cutoff=0.75):
            raise ConfigError(
                f"{field}: {name} has {part!r}, which no {wanted} has; did you mean {near[0]!r}? If it is your own, "
                "begin its name with an underscore"
            )
    for part in public:
        returns = getattr(getattr(base, part), "__annotations__", {}).get("return", "")
        is_async = [inspect.iscoroutinefunction(getattr(owner, part)) for owner in (cls, base)]
        if is_async == [True, False] and "Awaitable" not in str(returns):
            raise ConfigError(f"{field}: {name}.{part} is `async def`, but nobody awaits it; write `def {part}`")
    for key, choices in () if inspect.isclass(value) else getattr(base, "_choices", {}).items():
        check_choice(f"{field}: {name}.{key}", getattr(value, key), choices)


class Plugin(ABC):
    """Base of what a user may write himself. Where nothing else is said its name is that of the class; an abstract
    method that is missing is named when an object is made.

    Example:
        class Early(sw.Policy):  # a Plugin: checked when it is handed in, named in a config, saved and loaded
            def decide(self, view):
                return sw.Keep()
    """

    name: ClassVar[str]
    _choices: ClassVar[Mapping[str, Collection[str]]] = {}  # attributes that are one of a few words
    _arguments: Mapping[str, Any] = {}  # of the constructor, as they were given
    _source: ClassVar[str] = ""  # of its code, as it was when the class was made

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._source = source_of(cls.__module__)
        if "name" not in {*vars(cls), *vars(cls).get("__annotations__", ())}:
            cls.name = cls.__name__

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An object, unless a method is missing."""
        _check_complete(cls, cls.__module__)
        self = super().__new__(cls)
        with suppress(TypeError):  # which the constructor is about to raise
            object.__setattr__(self, "_arguments", _bound(cls, args, kwargs))
        return self


def _kind_of(cls: type, wanted: str, module: str) -> str:
    """What a class that is no `wanted` is instead, and the remedy."""
    kind = next((above for above in cls.__mro__ if Plugin in above.__bases__), None)
    if kind is not None and kind is not cls:
        return (
            f"a {kind.__name__}, where a {wanted} is wanted; give it as {_GIVEN_AS.get(kind.__name__, kind.__name__)}"
        )
    if cls.__module__.startswith("stepwise."):
        return f"no {wanted}; give one, or a class that inherits from {wanted} of {module}"
    return f"no {wanted}; write `class {cls.__qualname__}({wanted})`, with {wanted} from {module}"


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise `ConfigError`, with the nearest one, unless `value` is one of `choices`.

    Example:
        >>> check_choice("when", "afer", ("before", "after"))
        Traceback (most recent call last):
        stepwise.errors.ConfigError: when is 'afer'; did you mean 'after'? it is one of 'before', 'after'
    """
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        module, dot, attribute = str(value).rpartition(".")
        dotted = f"a class of your own is named by module:class, {f'{module}:{attribute}'!r}; " if dot else ""
        hint = f"did you mean {near[0]!r}? " if near else dotted
        one = f"it is one of {', '.join(map(repr, choices))}" if choices else "there is none to name; leave it out"
        raise ConfigError(f"{name} is {value!r}; {hint}{one}")


def options_of(value: Any) -> dict[str, Any]:
    """The arguments that `make_plugin` makes `value` again: its fields, or the arguments of `__init__`.

    Raises `ConfigError` where an argument is not kept under its own name.

    Example:
        >>> import datetime
        >>> class Late:
        ...     def __init__(self, start=2):
        ...         self.start = start
        >>> options_of(Late(3))
        {'start': 3}
    """
    names = _parameters(type(value))
    for name in names:
        if not hasattr(value, name):
            cls = type(value).__qualname__
            raise ConfigError(
                f"{cls} takes {name!r}, but has no attribute of that name, so it cannot be made again; write "
                f"`self.{name} = {name}` in its __init__, or make it a dataclass"
            )
    return {name: getattr(value, name) for name in names}


def identity_of(value: Plugin) -> str:
    """The class of `value`, its settings (see `settings_text`) and, of a class of one's own, a hash of its code.

    >>> from stepwise.routing import Threshold
    >>> identity_of(Threshold(0.5))
    'stepwise.routing.policies:Threshold {"threshold": 0.5}'
    """
    cls = type(value)
    return f"{cls.__module__}:{cls.__qualname__} {settings_text(value, value._arguments)} {cls._source}".rstrip()


def make_plugin(cls: Any, options: Mapping[str, Any], *, field: str) -> Any:
    """`cls(**options)`; raises `ConfigError`, naming class and argument, for arguments that it does not take or want.

    An object that was loaded instead of a class is taken as it is, and takes no options.

    Example:
        >>> class Late:
        ...     def __init__(self, start=2):
        ...         self.start = start
        >>> make_plugin(Late, {"start": 3}, field="policy").start
        3
    """
    if not inspect.isclass(cls):
        if options:
            raise ConfigError(
                f"{field}: {cls!r} is an object already, so it takes no {', '.join(options)}; name a class"
            )
        return cls
    parameters = _parameters(cls)
    for key in options:
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(parameters) or 'nothing'}"
            raise ConfigError(f"{field}: {cls.__qualname__} takes no {key!r}; {hint}")
    if missing := [
        key for key, parameter in parameters.items() if parameter.default is parameter.empty and key not in options
    ]:
        raise ConfigError(f"{field}: {cls.__qualname__} needs {', '.join(missing)}; give it, or a default in the class")
    for key, hint in _hints(cls).items():
        if key in options and not _fits(options[key], hint):
            said = getattr(hint, "__name__", hint) if isinstance(hint, type) else hint
            raise ConfigError(f"{field}: {cls.__qualname__}: {key} is {options[key]!r}; its __init__ wants {said}")
    try:
        return cls(**options)
    except StepwiseError as error:
        raise ConfigError(f"{field}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {cls.__qualname__}: {reason_of(error)}") from error


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """What the constructor takes by name."""
    given = inspect.signature(cls).parameters if cls.__init__ is not object.__init__ else {}  # type: ignore[misc]
    return {
        name: parameter
        for name, parameter in given.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _hints(cls: type) -> dict[str, Any]:
    """The types of what the constructor takes; none where they name what is not there when the program runs."""
    with suppress(NameError, TypeError, AttributeError):
        return get_type_hints(cls.__init__)  # type: ignore[misc]
    return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`, or `hint` is not made of plain types alone.

    >>> _fits(1, float | None), _fits("x", float | None), _fits("x", list[float])
    (True, False, True)
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    wanted = [_PLAIN[kind] for kind in kinds if kind in _PLAIN]
    return len(wanted) < len(kinds) or isinstance(value, tuple(wanted))


def _bound(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments by name, with the defaults of those that were not given."""
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    bound = inspect.signature(cls).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _check_complete(cls: type, field: str) -> None:
    for name in sorted(getattr(cls, "__abstractmethods__", ())):
        base = next(above for above in cls.__mro__ if name in vars(above))
        near = difflib.get_close_matches(name, [part for part in vars(cls) if part != name], n=1, cutoff=0.75)
        hint = f"rename {near[0]!r}" if near else f"add `def {name}{inspect.signature(getattr(base, name))}`"
        raise ConfigError(f"{field}: {cls.__qualname__} has no {name}(), which every {base.__name__} must have; {hint}")


def _module(name: str, path: str, field: str) -> Any:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:  # as for `python script.py`; what is installed comes first
        sys.path.append(here)
    importlib.invalidate_caches()  # the file may be new
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name.endswith(".py"):
            remedy = f"{name.removesuffix('.py').replace('/', '.')}:{path.partition(':')[2]}"
            raise ConfigError(f"{field} is {path!r}: write the module without .py, as {remedy!r}") from error
        if missing != name and not name.startswith(f"{missing}."):  # the module is there, and imports one that is not
            raise ConfigError(f"{field} is {path!r}: {name} imports {missing!r}, which is not installed") from error
        raise ConfigError(
            f"{field} is {path!r}: there is no module {missing!r} in {here} or among the installed packages; run from "
            "the directory that holds it, or install it"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{field} is {path!r}: importing {name} failed, {type(error).__name__}: {reason_of(error)}"
        ) from error
