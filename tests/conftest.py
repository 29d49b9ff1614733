"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

# Before any import of torch or llama_cpp: spinning OpenMP threads bring a busy machine to a halt.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import pytest
from hypothesis import settings

gc.disable()  # until everything is imported

# A machine that trains in the background is slow now and then: no property test has a deadline.
settings.register_profile("stepwise", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=400)  # `make test-slow`
settings.load_profile("stepwise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--order", type=int, metavar="SEED", help="run the tests in a random order, the same for a seed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--order")
    if seed is not None:
        random.Random(seed).shuffle(items)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # a tenth of the time went into looking through what the imports had left
    gc.enable()


@pytest.fixture(scope="session")
def tiny_gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Qwen3 in F32 with Qwen2's pre-tokenizer; its transformers form is in `.parent / "qwen3"`."""
    pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
    pytest.importorskip("gguf", reason='needs pip install "stepwise[train]"')
    from tests.tiny_models import tiny_gguf

    return tiny_gguf(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
