"""Checkpoints of a training run: the adapter, the optimizer and where the run was.

Nothing random is kept: random numbers follow from the run's seed and the step. A checkpoint is a directory that gets its
name once it is whole, and the one before it is removed after that.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from stepwise.errors import DataError
from stepwise.training.lora import Trainee

_NAME = re.compile(r"step-(\d{6})")


def save_state(folder: str | Path, step: int, trainee: Trainee, optimizer: Any, extra: dict[str, Any]) -> Path:
    """Write the state after `step` steps below `folder`; `extra` is plain JSON."""
    import torch

    folder = Path(folder)
    target, draft = folder / f"step-{step:06d}", folder / f"step-{step:06d}.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    trainee.save(draft / "adapter")
    torch.save(optimizer.state_dict(), draft / "optimizer.pt")
    (draft / "state.json").write_text(json.dumps({"step": step, "extra": extra}) + "\n")
    for path in draft.rglob("*"):
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)
    for old in _found(folder):
        if old != target:
            shutil.rmtree(old)
    return target


def load_state(folder: str | Path, trainee: Trainee, optimizer: Any) -> tuple[int, dict[str, Any]] | None:
    """Put the newest state below `folder` into trainee and optimizer; its step and extra, None where there is none."""
    import torch

    found = _found(Path(folder))
    if not found:
        return None
    place = found[-1]
    try:
        kept = json.loads((place / "state.json").read_text())
        optimizer.load_state_dict(torch.load(place / "optimizer.pt", weights_only=True, map_location=trainee.device))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{place} is damaged ({error!s:.100}); remove it, and the run begins anew") from None
    trainee.load_adapter_weights(place / "adapter")
    return int(kept["step"]), dict(kept["extra"])


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
