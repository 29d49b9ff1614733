"""Checkpoints of a training run: the adapter, the optimizer and where the run was.

Nothing random is kept: random numbers follow from the run's seed and the step. A checkpoint is a directory that gets
its name once it is whole; until then the one before it stays, under its own name or with `.old` after it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.errors import DataError
from stepwise.training.lora import LAYOUT, Trainee

if TYPE_CHECKING:
    from stepwise.runs.directory import RunDirectory

FOLDER = "checkpoint"
_FILES = ("state.json", "optimizer.pt", *(f"adapter/{name}" for name in LAYOUT))


def claim_state(directory: RunDirectory) -> Path:
    """The folder of a run's checkpoints; its files count as the run's own, so that `--overwrite` removes them."""
    for folder in (FOLDER, f"{FOLDER}.old"):
        for name in _FILES:
            directory.claim(f"{folder}/{name}")
    return directory.path / FOLDER


def save_state(folder: str | Path, step: int, trainee: Trainee, optimizer: Any, extra: dict[str, Any]) -> None:
    """Make the state after `step` steps the checkpoint `folder`; `extra` is plain JSON."""
    import torch

    folder = Path(folder)
    draft, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    trainee.save(draft / "adapter")
    torch.save(optimizer.state_dict(), draft / "optimizer.pt")
    (draft / "state.json").write_text(json.dumps({"step": step, "extra": extra}) + "\n")
    for path in draft.rglob("*"):
        _sync(path)
    if _whole(folder):
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(draft, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_state(folder: str | Path, trainee: Trainee, optimizer: Any) -> tuple[int, dict[str, Any]] | None:
    """Put the checkpoint `folder` into trainee and optimizer; its step and extra, None where there is none."""
    import torch

    folder = Path(folder)
    place = folder if _whole(folder) else folder.with_name(folder.name + ".old")
    if not _whole(place):
        return None
    try:
        kept = json.loads((place / "state.json").read_text())
        optimizer.load_state_dict(torch.load(place / "optimizer.pt", weights_only=True, map_location=trainee.device))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{place} is damaged ({error!s:.100}); remove it, and the run begins anew") from None
    trainee.load_adapter_weights(place / "adapter")
    return int(kept["step"]), dict(kept["extra"])


def _whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
