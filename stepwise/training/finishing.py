"""The end of a training run: the adapter in both layouts, and its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.config import Config
from stepwise.io import read_rows
from stepwise.training.cards import CardFacts, Method, curves_of, data_facts, write_card
from stepwise.training.lora import LAYOUT, Trainee

if TYPE_CHECKING:
    from stepwise.runs.directory import RunDirectory

FOLDER = "adapter"
FILES = (*LAYOUT, "adapter.gguf", "README.md", "card.json")


def finish(
    directory: RunDirectory,
    trainee: Trainee,
    cfg: Config,
    *,
    method: Method,
    data: Sequence[tuple[str, Sequence[Any]]],
) -> Path:
    """Write the adapter (PEFT's layout and GGUF) with its card to the run's folder adapter; returns the folder.

    `data` names what was trained on with its rows; curves are read from metrics.jsonl.
    """
    for name in FILES:
        directory.claim(f"{FOLDER}/{name}")
    folder = trainee.save(directory.path / FOLDER)
    trainee.export(folder / "adapter.gguf")
    facts = CardFacts(
        method,
        cfg,
        trainee.base,
        data=tuple(data_facts(rows, name) for name, rows in data if rows),
        curves=curves_of(read_rows(directory.path / "metrics.jsonl")),
    )
    write_card(folder, facts)
    return folder
