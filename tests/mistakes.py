"""How a mistake has to be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import stepwise as sw


def refused(call: Callable[[], Any], kind: type[Exception], says: str) -> str:
    """What is said of it."""
    with pytest.raises(kind, match=says) as caught:
        call()
    assert isinstance(caught.value, sw.StepwiseError)
    assert "pydantic" not in str(caught.value)
    return str(caught.value)
