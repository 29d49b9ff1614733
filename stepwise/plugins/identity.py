"""What an object of a user's is: its class, its settings and the code it was defined by, as one text.

What is kept under such a text (scores, the card of a saved policy, a run's directory) is never taken for that of an
object that is set, or written, in another way.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import re
import sys
import sysconfig
import uuid
from collections.abc import Iterator, Mapping, Set
from enum import Enum
from functools import lru_cache
from pathlib import Path, PurePath
from types import CellType, FunctionType, MethodType
from typing import Any

from stepwise.errors import ConfigError

_LONG = 300  # characters: longer settings are shown by their hash
_LIBRARY = Path(__file__).parents[1]
_PYTHON = Path(sysconfig.get_path("stdlib"))
_EMPTY = CellType()
_INSTALLED = {"site-packages", "dist-packages"}


def settings_text(value: Any, arguments: Mapping[str, Any]) -> str:
    """How `value` is set, as JSON; a hash of that where it is long.

    That is what its constructor was given, `arguments`, as it stands now under the same name, and its other public
    attributes that are numbers, texts and tuples; lists and the like beside the arguments are records of what it did,
    as its `usage` is. Raises `ConfigError` for an argument that has no text, such as a network.

    Example:
        >>> import types
        >>> settings_text(types.SimpleNamespace(words=["a", "b"], scale=0.5, calls=[]), {"words": []})
        '{"scale": 0.5, "words": ["a", "b"]}'
    """
    settings = {}
    public = {key: part for key, part in vars(value).items() if key[0] != "_" and key != "usage"}
    for key, part in {**arguments, **public}.items():
        if key in arguments or isinstance(part, str | int | float | tuple | frozenset | None):
            try:
                settings[key] = plain(part)
            except TypeError as error:
                raise ConfigError(
                    f"{type(value).__name__}.{key} {error}, so what is kept for one could be taken for another's; give "
                    "the class a property `identity`, a text that says how it is set"
                ) from None
    text = json.dumps(settings, sort_keys=True)
    return text if len(text) <= _LONG else _hash(text.encode())


def source_of(module: str) -> str:
    """A hash of the file of `module` and of all modules beside it that it imports, at whatever depth.

    "" for the library's own and Python's; what was installed apart from the module is not looked into. Another text at
    each call for a module without a file, such as a notebook's.

    Example:
        >>> source_of("json"), len(source_of("not_a_file")) > 0
        ('', True)
    """
    if module in sys.builtin_module_names:
        return ""
    if (first := file_of(module)) is None:
        return f"unsaved-{uuid.uuid4().hex[:8]}"
    digests: dict[Path, str] = {}
    queue = [(module, first)]
    while queue:
        name, file = queue.pop()
        if file not in digests and _is_followed(file, name, module):
            stamp = file.stat()
            digests[file], imported = _read(file, name, stamp.st_mtime_ns, stamp.st_size)
            queue += [(each, found) for each in imported if (found := file_of(each)) is not None]
    return _hash("".join(digests[file] for file in sorted(digests)).encode()) if digests else ""


def plain(value: Any) -> Any:
    """`value` as JSON has it, the same in every process; raises TypeError for a kind of which there is no saying.

    Example:
        >>> plain({"words": {"b", "a"}, "shape": (2, 3)})
        {'words': ['a', 'b'], 'shape': [2, 3]}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum | PurePath):
        return str(value)
    if isinstance(value, Mapping):
        pairs = [[plain(key), plain(inner)] for key, inner in value.items()]
        return dict(pairs) if all(isinstance(key, str) for key in value) else sorted(pairs, key=json.dumps)
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Set):
        return sorted(map(plain, value), key=json.dumps)
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    if isinstance(value, bytes | bytearray):
        return _hash(bytes(value))
    if isinstance(value, FunctionType) and "<" in value.__qualname__:  # a lambda, or a function within another
        return [_code(value), *_local(value)]
    if isinstance(value, type | FunctionType):
        return _code(value)
    if isinstance(value, MethodType):
        return [plain(value.__func__), plain(value.__self__)]
    if isinstance(getattr(value, "identity", None), str):
        return value.identity
    if dataclasses.is_dataclass(value):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return [plain(type(value)), fields]
    if callable(dump := getattr(value, "model_dump", None)):
        return [plain(type(value)), plain(dump())]
    if hasattr(value, "dtype") and callable(getattr(value, "tobytes", None)):  # numpy's
        return [str(value.dtype), list(value.shape), _hash(value.tobytes())]
    if type(value).__module__.startswith("stepwise.") and isinstance(getattr(value, "name", None), str):
        return value.name
    raise TypeError(f"is a {type(value).__name__}, of which cannot be said which one it is")


@lru_cache(maxsize=1024)
def _code(value: type | FunctionType) -> str:
    """A class or function with its code as it is when it is first asked about."""
    return f"{value.__module__}:{value.__qualname__} {source_of(value.__module__)}".rstrip()


def _local(value: FunctionType) -> list[Any]:
    """What tells functions of one name apart: where they stand, and what they took with them."""
    code, cells = value.__code__, value.__closure__ or ()
    held = [cell.cell_contents for cell in cells if cell != _EMPTY and cell.cell_contents is not value]
    place = [code.co_firstlineno, _hash(repr([*code.co_positions()]).encode())]
    return [*place, _hash(code.co_code), plain(held), plain(value.__defaults__), plain(value.__kwdefaults__)]


def _is_followed(file: Path, name: str, module: str) -> bool:
    """Whether the file of module `name` counts as a part of `module`."""
    if file.is_relative_to(_LIBRARY):
        return False
    if _INSTALLED.intersection(file.parts):
        return name.partition(".")[0] == module.partition(".")[0]
    return not file.is_relative_to(_PYTHON)


def file_of(name: str) -> Path | None:
    """The source file of a module, which is not imported for it; None where there is none.

    Example:
        >>> file_of("json").name
        '__init__.py'
    """
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded is not None:
        return Path(loaded).resolve() if Path(loaded).is_file() else None
    if name == "__main__":
        return None
    inside = Path(*name.split("."))
    for folder in (*sys.path, os.getcwd()):  # where `load_plugin` looks
        for file in (Path(folder) / inside / "__init__.py", Path(folder) / f"{inside}.py"):
            if file.is_file():
                return file.resolve()
    return None


@lru_cache(maxsize=4096)
def _read(file: Path, name: str, mtime_ns: int, size: int) -> tuple[str, tuple[str, ...]]:
    """The hash of a source file, and the modules that module `name` in it may import; by time and size, since it may
    change.
    """
    data = file.read_bytes()
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):  # no Python, or what importing it says itself
        return _hash(data), ()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return _hash(data), tuple(_named(tree, package))


def _named(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, above), *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
