"""Other places that a run's metrics go to: TensorBoard, W&B, MLflow, trackio, each an optional package.

metrics.jsonl is the record of a run and is written by the trainer itself. What is here is for watching: a sink that
fails while the run goes on is named in a warning, once, and the run goes on.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
import os
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from stepwise.errors import ConfigError, MissingDependencyError, redact
from stepwise.io import write_text

STATE = "sinks.json"
"""In the run's directory: the names under which W&B, MLflow and trackio know the run, for going on with it."""
PROJECT = "stepwise"
"""The project (W&B, trackio) or experiment (MLflow) that runs are put in."""
_PATIENCE = 3  # failures in a row, after which a sink is asked no more: each may take a network's time-out


class Sink(Protocol):
    """One of them. Both methods may raise anything."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step."""

    def close(self, *, finished: bool) -> None:
        """Write what is still open; `finished` is False where the run failed or was interrupted."""


class Sinks:
    """All sinks of one run behind one door; without any, every call does nothing."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)
        self._failed: dict[str, int] = {}  # failures in a row, by name
        self._told: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The sinks that are still written to."""
        return tuple(self._sinks)

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Hand the numbers of a metrics row to every sink; what is no finite number (None, text) is left out."""
        values = numbers(row)
        for name, sink in list(self._sinks.items()):
            if self._tried(name, partial(sink.log, step, values)):
                self._failed[name] = 0
                continue
            self._failed[name] = self._failed.get(name, 0) + 1
            if self._failed[name] >= _PATIENCE:
                del self._sinks[name]

    def close(self, *, finished: bool = True) -> None:
        """Close every sink; a second call does nothing."""
        while self._sinks:
            name, sink = self._sinks.popitem()
            self._tried(name, partial(sink.close, finished=finished))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close(finished=kind is None)

    def _tried(self, name: str, call: Callable[[], None]) -> bool:
        """Whether `call` went through; the first time it does not, a warning says so."""
        try:
            call()
        except Exception as error:  # whatever a package or a network can raise: hours of training weigh more
            if name not in self._told:
                self._told.add(name)
                warnings.warn(
                    f"the sink {name!r} failed ({type(error).__name__}: {redact(str(error))}); training goes on and "
                    f"metrics.jsonl has every row. After {_PATIENCE} failures in a row it is left out; said once",
                    stacklevel=4,
                )
            return False
        return True


def open_sinks(names: Sequence[str], out: str | Path, run_name: str, config: Mapping[str, Any]) -> Sinks:
    """The sinks called `names` (of `NAMES`) for the run in the directory `out`; a run that is gone on with stays one.

    `config` is shown beside the curves. Raises ConfigError for an unknown name and where a sink cannot be opened (no
    login, no server), MissingDependencyError where its package is missing: both before anything is computed.
    """
    for name in names:
        if name not in _OPENERS:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise ConfigError(f'sinks: "{name}" is none of {", ".join(NAMES)}{hint}')
    folder, opened = Path(out), Sinks({})
    try:
        for name in dict.fromkeys(names):
            opened._sinks[name] = _opened(name, folder, run_name, config)
    except BaseException:
        opened.close(finished=False)
        raise
    return opened


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, without its `step`; truth values are no numbers."""
    return {
        name: value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level, `rl.credit.scheme`, each value as text."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def _opened(name: str, out: Path, run_name: str, config: Mapping[str, Any]) -> Sink:
    module, package, opener = _OPENERS[name]
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f'the sink "{name}" needs the package {package} ({error}); install it with: pip install {package}'
        ) from error
    try:
        return opener(loaded, out, run_name, config)
    except Exception as error:
        reason = f"{type(error).__name__}: {redact(str(error))}"
        raise ConfigError(f'the sink "{name}" cannot be opened ({reason}); mend that, or leave it out') from error


class _TensorBoard:
    """Event files in `out`/tensorboard."""

    def __init__(self, module: Any, out: Path, run_name: str, config: Mapping[str, Any]) -> None:
        self._open, self._folder = module.SummaryWriter, out / "tensorboard"
        self._writer: Any = None
        self._settings = "\n".join(f"    {name} = {value}" for name, value in flat(config).items())  # Markdown's code
        self._name = run_name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            # Steps from this one on that an earlier process wrote, after its last checkpoint, are hidden by purge_step.
            self._writer = self._open(log_dir=str(self._folder), purge_step=step)
            self._writer.add_text("config", f"{self._name}\n\n{self._settings}", step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    """A run of Weights & Biases; WANDB_MODE, WANDB_PROJECT and so on count as they do everywhere."""

    def __init__(self, module: Any, out: Path, run_name: str, config: Mapping[str, Any]) -> None:
        known = _remembered(out, "wandb") or secrets.token_hex(8)
        _remember(out, "wandb", known)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = module.init(
            project=project, name=run_name, id=known, resume="allow", dir=str(out), config=dict(config),
            reinit="create_new",
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _Mlflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says; a client of our own, so that no active run is touched."""

    def __init__(self, module: Any, out: Path, run_name: str, config: Mapping[str, Any]) -> None:
        self._entities, self._client = importlib.import_module("mlflow.entities"), module.MlflowClient()
        known = _remembered(out, "mlflow")
        if known:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return
        where = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(where)
        experiment = found.experiment_id if found else self._client.create_experiment(where)
        self._id = str(self._client.create_run(experiment, run_name=run_name).info.run_id)
        _remember(out, "mlflow", self._id)
        settings = [self._entities.Param(name, value[:500]) for name, value in flat(config).items()]
        for first in range(0, len(settings), 100):  # most parameters that one call may have
            self._client.log_batch(self._id, params=settings[first : first + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, status="FINISHED" if finished else "FAILED")


class _Trackio:
    """A run of trackio; TRACKIO_SPACE_ID and so on count as they do everywhere."""

    def __init__(self, module: Any, out: Path, run_name: str, config: Mapping[str, Any]) -> None:
        known = _remembered(out, "trackio")
        # trackio tells runs apart by name, so the name gets an ending: two directories may be called alike.
        name = known or f"{run_name}-{secrets.token_hex(3)}"
        _remember(out, "trackio", name)
        self._run = module.init(project=PROJECT, name=name, config=flat(config), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish()


_OPENERS: dict[str, tuple[str, str, Callable[[Any, Path, str, Mapping[str, Any]], Sink]]] = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard", _TensorBoard),
    "wandb": ("wandb", "wandb", _Wandb),
    "mlflow": ("mlflow", "mlflow", _Mlflow),
    "trackio": ("trackio", "trackio", _Trackio),
}
NAMES: tuple[str, ...] = tuple(_OPENERS)
"""What `open_sinks` knows."""


def _remembered(out: Path, name: str) -> str | None:
    path = out / STATE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known.get(name)


def _remember(out: Path, name: str, value: str) -> None:
    path = out / STATE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_text(path, json.dumps({**known, name: value}, indent=1) + "\n")
