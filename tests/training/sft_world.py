"""A tiny random-weight model and rows to train it on."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepwise.config import Config
from stepwise.data.examples import Example
from stepwise.io import read_rows

ROW = Example(
    "p0/r0/c0", "Mia has 3 apples and buys 4 more. How many apples does Mia have now?", "7",
    ("Mia starts with 3 apples.",), "After buying 4, there are 3 + 4 = 7 apples.", "intervention",
    {"problem": "p0"}, {"critic": "critic"}, Config().prompt.hash, "abc", 0, 1, 8,
)  # fmt: skip


def row(number: int = 0, **changes: object) -> Example:
    """A row like `ROW` with another id, and other numbers."""
    question = f"Tom has {number + 3} coins and buys 4 more. How many coins does Tom have now?"
    text = f"After buying 4, there are {number + 3} + 4 = {number + 7} coins."
    made = dataclasses.replace(ROW, id=f"p{number}/r0/c0", question=question, intervention=text)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def config(gguf: Path, *overrides: str) -> Config:
    """The tiny model as the weak one; its transformers form lies beside the GGUF."""
    folder = gguf.parent / "qwen3"
    given = [f"models.weak.model=llamacpp/{gguf}", f"models.weak.train_from={folder}", "models.weak.context=512"]
    given.append("prompt.system=")  # under which the rows were made
    return Config.load(None, [*given, "lora.rank=4", "lora.device=cpu", *overrides])


def copied(tiny_gguf_path: Path, folder: Path, **changes: object) -> Path:
    """The tiny model's directory with other entries in its tokenizer's configuration."""
    shutil.copytree(tiny_gguf_path.parent / "qwen3", folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def metrics(out: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, without what differs from run to run."""
    timed = ("seconds", "peak_bytes")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_rows(out / "metrics.jsonl")]


def whole_and_killed(train: Callable[[str, str], None], gguf: Path, folder: Path) -> tuple[Path, Path]:
    """The directories of a run that is left alone and of one that is killed after its fourth step, and gone on with.
    `train(gguf, out)` is the run; the one to kill is in a process of its own.
    """
    # Not of the test session's own process, which may have threads of its own: children begin where imports are done.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "stepwise.training.preference", "torch", "peft"])
    whole, killed = folder / "whole", folder / "killed"
    child, lines = context.Process(target=train, args=(str(gguf), str(killed))), killed / "metrics.jsonl"
    child.start()
    while child.is_alive() and (not lines.exists() or lines.read_bytes().count(b"\n") < 4):
        time.sleep(0.002)
    assert child.is_alive()
    child.kill()
    child.join()
    assert not (killed / "adapter" / "card.json").exists()
    for out in (killed, whole):
        train(str(gguf), str(out))
    return whole, killed
