"""A training run's checkpoint: a directory that gets its name once it is whole; until then the one before it stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stepwise.errors import DataError
from stepwise.io import parse_json
from stepwise.training.adapters import LAYOUT
from stepwise.training.lora import Trainee

CHECKPOINT_FILES = ("state.json", "optimizer.pt", *(f"adapter/{name}" for name in LAYOUT))


def check_same(path: Path, known: Any, data: str) -> None:
    """Raise DataError where what lies at `path` was made from other data (a hash) than `data`.

    >>> check_same(Path("out/sft/checkpoint"), known="a1b2", data="a1b2")
    """
    if known != data:
        raise DataError(f"{path} belongs to other data than was given now; give another --out, or --overwrite")


def save_checkpoint(folder: Path, step: int, trainee: Trainee, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Make what there is after `step` steps the checkpoint `folder`.

    Example:
        save_checkpoint(Path("out/sft/checkpoint"), 20, trainee, optimizer, {"data": "a1b2"})
    """
    draft, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    trainee.save(draft / "adapter")
    torch.save(optimizer.state_dict(), draft / "optimizer.pt")
    (draft / "state.json").write_text(json.dumps({"step": step, "extra": state}) + "\n")
    for path in draft.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if _is_whole(folder):
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(draft, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, trainee: Trainee, optimizer: Any) -> tuple[int, dict[str, Any]]:
    """Put the checkpoint `folder` into trainee and optimizer; its step and state, 0 and nothing where there is none.

    Example:
        step, state = load_checkpoint(Path("out/sft/checkpoint"), trainee, optimizer)  # 20, {"data": "a1b2"}
    """
    if not _is_whole(folder):
        folder = folder.with_name(folder.name + ".old")
    if not _is_whole(folder):
        return 0, {}
    try:
        saved = parse_json((folder / "state.json").read_text())
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True, map_location=trainee.device))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} is damaged ({error!s:.100}); remove it, and the run begins anew") from None
    trainee.load_adapter_weights(folder / "adapter")
    return int(saved["step"]), dict(saved["extra"])


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in CHECKPOINT_FILES)
