"""Other places that a run's metrics go to: TensorBoard, W&B, MLflow, trackio, each an optional package.

metrics.jsonl is the record of a run and is written by the trainer itself. What is here is for watching, by accelerate's
trackers: one that fails while the run goes on is named in a warning, once, and the run goes on.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from stepwise.errors import ConfigError, MissingDependencyError, redact
from stepwise.io import read_json, write_text
from stepwise.plugins import check_choice

STATE = "sinks.json"
"""In the run's directory: the names under which W&B, MLflow and trackio know the run, for going on with it."""
NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
"""What `open_sinks` knows."""
_PROJECT = "stepwise"  # the project (W&B, trackio) or experiment (MLflow) that runs are put in
_PATIENCE = 3  # failures in a row, after which a sink is asked no more: each may take a network's time-out


class _Sinks:
    """All trackers of one run behind one door; without any, every call does nothing."""

    def __init__(self, trackers: Mapping[str, Any]) -> None:
        self._trackers = dict(trackers)
        self._failures: dict[str, int] = {}  # in a row, of those that ever failed

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Hand the numbers of a metrics row to every tracker; what is no finite number (None, text) is left out."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, partial(tracker.log, numbers(row), step=step))

    def close(self, *, finished: bool = True) -> None:
        """Close every tracker; `finished` is False where the run failed or was interrupted. Again: does nothing."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            self._try(name, partial(_end, name, tracker, finished))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finished=kind is None)

    def _try(self, name: str, call: Callable[[], None]) -> None:
        """Make a call; its first failure is said in a warning, and after some in a row no more is made."""
        try:
            call()
        except Exception as error:  # whatever a package or a network can raise: hours of training weigh more
            if name not in self._failures:
                warnings.warn(
                    f"the sink {name!r} failed ({type(error).__name__}: {redact(str(error))}); training goes on and "
                    f"metrics.jsonl has every row. After {_PATIENCE} failures in a row it is left out; said once",
                    stacklevel=4,
                )
            self._failures[name] = self._failures.get(name, 0) + 1
            if self._failures[name] >= _PATIENCE:
                self._trackers.pop(name, None)
        else:
            self._failures.update({name: 0} if name in self._failures else {})


def open_sinks(names: Sequence[str], out: Path, config: Mapping[str, Any], step: int = 1) -> _Sinks:
    """The sinks called `names` (of `NAMES`) for the run in the directory `out`, whose next step is `step`; a run that
    is gone on with stays one.

    `config` is shown beside the curves. Raises ConfigError for an unknown name and where a sink cannot be opened (no
    login, no server), MissingDependencyError where its package is missing: both before anything is computed.

    Example:
        with open_sinks(["tensorboard"], Path("out/rl"), config.model_dump()) as sinks:
            sinks.log(1, {"reward": 0.5})
    """
    trackers: dict[str, Any] = {}
    try:
        for name in dict.fromkeys([names] if isinstance(names, str) else names):
            check_choice("sinks", name, NAMES)
            trackers[name] = _started(name, out, config, step)
    except BaseException:
        _Sinks(trackers).close(finished=False)
        raise
    return _Sinks(trackers)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, without its `step`; truth values are no numbers.

    >>> numbers({"step": 3, "loss": 0.7, "note": "warm", "done": True})
    {'loss': 0.7}
    """
    return {
        name: value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level, `rl.credit.scheme`, each value as text."""
    settings: dict[str, str] = {}
    for name, value in config.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        settings |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": text}
    return settings


def _started(name: str, out: Path, config: Mapping[str, Any], step: int) -> Any:
    """A tracker at work; its run is a new one, or that of an earlier start of the run in `out`."""
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's own log wants it
    path, settings = out / STATE, _flat(config)
    known = read_json(path, "remove it, and its trackers begin new runs") if path.exists() else {}
    given = known.get(name)
    # trackio tells runs apart by name, so the name gets an ending: two directories may be called alike.
    run = given or {"wandb": secrets.token_hex(8), "trackio": f"{out.name}-{secrets.token_hex(3)}"}.get(name)
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    tracker = {
        # Steps from `step` on that an earlier process wrote, after its last checkpoint, are hidden by purge_step.
        "tensorboard": lambda: tracking.TensorBoardTracker("tensorboard", out, purge_step=step),
        "wandb": lambda: tracking.WandBTracker(
            project, name=out.name, id=run, resume="allow", dir=str(out), config=dict(config), reinit="create_new"
        ),
        "mlflow": lambda: tracking.MLflowTracker(_PROJECT, run_id=run, run_name=out.name),
        "trackio": lambda: tracking.TrackioTracker(_PROJECT, name=run, config=settings, resume="allow", embed=False),
    }[name]()
    try:
        tracker.start()
        if name == "tensorboard":
            text = "\n".join(f"    {key} = {value}" for key, value in settings.items())  # Markdown's code
            tracker.log({"config": f"{out.name}\n\n{text}"}, step=step)
        elif name == "mlflow" and not given:
            run = str(tracker.tracker.info.run_id)
            tracker.store_init_configuration({key: value[:500] for key, value in settings.items()})
    except ImportError as error:
        raise MissingDependencyError(
            f'the sink "{name}" needs the package {name} ({error}); install it with: pip install {name}'
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {redact(str(error))}"
        raise ConfigError(f'the sink "{name}" cannot be opened ({reason}); mend that, or leave it out') from error
    if run and not given:
        write_text(path, json.dumps({**known, name: run}, indent=1) + "\n")
    return tracker


def _end(name: str, tracker: Any, finished: bool) -> None:
    """Write what is still open, and how the run ended where that can be said."""
    if name == "wandb":
        tracker.tracker.finish(exit_code=0 if finished else 1)
    elif name == "mlflow" and not finished:
        import mlflow

        mlflow.end_run(status="FAILED")
    else:
        tracker.finish()
