"""Engines that are shared within the process: one per weights file, adapter and settings."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Hashable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stepwise.config import LoadConfig, is_lab
from stepwise.errors import BackendError, ConfigError
from stepwise.models.engine import Engine
from stepwise.models.engine.context import build_id
from stepwise.models.engine.curve import SMALLEST, Curve
from stepwise.models.hub import adapter_path, gguf_file
from stepwise.models.sizes import completed
from stepwise.runs.directory import CURRENT
from stepwise.runs.progress import announce, stage

_log = logging.getLogger(__package__)
LOAD_FIELDS = ("context", "sequences", "threads", "gpu_layers", "kv_type", "flash_attention", "adapter")
"""What of a model's configuration its engine depends on, besides the weights."""
_AS_ASKED = 1 << 62  # how many sequences there is room for was found before
_lock = threading.Lock()
_engines: dict[Hashable, Engine] = {}


def shared_engine(config: LoadConfig) -> Engine:
    """The engine of `config`, loaded where no call before has loaded it.

    A file that was replaced since is another model: it gets an engine of its own. Raises as `load_engine` does.

    Example:
        engine = shared_engine(sw.ModelConfig(model="llamacpp/lab-weak"))
        assert shared_engine(sw.ModelConfig(model="llamacpp/lab-weak")) is engine
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
    _freeze(_frozen_key(config), engine)
    return engine


def keep_with_run(*models: Any) -> None:
    """Keep with the run in progress what models that were handed in loaded were loaded with; at a later start they go
    by the curve that was kept, and are said to differ where they have other sequences or threads.

    Example:
        keep_with_run(weak)  # within an open directory of a run; `collect` does it with the writers it is given
    """
    for engine in dict.fromkeys(engine for model in models for engine in getattr(model, "engines", ())):
        if isinstance(engine, Engine):
            _freeze(f"handed in: {engine.name}", engine)


def identity(engine: Engine) -> str:
    """Hashes of weights and adapter, as they stand at the end of the engine's name.

    Example:
        print(identity(shared_engine(sw.ModelConfig(model="llamacpp/lab-weak"))))  # 11989165
    """
    return engine.name.rpartition("@")[2]


def open_problems(*models: Any) -> int | None:
    """How many problems are to be open at once, so that the engine of each model has as many sequences as its curve
    wants while others wait for another engine, as far as their memory goes; None where no engine has a curve.

    Example:
        window = open_problems(router.models.weak, router.models.strong)
    """
    engines = [engine for model in models for engine in getattr(model, "engines", ())]
    own = [engine for engine in dict.fromkeys(engines) if isinstance(engine, Engine)]
    if not any(engine.curve for engine in own):
        return None
    return min(sum(engine.concurrency for engine in own), max(engine.sequences for engine in own))


def limit_caches(stack: ExitStack, *models: Any) -> None:
    """Until `stack` is closed, have the engine of each model keep an eighth of the prefixes that it may keep beside its
    sequences: for a server, to which questions that are answered seldom come again.

    Example:
        limit_caches(stack, router.models.weak, router.models.strong)
    """
    for engine in {engine for model in models for engine in getattr(model, "engines", ())}:
        if isinstance(engine, Engine):
            engine.limit_cache(1 / 8)
            stack.callback(engine.limit_cache, 1)


def close_engines(path: str | Path | None = None) -> int:
    """Close the shared engines of the weights at `path`, or all of them; says how many. The next call loads anew.

    Example:
        print(close_engines(), "engines were open")
    """
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

    Example:
        with load_engine(sw.ModelConfig(model="llamacpp/lab-weak")) as engine:
            print(engine.name, engine.context)
    """
    provider, _, name = config.model.partition("/")
    if provider != "llamacpp":
        raise ConfigError(f'model is "{config.model}"; the engine runs GGUF files: write "llamacpp/path/to/model.gguf"')
    config = completed(config)
    settings: dict[str, Any] = {field: getattr(config, field) for field in LOAD_FIELDS}
    if not is_lab(config.model):
        settings["kv_memory"] = _AS_ASKED
    settings |= {"adapter": config.lora, "train_from": config.train_from, "curve": "measured"}
    doing = f"loading {config.model}" + (f" with {config.adapter}" if config.adapter else "")
    announce(doing)
    with stage(doing):
        engine = Engine.load(gguf_file(name), **{**settings, **_frozen_settings(config), **overrides})
    _freeze(_frozen_key(config), engine)
    return engine


def _frozen_key(config: LoadConfig) -> str:
    fields = (field for field in LOAD_FIELDS if getattr(config, field) is not None)
    return " ".join([config.model, *(f"{field}={getattr(config, field)}" for field in fields)])


def _frozen_settings(config: LoadConfig) -> dict[str, Any]:
    """What the run in progress loaded this model with at its first start: batches, and with them the last digits of
    every logit, follow from it. Another build of llama.cpp rounds otherwise whatever the settings: that is said.
    """
    run = CURRENT.get()
    if not run or not (facts := run.frozen(_frozen_key(config))):
        return {}
    if (build := facts.pop("build")) != build_id():
        _log.warning(
            "the run began with another build of llama.cpp (%s, now %s): what is drawn from here on may differ in its "
            "last digits from what it would have been", build, build_id(),
        )  # fmt: skip
    return {**facts, "curve": Curve(facts["curve"]) if facts["curve"] else None}


def _freeze(key: str, engine: Engine) -> None:
    """Keep with the run in progress what was found out about this machine; what it has kept holds for the engine."""
    run = CURRENT.get()
    if run is None or (engine.curve is None and engine.parameters < SMALLEST and not run.frozen(key)):
        return
    facts = {name: getattr(engine, name) for name in ("context", "sequences", "threads")}
    facts |= {"curve": engine.curve and engine.curve.to_dict(), "build": build_id()}
    kept = run.freeze(key, facts)
    if kept["curve"] != facts["curve"]:
        engine.set_curve(Curve(kept["curve"]) if kept["curve"] else None)
    names = [name for name in ("sequences", "threads") if kept[name] != facts[name]]
    if names:
        other = "; ".join(f"{name} {kept[name]}, now {facts[name]}" for name in names)
        _log.warning("the run began with %s: what is drawn now may differ in its last digits", other)
