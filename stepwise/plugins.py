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
from collections.abc import Collection, Mapping
from typing import Any

from stepwise.errors import ConfigError, reason_of


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
            f"by name if you trust it: allow_import=[{module_name!r}], or --allow-import {module_name}"
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
    """Raise `ConfigError`, beginning with `field`, unless `value` is a `base` or a complete subclass of it."""
    is_class = inspect.isclass(value)
    name = value.__qualname__ if is_class else type(value).__qualname__
    wanted = getattr(base, "__qualname__", str(base))
    if not (issubclass(value, base) if is_class else isinstance(value, base)):
        raise ConfigError(
            f"{field}: {name} is no {wanted}; write `class {name}({wanted})`, with {wanted} from {base.__module__}"
        )
    if missing := sorted(getattr(value, "__abstractmethods__", ())) if is_class else []:
        signature = str(inspect.signature(getattr(base, missing[0]))) if callable(getattr(base, missing[0])) else ""
        raise ConfigError(
            f"{field}: {name} lacks {', '.join(missing)}, which every {wanted} must have; add `def {missing[0]}"
            f"{signature}`"
        )


def make_plugin(cls: Any, options: Mapping[str, Any], *, field: str) -> Any:
    """`cls(**options)`; raises `ConfigError`, naming class and argument, for arguments that it does not take or want.

    An object that was loaded instead of a class is taken as it is, and takes no options.
    """
    if not inspect.isclass(cls):
        if options:
            raise ConfigError(
                f"{field}: {cls!r} is an object already, so it takes no {', '.join(options)}; name a class"
            )
        return cls
    try:
        known = inspect.signature(cls).parameters
    except ValueError:  # a class in C, which says nothing
        return cls(**options)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for key in () if takes_any else options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise ConfigError(f"{field}: {cls.__qualname__} takes no {key!r}; {hint}")
    missing = [
        parameter.name
        for parameter in known.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name not in options
    ]
    if missing:
        raise ConfigError(f"{field}: {cls.__qualname__} needs {', '.join(missing)}; give it, or a default in the class")
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {cls.__qualname__}({_shown(options)}) failed: {reason_of(error)}") from error


def _module(name: str, path: str, field: str) -> Any:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:  # as for `python script.py`; what is installed comes first
        sys.path.append(here)
    importlib.invalidate_caches()  # the file may be new
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
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


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())
