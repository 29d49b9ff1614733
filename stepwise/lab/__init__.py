"""The lab: generated problems with known truth and tiny models that ship with the library. A test bed, no benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from stepwise.errors import DataError
from stepwise.lab.problems import SPLITS, Knobs, LabProblem, generate

__all__ = [
    "ADAPTERS",
    "MODELS",
    "ROUNDS",
    "SPLITS",
    "Knobs",
    "LabProblem",
    "card",
    "generate",
    "model_path",
    "round_path",
]

MODELS = ("lab-weak", "lab-strong", "lab-scorer")
ADAPTERS = {"lab-critic": "lab-weak"}
"""LoRA adapters, each with the model it belongs to."""
ROUNDS = (1, 2)
"""Rounds of a loop in the lab whose adapter of lab-weak ships, with a probe fitted to what lab-weak writes with it."""
_FOLDER = Path(__file__).parent / "models"


def model_path(name: str, kind: Literal["gguf", "safetensors"] = "gguf") -> Path:
    """Where a shipped model or adapter lies: its GGUF, or its directory in transformers' or PEFT's layout (bf16).

    Raises DataError for an unknown name, or where the weights are missing from the installation.

    Example:
        >>> model_path("lab-weak").name
        'model.gguf'
    """
    if name not in (*MODELS, *ADAPTERS):
        raise DataError(f"lab model {name!r} is not one of {', '.join((*MODELS, *ADAPTERS))}")
    path = _FOLDER / name
    if kind == "gguf":
        path /= "adapter.gguf" if name in ADAPTERS else "model.gguf"
    if not path.exists():
        raise DataError(f"{path} is missing; make the lab's models again with `python -m evals.pretrain_lab`")
    return path


def card(name: str) -> dict[str, Any]:
    """The card of a shipped model: its data, steps, seed and measured figures.

    Example:
        >>> "loss at the end" in card("lab-weak")
        True
    """
    loaded: dict[str, Any] = json.loads((model_path(name).parent / "card.json").read_text())
    return loaded


def round_path(number: int) -> Path:
    """The folder of a round of `ROUNDS`: adapter.gguf, the probe in head, and card.json with the commands that made
    them. Raises DataError where it is missing.

    Example:
        >>> sorted(path.name for path in round_path(1).iterdir())
        ['adapter.gguf', 'card.json', 'head']
    """
    path = _FOLDER / f"lab-round-{number}"
    if not (path / "adapter.gguf").is_file():
        raise DataError(f"{path} has no adapter.gguf; the rounds that ship are {', '.join(map(str, ROUNDS))}")
    return path
