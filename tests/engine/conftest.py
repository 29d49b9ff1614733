"""Engines on a tiny random model in F32, with an F32 cache and no flash attention, so that results can be
compared exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwise.models.engine import Engine

LoadEngine = Callable[..., Engine]


@pytest.fixture
def load(tiny_gguf_path: Path) -> Iterator[LoadEngine]:
    """A loader of fresh engines that closes them at the end."""
    engines: list[Engine] = []

    def make(path: Path = tiny_gguf_path, **settings: Any) -> Engine:
        exact = {"context": 256, "sequences": 8, "kv_type": "f32", "flash_attention": False}
        engines.append(Engine.load(path, **(exact | settings)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
