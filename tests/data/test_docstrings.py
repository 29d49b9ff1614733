"""The examples in the docstrings of data and interventions say what is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import stepwise.data
import stepwise.interventions

PACKAGES = (stepwise.data, stepwise.interventions)
MODULES = [found.name for p in PACKAGES for found in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
