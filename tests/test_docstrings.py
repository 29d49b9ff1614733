"""Every public name has an example in its docstring, and the examples are true."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import stepwise
from stepwise.errors import StepwiseError

FOUND = [*pkgutil.walk_packages(stepwise.__path__, "stepwise.")]
PACKAGES = ["stepwise", *(found.name for found in FOUND if found.ispkg)]
MODULES = ["stepwise", *(found.name for found in FOUND)]
USUAL = ("Problem", "Step", "TokenStats", "Trace", "Usage")  # what examples use without importing it


def public(package: str) -> list[tuple[str, Any]]:
    """The classes and functions that a package offers, errors left out: one line says when each is raised."""
    module = importlib.import_module(package)
    offered = [(name, getattr(module, name)) for name in getattr(module, "__all__", ())]
    return [
        (name, value)
        for name, value in offered
        if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, StepwiseError))
    ]


def has_example(value: Any) -> bool:
    """A session, a section of that name, or a block of code that stands by itself."""
    text = inspect.getdoc(value) or ""
    code = "\n\n    " in text
    return ">>>" in text or "Example:" in text or code


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_example(package: str) -> None:
    assert [name for name, value in public(package) if not has_example(value)] == []


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    types = importlib.import_module("stepwise.types")
    usual = {key: getattr(types, key) for key in USUAL}
    assert doctest.testmod(module, extraglobs=usual).failed == 0


@pytest.mark.parametrize(
    "shown", ["Does it.\n\nSo:\n\n    it()\n", "Does it.\n\nExample: see `it`.", "Does it.\n\n>>> it()"]
)
def test_a_name_without_an_example_is_seen(shown: str) -> None:
    def it() -> None: ...

    it.__doc__ = "Does it.\n\nRaises nothing."
    assert not has_example(it)
    it.__doc__ = shown
    assert has_example(it)
