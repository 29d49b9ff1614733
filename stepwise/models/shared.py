"""Engines that are shared within the process: one per weights file, adapter and settings."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from stepwise.config import LoadConfig
from stepwise.errors import BackendError, ConfigError
from stepwise.models.engine import Engine
from stepwise.models.hub import adapter_path, gguf_file
from stepwise.runs.progress import announce, stage

LOAD_FIELDS = ("context", "sequences", "threads", "gpu_layers", "kv_type", "flash_attention", "adapter")
"""What of a model's configuration its engine depends on, besides the weights."""
_lock = threading.Lock()
_engines: dict[Hashable, Engine] = {}


def shared_engine(config: LoadConfig) -> Engine:
    """The engine of `config`, loaded where no call before has loaded it.

    A file that was replaced since is another model: it gets an engine of its own. Raises as `load_engine` does.
    """
    key = _key(config)
    engine = _engines.get(key)
    if engine is None:
        with _lock:  # a second caller waits for the first one's engine instead of loading another
            engine = _engines.get(key)
            if engine is None:
                engine = load_engine(config)
                identity(engine)  # hashes the file while it is the one that was loaded
                _engines[key] = engine
    return engine


def identity(engine: Engine) -> str:
    """Hashes of weights and adapter, as they stand at the end of the engine's name."""
    return engine.name.rpartition("@")[2]


def close_engines(path: str | Path | None = None) -> int:
    """Close the shared engines of the weights at `path`, or all of them; says how many. The next call loads anew."""
    with _lock:
        found = [key for key, engine in _engines.items() if path is None or engine.path == Path(path)]
        engines = [_engines.pop(key) for key in found]
    for engine in engines:
        engine.close()
    return len(engines)


def _key(config: LoadConfig) -> Hashable:
    path = gguf_file(config.model.partition("/")[2])
    adapter = _stamp(adapter_path(config.lora)) if config.lora is not None else None
    # A forked child cannot use its parent's engines.
    return os.getpid(), _stamp(path), adapter, tuple(getattr(config, field) for field in LOAD_FIELDS)


def _stamp(path: Path) -> Hashable:
    """Where a file lies and what changes when it is replaced or rewritten."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}; give the path of a LoRA adapter in GGUF") from error
    return os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns


def load_engine(config: LoadConfig, **overrides: Any) -> Engine:
    """The engine of a model or scorer configuration: "llamacpp/NAME", where NAME is a lab model, the path of a GGUF, or
    "hf:ORG/REPO/FILE.gguf".

    `overrides` go to `Engine.load`. Raises ConfigError for another provider, DataError or BackendError where the
    model cannot be loaded.
    """
    provider, _, name = config.model.partition("/")
    if provider != "llamacpp":
        raise ConfigError(f'model is "{config.model}"; the engine runs GGUF files: write "llamacpp/path/to/model.gguf"')
    settings = {field: getattr(config, field) for field in LOAD_FIELDS}
    settings |= {"adapter": config.lora, "train_from": config.train_from, **overrides}
    doing = f"loading {config.model}" + (f" with {config.adapter}" if config.adapter else "")
    announce(doing)
    with stage(doing):
        return Engine.load(gguf_file(name), **settings)
