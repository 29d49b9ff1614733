"""The commonest mistakes in scripts that train: each ends in an error of ours that says what to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stepwise as sw
from tests.mistakes import refused

P = sw.Problem("p", "What is 2 + 2?", "4")
TRAINING: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no such TOML": (lambda out: sw.sft([], "none.toml", out), sw.ConfigError, "none.toml: .*give the path of a TOML"),
    "no such TOML, RL": (
        lambda out: sw.grpo([P], "none.toml", out),
        sw.ConfigError,
        "none.toml: .*give the path of a TO",
    ),
    "no dataset": (
        lambda out: sw.sft("none.jsonl", sw.Config.lab(), out),
        sw.DataError,
        "none.jsonl: no such file; give",
    ),
    "problems to train on": (
        lambda out: sw.sft([P], sw.Config.lab(), out),
        sw.DataError,
        "row 1 is Problem.*an object",
    ),
    "API model": (
        lambda out: sw.sft(ROWS, weak("openai/gpt-4o"), out),
        sw.ConfigError,
        "set train_from to the directory",
    ),
    "hub id as base": (
        lambda out: sw.sft(ROWS, weak("llamacpp/x.gguf", train_from="Qwen/Qwen3"), out),
        sw.ConfigError,
        'holds no config.json; give a directory .*; "hf:Qwen/Qwen3" is downloaded from the hub',
    ),
    "adapter that is none": (
        lambda out: sw.sft(ROWS, sw.Config.lab(), out, adapter="none"),
        sw.DataError,
        "adapter none: no such directory; give the directory that training wrote",
    ),
    "sink misspelt": (lambda out: sw.sft(ROWS, sw.Config.lab(), out, sinks="wandbb"), sw.ConfigError, "mean 'wandb'"),
    "scheme without a path": (
        lambda out: sw.grpo([P], sw.Config.lab(), out, credit="vpo"),
        sw.ConfigError,
        'write an import path as "my_package.my_file:MyClass"',
    ),
}
ROWS: Any = [{"prompt": "2 + 2?", "completion": "It is 4."}]


def weak(model: str, **fields: Any) -> sw.Config:
    return sw.Config(models={"weak": {"model": model, **fields}})


@pytest.mark.parametrize("name", TRAINING)
def test_a_mistake_in_training_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
    call, kind, says = TRAINING[name]
    assert "\n" not in refused(lambda: call(tmp_path / "out"), kind, says)
