"""The examples in the docstrings of routing, of plugins and of records are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

NAMES = (
    "compare", "learned", "policies", "policy", "ppo", "query", "saved", "settings", "signal_policies", "signals",
    "token_signals",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [*(f"stepwise.routing.{name}" for name in NAMES), "stepwise.plugins", "stepwise.records"]
)
def test_the_examples_of_a_module_run(name: str) -> None:
    module = importlib.import_module(name)
    more = importlib.import_module("stepwise.types")
    names = {name: getattr(more, name) for name in ("Problem", "Step", "TokenStats")}
    failed, attempted = doctest.testmod(module, extraglobs=names)
    assert (failed, attempted > 0) == (0, True)
