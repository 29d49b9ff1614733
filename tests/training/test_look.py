"""What RL says before it trains, and what Ctrl-C leaves of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwise.errors import DataError
from stepwise.types import Problem
from tests.training import rl_world
from tests.training.rl_world import problems, untimed

pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

from stepwise.training.reinforce import grpo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("look")


def test_a_look_at_groups_says_before_training_that_nothing_can_be_learned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = rl_world.config(None, "rl.credit.scheme=outcome", "rl.max_tokens=8", "rl.no_answer=wrong", "rl.look=12")
    told = r"12 groups of 2 rollouts: no answer 100% \(76% to 100%\), all right 0% .*raise rl\.max_tokens"
    with pytest.raises(DataError, match=told):
        grpo(problems(14), cfg, tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.jsonl").exists() or not untimed(tmp_path / "out" / "metrics.jsonl")


def test_ctrl_c_loses_at_most_the_step_in_hand(folder: Path, tmp_path: Path) -> None:
    cfg = rl_world.config(folder, "rl.steps=3", "rl.save_every=100", "rl.credit.scheme=outcome")
    graded = 0

    def stopping(problem: Problem, text: str, verdict: Any) -> float:
        nonlocal graded
        graded += 1
        if graded == 9:  # of the third step
            raise KeyboardInterrupt
        return float(len(text) % 2)

    with pytest.raises(KeyboardInterrupt):
        grpo(problems(4), cfg, tmp_path / "stopped", reward=stopping)
    assert json.loads((tmp_path / "stopped/checkpoint/state.json").read_text())["step"] == 2
    grpo(problems(4), cfg, tmp_path / "stopped", reward=stopping)
    grpo(problems(4), cfg, tmp_path / "whole", reward=stopping)
    assert untimed(tmp_path / "stopped/metrics.jsonl") == untimed(tmp_path / "whole/metrics.jsonl")
