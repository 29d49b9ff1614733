"""Every public class and function has an example in its docstring, and the examples are true."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import stepwise

MODULES = ["stepwise", *(found.name for found in pkgutil.walk_packages(stepwise.__path__, "stepwise."))]
USUAL = ("Problem", "Step", "TokenStats", "Trace", "Usage")  # what examples use without importing it
PROMPTS = "stepwise.critics.signatures"  # the docstrings of its classes are what models read
BLOCK = re.compile(r"^Example:\n((?:(?:    .*)?\n)+)", re.MULTILINE)


def load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))


def public(module: ModuleType) -> dict[str, Any]:
    """What a module defines at its top under a name without an underscore."""
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return {
        name: value
        for name, value in own.items()
        if not name.startswith("_") and (inspect.isfunction(inspect.unwrap(value)) or inspect.isclass(value))
        if not (module.__name__ == PROMPTS and inspect.isclass(value))
    }


def has_example(value: Any) -> bool:
    """A session, a section of that name, or a block of code that stands by itself."""
    text = value.__doc__ or ""  # not what is inherited
    code = "\n\n    " in inspect.cleandoc(text)
    return ">>>" in text or "Example:" in text or code


def wrong_calls(code: str, names: dict[str, Any]) -> Iterator[str]:
    """Calls in `code` of functions and classes among `names`, or of `sw`, that these do not take."""
    tree = compile(code, "example", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        match node.func:
            case ast.Attribute(value=ast.Name(id="sw"), attr=name):
                value = getattr(stepwise, name)
            case ast.Name(id=name) if name in names and name not in bound:
                value = names[name]
            case _:
                continue
        is_open = any(isinstance(each, ast.Starred) for each in node.args) or None in [k.arg for k in node.keywords]
        is_exception = inspect.isclass(value) and issubclass(value, Exception)  # some have no signature
        if is_open or is_exception or not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        try:
            inspect.signature(value).bind(*node.args, **{str(each.arg): None for each in node.keywords})
        except TypeError as error:
            yield f"{ast.unparse(node)}: {error}"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_an_example(name: str) -> None:
    assert [key for key, value in public(load(name)).items() if not has_example(value)] == []


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    module = load(name)
    types = importlib.import_module("stepwise.types")
    usual = {key: getattr(types, key) for key in USUAL}
    assert doctest.testmod(module, extraglobs=usual).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_examples_that_are_not_run_are_calls_that_can_be_made(name: str) -> None:
    module = load(name)
    wrong = []
    for value in public(module).values():
        for block in BLOCK.findall(f"{inspect.cleandoc(value.__doc__ or '')}\n"):
            if ">>>" not in block:
                wrong += wrong_calls(textwrap.dedent(block), vars(module))
    assert wrong == []


@pytest.mark.parametrize(
    "shown", ["Does it.\n\nSo:\n\n    it()\n", "Does it.\n\nExample: see `it`.", "Does it.\n\n>>> it()"]
)
def test_a_name_without_an_example_is_seen(shown: str) -> None:
    def it() -> None: ...

    it.__doc__ = "Does it.\n\nRaises nothing."
    assert not has_example(it)
    it.__doc__ = shown
    assert has_example(it)


def test_a_call_that_cannot_be_made_is_seen() -> None:
    assert list(wrong_calls("load('json')\nload(name='json')", {"load": load})) == []
    assert len([*wrong_calls("load(module='json')\nsw.grade('2', gold='2', nothing=1)", {"load": load})]) == 2
