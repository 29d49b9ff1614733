"""The examples in the docstrings of the engine, of the files it loads and of export are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    *(f"stepwise.models.engine.{name}" for name in ("cache", "engine", "jobs", "sampling", "schema", "stopping")),
    *(f"stepwise.models.engine.{name}" for name in ("vocab", "weights")),
    *(f"stepwise.models.{name}" for name in ("dialects", "hub", "safetensors")),
    "stepwise.export.gguf",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    if name.startswith("stepwise.export"):
        pytest.importorskip("gguf", reason='needs pip install "stepwise[train]"')
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert (failed, attempted > 0) == (0, True)
