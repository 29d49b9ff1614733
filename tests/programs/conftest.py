"""What tests of several programs start from."""

from __future__ import annotations

import pytest

from tests.routing.lab_world import LabWorld


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> LabWorld:
    """Ten lab problems and scripted models in place of the real ones; modules that need others have their own."""
    made = LabWorld(10)
    made.install(monkeypatch)
    return made
